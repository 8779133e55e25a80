"""FULL attention on TPUs: JAX's splash attention, FlashAttention as a Pallas kernel of Mosaic.

Sequences are filled up to whole blocks. Positions that fill them, and those that are not valid,
stand in a segment of their own among the keys, whose segment no query has.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import once, softmax, target, tpu_sizes
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.tpu_sizes import round_up

_INTERPRET = False  # whether the kernels are carried out by XLA, where there is no TPU

_LANES = 128


def attend(inputs: Inputs, scale: float) -> Partial:
    """FULL attention of maps; that of keys may have more rows than that of queries.

    The log-sum-exps of the result are NaN: the kernel's are not differentiable.
    """
    # Here and not at the top: a start without a TPU need not wait for Mosaic.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    q, k, v, valid, _, _ = inputs
    if not isinstance(q.shape[0], int):  # a kernel's grid is static: one image after the other

        def one(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return tuple(x[0] for x in attend(Inputs(*(x[None] for x in arrays)), scale))

        return Partial(*lax.map(one, tuple(x for x in (q, k, v, valid) if x is not None)))
    b, h, w, heads, dk = q.shape
    sizes = tpu_sizes.of_kind(target.kind())
    assert sizes is not None
    n, m = h * w, k.shape[1] * w
    of_queries, of_keys = blocks(n, m, max(dk, v.shape[-1]), sizes.full)
    v = jnp.broadcast_to(v, (*v.shape[:3], heads, v.shape[-1]))
    if scale != 1.0:
        q = (q * scale).astype(q.dtype)

    def rows(x: jax.Array, length: int) -> jax.Array:
        x = jnp.swapaxes(x.reshape(b, -1, heads, x.shape[-1]), 1, 2)
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

    lengths = round_up(n, of_queries), round_up(m, of_keys)
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask(lengths)] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=of_queries,
            block_kv=of_keys,
            block_q_dkv=of_queries,
            block_kv_dkv=of_keys,
            block_q_dq=of_queries,
            block_kv_dq=of_keys,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=_INTERPRET,
    )
    arrays = rows(q, lengths[0]), rows(k, lengths[1]), rows(v, lengths[1])
    if valid is None and lengths[1] == m:
        o = _once(jax.vmap(lambda *x: kernel(*x)), *arrays)
    else:
        inside = jnp.ones((b, m), bool) if valid is None else valid.reshape(b, m)
        inside = jnp.pad(inside, ((0, 0), (0, lengths[1] - m))).astype(jnp.int32)
        ones = jnp.ones((b, lengths[0]), jnp.int32)

        def segmented(q: jax.Array, k: jax.Array, v: jax.Array, own: Any, of_k: Any) -> jax.Array:
            return kernel(q, k, v, splash_attention_kernel.SegmentIds(own, of_k))

        o = _once(jax.vmap(segmented), *arrays, ones, inside)
    o = jnp.swapaxes(o[:, :, :n], 1, 2).reshape(b, h, w, heads, -1)
    if valid is not None:
        o = jnp.where(valid.any((1, 2))[:, None, None, None, None], o, 0)
    return Partial(o.astype(v.dtype), jnp.full(q.shape[:4], jnp.nan, softmax.accumulator(q, k)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _once(
    kernel: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *segments: jax.Array,
) -> jax.Array:
    """The kernel, whose second derivative is refused."""
    return kernel(q, k, v, *segments)


def _once_forward(
    kernel: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *segments: jax.Array,
) -> tuple[jax.Array, Any]:
    o, pull = jax.vjp(lambda *x: kernel(*x, *segments), *once.only('Pallas', (q, k, v)))
    return o, (pull, segments)


def _once_backward(
    kernel: Callable[..., jax.Array], saved: Any, do: jax.Array
) -> tuple[jax.Array | None, ...]:
    del kernel
    pull, segments = saved
    return (*pull(once.only('Pallas', do)), *[None for _ in segments])


_once.defvjp(_once_forward, _once_backward)


def blocks(n: int, m: int, channels: int, most: tuple[int, int]) -> tuple[int, int]:
    """Numbers of queries and keys of a block, multiples of the lanes.

    Args:
      n, m: numbers of queries and keys.
      channels: the larger of the numbers of channels.
      most: about how many there may be, up to 128 channels.
    """
    queries = most[0] if channels <= _LANES else most[0] // 2
    return _even(n, queries), _even(m, most[1])


def _even(n: int, most: int) -> int:
    """Length of equal chunks of n positions, about `most`."""
    return round_up(-(-n // -(-n // most)), _LANES)
