"""Which implementation computes an attention on which device, and why not a faster one.

Every engine runs on every platform through XLA. An accelerator may have kernels beside, for some
graphs, dtypes and widths: an entry in `KERNELS`.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from ggcf_jax.attention import cudnn_rules, tpu
from ggcf_jax.attention.kernels import Case, Kernels
from ggcf_jax.attention.target import Device

Implementation = Literal['auto', 'reference', 'xla', 'cudnn', 'pallas']
Resolved = Literal['reference', 'xla', 'cudnn', 'pallas']

IMPLEMENTATIONS: tuple[Implementation, ...] = ('auto', 'reference', 'xla', 'cudnn', 'pallas')

KERNELS: dict[Literal['cudnn', 'pallas'], Kernels] = {
    'cudnn': cudnn_rules.CudnnKernels(),
    'pallas': tpu.TpuKernels(),
}


class Resolution(NamedTuple):
    """What computes an attention.

    Attributes:
      implementation: 'reference', 'xla', 'cudnn' or 'pallas'.
      reasons: why each faster one does not apply; {} where the implementation was named.
    """

    implementation: Resolved
    reasons: Mapping[str, str]


def resolve(
    case: Case, implementation: Implementation, device: Device, *, has_engine: bool, here: bool
) -> Resolution:
    """What computes an attention on a device.

    Args:
      case: the attention.
      implementation: what was asked for.
      device: the device.
      has_engine: whether the graph has an engine.
      here: whether the device is one of this machine, so that it can be asked.

    Raises:
      ValueError: a named implementation that cannot.
    """
    if implementation == 'reference':
        return Resolution('reference', {})
    if implementation == 'auto' and not has_engine:
        return Resolution('reference', dict.fromkeys(('xla', *KERNELS), 'the graph has no engine'))
    if implementation == 'auto':
        reasons: dict[str, str] = {}
        for name in KERNELS:
            reason = KERNELS[name].refusal(case, device, here=here)
            if reason is None:
                return Resolution(name, reasons)
            reasons[name] = reason
        return Resolution('xla', reasons)
    if implementation == 'xla':
        return Resolution('xla', {})
    reason = KERNELS[implementation].refusal(case, device, here=here)
    if reason is not None:
        raise ValueError(
            f'implementation {implementation!r} cannot attend on {case.graph} here: {reason}; use '
            "'auto'"
        )
    return Resolution(implementation, {})
