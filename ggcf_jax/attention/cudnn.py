"""cuDNN's fused attention on NVIDIA GPUs: many short sequences in one kernel, forward and backward.

It takes bfloat16 and float16 (jax.nn.dot_product_attention, implementation='cudnn'). An engine
brings queries and keys together that see each other, in sequences; here they get the form that
cuDNN takes. What must not be seen although it stands in a sequence is hidden by additional channels
of q and k (`hidden`), or where there is no room for them by a bias: cuDNN computes its gradient, a
sum over all sequences, whether it is wanted or not.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from ggcf_jax.attention import varying
from ggcf_jax.attention.graphs import Block, Column, Full, Graph, Grid, Local, Row
from ggcf_jax.attention.kernels import Case
from ggcf_jax.attention.target import Device

_IMPLEMENTATION: Any = 'cudnn'  # of jax.nn.dot_product_attention

_GRAPHS = (Full, Local, Grid, Row, Column, Block)
_DTYPES = (jnp.bfloat16, jnp.float16)
_MULTIPLE = 8  # of the number of channels
_LEAST_SCALE = 2.0**-10  # below, hidden scores might be seen
_MOST_SEQUENCES = 65535  # blocks along an axis of a CUDA grid

# Height and width of a tile of queries of a local graph. Their sum is the number of channels that
# hide what is no neighbour.
TILE = (16, 16)


class CudnnKernels:
    """`kernels.Kernels` of cuDNN."""

    platform = 'gpu'

    def refusal(self, case: Case, device: Device, *, here: bool) -> str | None:
        """Why cuDNN cannot compute an attention on a device; None if it can."""
        if device.platform != self.platform:
            return f'it runs on NVIDIA GPUs, not on a {device.platform.upper()}'
        capability = device.compute_capability
        if capability is None:
            return 'it is not known for which NVIDIA GPU is compiled'
        if capability < (8, 0):
            return f'it needs compute capability 8.0, the GPU has {capability[0]}.{capability[1]}'
        refused = _refusal_of_arguments(case) or _refusal_of_shape(case)
        if refused is not None:
            return refused
        most = self.most_channels(device)
        by_channels = hides_by_channels(*case.channels, most)
        channels = _num_channels(case, by_channels=by_channels)
        if channels > most:
            with_valid = ' with valid' if 'valid' in case.extras else ''
            return (
                f'it takes {most} channels on compute capability {capability[0]}.{capability[1]}, '
                f'and {case.graph.kind()}{with_valid} needs {channels}'
            )
        if (
            isinstance(case.graph, Local)
            and not by_channels
            and dict(case.mesh).get('space', 1) > 1
        ):
            return (
                f'where devices share rows, {case.graph.kind()} needs {sum(TILE)} channels more '
                f'than the {case.channels[0]}, and {most} is the most'
            )
        return _refusal_of_jax(channels, jnp.dtype(case.dtypes[0]).name) if here else None

    def most_channels(self, device: Device) -> int:
        """The largest number of channels that it takes on a device."""
        return 256 if (device.compute_capability or (0, 0)) >= (9, 0) else 128


def hides_by_channels(dk: int, dv: int, most: int) -> bool:
    """Whether `most` channels have room for those that hide the strangers in a LOCAL window."""
    return -(-max(dk + sum(TILE), dv) // _MULTIPLE) * _MULTIPLE <= most


def tile(axis: int, size: int, *, by_channels: bool) -> int:
    """Longest tile of queries of a LOCAL graph of that size along an axis."""
    # A bias differs wherever a window is moved inside the map: longer tiles are fewer of these.
    return TILE[axis] * (1 if by_channels or size <= TILE[axis] else 2)


def _num_channels(case: Case, *, by_channels: bool) -> int:
    """Number of channels that q, k and v get for cuDNN."""
    is_local = isinstance(case.graph, Local)
    hiding = sum(TILE) if is_local and by_channels else int('valid' in case.extras)
    return -(-max(case.channels[0] + hiding, case.channels[1]) // _MULTIPLE) * _MULTIPLE


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: float,
    valid: jax.Array | None = None,
    strangers: np.ndarray | None = None,
) -> jax.Array:
    """Attention inside sequences.

    Args:
      q: queries [sequences, m, heads, dk].
      k: keys [sequences, n, heads, dk].
      v: values [sequences, n, heads or 1, dv].
      scale: factor of the affinities.
      valid: which keys take part, bool [sequences, n, 1, 1]; None for all. k and v are finite in
        the others, too.
      strangers: which keys of a sequence a query must not see, bool [m, n], the same in all
        sequences; None for none.

    Returns:
      The sums [sequences, m, heads, dv], zeros for queries without keys.
    """
    heads, dv = q.shape[2], v.shape[3]
    if valid is not None:
        one, far = hidden(q.dtype, scale)
        hide = jnp.broadcast_to(jnp.where(valid, 0, far).astype(k.dtype), (*k.shape[:3], 1))
        q = jnp.concatenate([q, jnp.full_like(q[..., :1], one)], -1)
        k = jnp.concatenate([k, hide], -1)
    v = jnp.broadcast_to(v, (*v.shape[:2], heads, dv))
    channels = -(-max(q.shape[3], dv) // _MULTIPLE) * _MULTIPLE
    q, k, v = (varying.match(_padded(x, channels), q, k, v) for x in (q, k, v))
    bias = None
    if strangers is not None:  # one for each head: cuDNN's gradient of it has no other form
        far = -(2.0**15 if q.dtype == jnp.float16 else 2.0**41)
        bias = jnp.where(strangers, far, 0).astype(q.dtype)
        bias = jnp.broadcast_to(bias, (1, heads, *strangers.shape))
    o = _attend(q, k, v, bias, scale)[..., :dv]
    return o if valid is None else jnp.where(valid.any(1, keepdims=True), o, 0)


def hidden(dtype: Any, scale: float) -> tuple[float, float]:
    """A number for a channel of the queries and one for the keys that hide these from those.

    Their product with the scale is far below any score, and finite: so are its gradients.
    """
    sign = 1.0 if scale > 0 else -1.0
    return (2.0**14, -sign * 2.0**14) if dtype == jnp.float16 else (1.0, -sign * 2.0**40)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, scale: float
) -> jax.Array:
    q, k, v = _batched_alike(q, k, v)
    return _call(q, k, v, bias, scale)


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, scale: float
) -> tuple[jax.Array, Any]:
    q, k, v = _batched_alike(q, k, v)
    return jax.vjp(lambda q, k, v: _call(q, k, v, bias, scale), q, k, v)


def _attend_backward(scale: float, pull: Any, do: jax.Array) -> tuple[jax.Array | None, ...]:
    return (*pull(do), None)


_attend.defvjp(_attend_forward, _attend_backward)


@custom_vmap
def _batched_alike(
    q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The arrays: under `jax.vmap` all mapped over their first axis, as cuDNN's rule expects."""
    return q, k, v


@_batched_alike.def_vmap
def _batch_alike(axis_size: int, in_batched: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
    alike = tuple(
        x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        for x, batched in zip(arrays, in_batched)
    )
    return alike, (True, True, True)


def _call(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, scale: float
) -> jax.Array:
    """JAX's function for sequences of any length: cuDNN's gradients want even ones."""
    lengths = [x.shape[1] for x in (q, k)]
    known: list[jax.Array | None] = [None, None]
    if any(n % 2 for n in lengths):  # one position more, which does not take part
        q, k, v = (_even(x) for x in (q, k, v))
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (0, 0), *((0, n % 2) for n in lengths)))
        known = [jnp.full(q.shape[0], n, jnp.int32) for n in lengths]
    o = jax.nn.dot_product_attention(
        q, k, v, bias, scale=scale, implementation=_IMPLEMENTATION, query_seq_lengths=known[0],
        key_value_seq_lengths=known[1],
    )  # fmt: skip
    return o[:, : lengths[0]]


def _even(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))


def _padded(x: jax.Array, channels: int) -> jax.Array:
    short = channels - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)]) if short else x


def _refusal_of_arguments(case: Case) -> str | None:
    graph, (of_q, of_v) = case.graph, case.dtypes
    if not isinstance(graph, _GRAPHS):
        return f'it has no form of {graph.kind()} graphs'
    if of_q != of_v or of_q not in _DTYPES:
        names = ' and '.join(dict.fromkeys(jnp.dtype(x).name for x in (of_q, of_v)))
        return f'it takes bfloat16 or float16 alike for q, k and v, not {names}'
    if case.extras - {'valid'}:
        return f'it does not know {", ".join(sorted(case.extras - {"valid"}))}'
    hides = isinstance(graph, Local) or 'valid' in case.extras
    if hides and not abs(case.scale) >= _LEAST_SCALE:
        return f'a scale of {case.scale} is too small to hide positions from each other'
    return None


def _refusal_of_shape(case: Case) -> str | None:
    unknown = [name for name, size in case.mesh if size > 1 and name not in ('data', 'space')]
    if unknown:
        return f'it is not known what the mesh axis {unknown[0]!r} shards'
    if case.shape is None:
        return None
    b, h, w = case.shape
    if not isinstance(b, int):
        return 'the batch is symbolic'
    data = dict(case.mesh).get('data', 1)
    if b % data:
        return f'the batch of {b} is not divisible by the {data} devices of data'
    sequences = b * h * w // _sequence_length(case.graph, h, w)
    if sequences > _MOST_SEQUENCES:
        return f'it takes {_MOST_SEQUENCES} sequences, and here are about {sequences}'
    return None


def _sequence_length(graph: Graph, h: int, w: int) -> int:
    """About how many queries stand in a sequence of a graph's engine."""
    if isinstance(graph, Local):
        members = [-(-n // d) for n, d in zip((h, w), graph.dilations)]
        return min(members[0], TILE[0]) * min(members[1], TILE[1])
    if isinstance(graph, Grid):
        return max(1, h // graph.strides[0]) * max(1, w // graph.strides[1])
    if isinstance(graph, Block):
        return min(h, graph.sizes[0]) * min(w, graph.sizes[1])
    if isinstance(graph, (Row, Column)):
        return w if isinstance(graph, Row) else h
    return h * w


def forget_answers() -> None:
    """Asks JAX again what it refuses: it is another GPU."""
    _refusal_of_jax.cache_clear()


@functools.cache
def _refusal_of_jax(channels: int, dtype: str) -> str | None:
    """Why JAX refuses to call cuDNN here, with so many channels; None if it does not."""
    x = jax.ShapeDtypeStruct((1, 16, 1, channels), dtype)

    def gradients(x: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(lambda *x: _call(x[0], x[1], x[2], None, 1.0), x, x, x)[1](x)

    try:
        jax.eval_shape(gradients, x)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f'JAX says: {error}'
    return None
