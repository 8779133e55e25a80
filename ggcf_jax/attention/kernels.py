"""What the kernels of an accelerator are: when they apply, and to what."""

import dataclasses
from typing import Any, Literal, Protocol

from ggcf_jax.attention.graphs import Graph
from ggcf_jax.attention.target import Device

Extra = Literal[
    'valid', 'bias', 'registers', 'pruning', 'random_pruning', 'return_lse', 'other_map'
]  # fmt: skip

EXTRAS: tuple[Extra, ...] = (
    'valid', 'bias', 'registers', 'pruning', 'random_pruning', 'return_lse', 'other_map',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """An attention of which it is to be decided what computes it.

    Attributes:
      graph: its graph, simplified.
      dtypes: dtypes of q and k, and of v.
      channels: channels of q and k, and of v.
      scale: factor of the affinities.
      extras: what else it has.
      shape: batch, height and width of the maps; None where they do not matter. A batch may be
        symbolic.
      mesh: sizes of the mesh axes over which arrays may be sharded.
      varies: whether JAX tracks over which devices the arrays vary (`jax.shard_map` with
        check_vma).
    """

    graph: Graph
    dtypes: tuple[Any, Any]
    channels: tuple[int, int]
    scale: float = 1.0
    extras: frozenset[str] = frozenset()
    shape: tuple[Any, int, int] | None = None
    mesh: tuple[tuple[str, int], ...] = ()
    varies: bool = False


class Kernels(Protocol):
    """The kernels of one platform."""

    platform: str  # 'gpu' or 'tpu'

    def refusal(self, case: Case, device: Device, *, here: bool) -> str | None:
        """Why they cannot compute an attention on a device; None if they can.

        Args:
          case: the attention.
          device: the device.
          here: whether it is a device of this machine, so that it can be asked.
        """

    def most_channels(self, device: Device) -> int:
        """The largest number of channels that they take on a device."""


def refusal_of_mesh(case: Case) -> str | None:
    """Why kernels that every device calls for itself cannot share an attention over a mesh.

    Args:
      case: the attention.

    Returns:
      The reason; None if they can.
    """
    unknown = [name for name, size in case.mesh if size > 1 and name not in ('data', 'space')]
    if unknown:
        return f'it is not known what the mesh axis {unknown[0]!r} shards'
    if case.shape is None:
        return None
    data, b = dict(case.mesh).get('data', 1), case.shape[0]
    if data > 1 and not isinstance(b, int):
        return 'the batch is symbolic'
    if data > 1 and b % data:
        return f'the batch of {b} is not divisible by the {data} devices of data'
    return None
