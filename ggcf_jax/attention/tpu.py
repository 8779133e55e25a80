"""The Pallas kernels for TPUs: which attentions they are for.

LOCAL has its own kernel (`tpu_local`), FULL is JAX's splash attention (`tpu_full`).
"""

import jax
import jax.numpy as jnp

from ggcf_jax.attention import target, tpu_local, tpu_sizes
from ggcf_jax.attention.graphs import Full, Local
from ggcf_jax.attention.kernels import Case, refusal_of_mesh
from ggcf_jax.attention.target import Device

_DTYPES = (jnp.bfloat16, jnp.float32)
# What a graph's kernel knows beside q, k and v.
_EXTRAS: dict[type, frozenset[str]] = {
    Local: frozenset({'valid', 'registers', 'pruning', 'return_lse'}),
    Full: frozenset({'valid'}),
}
_MOST_CHANNELS = 512


class TpuKernels:
    """`kernels.Kernels` of TPUs."""

    platform = 'tpu'

    def refusal(self, case: Case, device: Device, *, here: bool) -> str | None:
        """Why the kernels cannot compute an attention on a device; None if they can."""
        if device.platform != self.platform:
            return f'its kernels are for TPUs, not for a {device.platform.upper()}'
        sizes = tpu_sizes.of_kind(device.kind)
        if sizes is None:
            return f'its kernels are not for a {device.kind}'
        refused = _refusal_of_arguments(case) or refusal_of_mesh(case)
        if refused is not None:
            return refused
        if case.shape is None:
            return None
        if not device.kind:  # JAX lowers exported programs' loops for all platforms: Mosaic cannot
            return 'it is not known for which TPU is compiled'
        if here and _is_shared_unseen():
            return (
                'there are several TPUs and no mesh: how arrays are sharded is not known '
                '(jax.set_mesh)'
            )
        if 'pruning' in case.extras and _is_shared(case):
            return 'pruning over devices is left to the partitioner, which knows no kernels'
        return (
            _refusal_of_memory(case, case.graph, sizes) if isinstance(case.graph, Local) else None
        )

    def most_channels(self, device: Device) -> int:
        """The largest number of channels that they take on a device."""
        return _MOST_CHANNELS


def _refusal_of_arguments(case: Case) -> str | None:
    graph, (of_q, of_v) = case.graph, case.dtypes
    if not isinstance(graph, (Full, Local)):
        return f'there is no kernel for {graph.kind()} graphs'
    if isinstance(graph, Local) and graph.border == 'shift':
        return 'its kernel for local graphs knows windows that are truncated, not shifted ones'
    if of_q != of_v or of_q not in _DTYPES:
        names = ' and '.join(dict.fromkeys(jnp.dtype(x).name for x in (of_q, of_v)))
        return f'it takes bfloat16 or float32 alike for q, k and v, not {names}'
    unknown = case.extras - _EXTRAS[type(graph)]
    if unknown:
        return f'its kernel for {graph.kind()} graphs does not know {", ".join(sorted(unknown))}'
    if case.varies and isinstance(graph, Full):
        return 'its kernel for full graphs needs jax.shard_map(..., check_vma=False)'
    if max(case.channels) > _MOST_CHANNELS:
        return f'it takes {_MOST_CHANNELS} channels, not {max(case.channels)}'
    return None


def _refusal_of_memory(case: Case, graph: Local, sizes: tpu_sizes.TpuSizes) -> str | None:
    assert case.shape is not None
    _, h, w = case.shape
    members = [-(-n // d) for n, d in zip((h, w), graph.dilations)]
    itemsize = jnp.dtype(case.dtypes[0]).itemsize
    pruned = 'pruning' in case.extras
    needed = tpu_local.memory(
        members[0], members[1], graph, case.channels, itemsize, sizes, pruned=pruned
    )
    if needed <= sizes.memory:
        return None
    return (
        f'a window of {graph.kind()} needs {needed / 2**20:.0f} MiB of on-chip memory, and there '
        f'are {sizes.memory / 2**20:.0f}'
    )


def _is_shared(case: Case) -> bool:
    """Whether the program is partitioned: not inside a `jax.shard_map` that took all axes."""
    manual = bool(jax.sharding.get_abstract_mesh().manual_axes)
    return any(size > 1 for _, size in case.mesh) or (manual and bool(case.mesh))


def _is_shared_unseen() -> bool:
    """Whether arrays may be sharded over TPUs of this machine without a mesh that says how."""
    return jax.sharding.get_abstract_mesh().empty and target.number('tpu') > 1
