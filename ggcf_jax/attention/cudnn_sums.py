"""cuDNN's fused attention with its log-sum-exps in float32, both differentiable.

`jax.nn.dot_product_attention` rounds the log-sum-exps to the dtype of the output and has no
gradient for them. cuDNN itself has both: here are the functions of JAX that call it. They are not
public; `missing` says where a version of JAX has them no more.
"""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax.custom_batching import custom_vmap

from ggcf_jax.attention import once


class Even(NamedTuple):
    """Arrays of even length, which cuDNN's gradients want: one position more does not take part.

    Attributes:
      q: queries [sequences, m, heads, c].
      k: keys [sequences, n, heads, c].
      v: values [sequences, n, heads, c].
      bias: [1, heads, m, n], or None.
      of_q: lengths of the queries, int32 [sequences]; None where they are even.
      of_k: lengths of the keys, likewise.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    bias: jax.Array | None
    of_q: jax.Array | None
    of_k: jax.Array | None


def even(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> Even:
    """The arrays with even lengths."""
    m, n = q.shape[1], k.shape[1]
    if m % 2 == n % 2 == 0:
        return Even(q, k, v, bias, None, None)
    of_q, of_k = (jnp.full(q.shape[0], x, jnp.int32) for x in (m, n))
    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, m % 2), (0, n % 2)))
    return Even(lengthen(q), lengthen(k), lengthen(v), bias, of_q, of_k)


def lengthen(x: jax.Array) -> jax.Array:
    """An array [sequences, length, ...] of even length, with zeros behind."""
    return jnp.pad(x, [(0, 0), (0, x.shape[1] % 2)] + [(0, 0)] * (x.ndim - 2))


@custom_vmap
def batched_alike(*arrays: Any) -> tuple[Any, ...]:
    """The arrays: under `jax.vmap` all mapped over their first axis, as cuDNN's rule expects."""
    return arrays


@batched_alike.def_vmap
def _batch_alike(axis_size: int, in_batched: Any, *arrays: Any) -> tuple[Any, Any]:
    def alike(x: jax.Array, batched: bool) -> jax.Array:
        return x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))

    return jax.tree.map(alike, arrays, tuple(in_batched)), jax.tree.map(lambda x: True, arrays)


@functools.cache
def missing() -> str | None:
    """Why the functions of JAX cannot be called; None if they can."""
    try:
        of_forward = inspect.signature(fused.dot_product_attention).parameters
        of_backward = inspect.signature(fused._dot_product_attention_bwd_rule).parameters
    except AttributeError as error:
        return f'this version of JAX does not give the sums in float32: {error}'
    if 'return_residual' not in of_forward or list(of_backward) not in (_BACKWARD, _WITH_SCORE_MOD):
        return 'this version of JAX does not give the sums in float32'
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Attention inside sequences.

    Args:
      q: queries [sequences, m, heads, c].
      k: keys [sequences, n, heads, c].
      v: values [sequences, n, heads, c]. The last channel is zero.
      bias: [1, heads, m, n], a constant, or None.
      scale: factor of the affinities.

    Returns:
      The sums [sequences, m, heads, c], and the log-sum-exps, float32 [sequences, m, heads].
    """
    return _attend_forward(q, k, v, bias, scale)[0]


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, scale: float
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    q, k, v = once.only('cuDNN', (q, k, v))
    o, lse = forward(even(q, k, v, bias), scale)  # lse [sequences, heads, m]
    m = q.shape[1]
    return (o[:, :m], jnp.swapaxes(lse, 1, 2)[:, :m]), (q, k, v, bias, o, lse)


def _attend_backward(
    scale: float, saved: Any, gradients: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    """Gradients of the outputs and of the log-sum-exps in one call.

    cuDNN subtracts the sum over channels of do * o from the gradients of the probabilities, and the
    gradient of a log-sum-exp belongs there with the other sign: into the channel that is zero in v.
    """
    q, k, v, bias, o, lse = saved
    do, dlse = once.only('cuDNN', gradients)
    do = jnp.concatenate([do[..., :-1], jnp.ones_like(do[..., -1:])], -1)
    if o.shape[1] > do.shape[1]:  # of the position more everything is zero
        do, dlse = lengthen(do), lengthen(dlse)
    o = jnp.concatenate([o[..., :-1], -dlse[..., None].astype(o.dtype)], -1)
    found = backward(even(q, k, v, bias), o, lse, do, scale)
    return (*(x[:, : y.shape[1]] for x, y in zip(found, (q, k, v))), None)


attend.defvjp(_attend_forward, _attend_backward)


def forward(arrays: Even, scale: float) -> tuple[jax.Array, jax.Array]:
    """The sums [sequences, m, heads, c] and log-sum-exps [sequences, heads, m], by cuDNN."""
    q, k, v, of_q, of_k = batched_alike(*arrays[:3], *arrays[4:])
    return fused.dot_product_attention(
        q, k, v, arrays.bias, None, of_q, of_k, scale=scale, mask_type=_mask_type(arrays),
        return_residual=True,
    )  # fmt: skip


def backward(
    arrays: Even, o: jax.Array, lse: jax.Array, do: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of q, k and v, by cuDNN; not that of the bias.

    Args:
      arrays: those of `forward`.
      o: what `forward` returned, or what the sums of do * o are to be taken of.
      lse: the log-sum-exps that `forward` returned.
      do: the gradients of the sums.
      scale: factor of the affinities.
    """
    q, k, v, of_q, of_k, o, lse, do = batched_alike(*arrays[:3], *arrays[4:], o, lse, do)
    nothing = jnp.zeros(0, q.dtype)
    given = [nothing if x is None else x for x in (arrays.bias, of_q, of_k)]
    rest = nothing, nothing, nothing, nothing  # no offsets, no pages
    kinds = arrays.bias is not None, False  # a bias, its gradient
    rule: Any = fused._dot_product_attention_bwd_rule
    named = dict(
        scale=scale, seed=42, dropout_rate=0.0, variadic_args=kinds, mask_type=_mask_type(arrays),
        layout=fused.AttentionLayout.BTNH.value, sliding_window_length=None, return_residual=False,
        grad_output=do,
    )  # fmt: skip
    if 'score_mod' in inspect.signature(rule).parameters:  # the rule reads no version of cuDNN
        saved = (q, k, v, *given, *rest, (), lse, o)
        dq, dk, dv, *_ = rule(**named, score_mod=None, cudnn_version=None, res=saved)
    else:
        dq, dk, dv, *_ = rule(**named, is_training=True, res=(q, k, v, *given, *rest, lse, o))
    return dq, dk, dv


# The arguments of the function of JAX that `backward` calls: up to jax 0.11, and of jax 0.12.
_BACKWARD = [
    'scale', 'seed', 'dropout_rate', 'variadic_args', 'mask_type', 'layout',
    'sliding_window_length', 'is_training', 'return_residual', 'res', 'grad_output',
]  # fmt: skip
_WITH_SCORE_MOD = [
    *_BACKWARD[:7], 'score_mod', 'cudnn_version', 'return_residual', 'res', 'grad_output',
]  # fmt: skip


def _mask_type(arrays: Even) -> Any:
    return fused.MaskType.NO_MASK if arrays.of_q is None else fused.MaskType.PADDING
