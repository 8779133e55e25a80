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
from jax import lax

from ggcf_jax.attention import cudnn_sums, once, softmax, varying
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.cudnn_sums import batched_alike

_IMPLEMENTATION: Any = 'cudnn'  # of jax.nn.dot_product_attention

MULTIPLE = 8  # of the number of channels

# Height and width of a tile of queries of a local graph. Their sum is the number of channels that
# hide what is no neighbour.
TILE = (16, 16)


def hides_by_channels(dk: int, most: int) -> bool:
    """Whether `most` channels have room for those that hide the strangers in a LOCAL window."""
    return dk + sum(TILE) <= most


def tile(axis: int, size: int, *, by_channels: bool) -> int:
    """Longest tile of queries of a LOCAL graph of that size along an axis."""
    # A bias differs wherever a window is moved inside the map: longer tiles are fewer of these.
    return TILE[axis] * (1 if by_channels or size < TILE[axis] else 2)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    options: Options,
    valid: jax.Array | None = None,
    strangers: jax.typing.ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention inside sequences.

    Args:
      q: queries [sequences, m, heads, dk].
      k: keys [sequences, n, heads, dk].
      v: values [sequences, n, heads or 1, dv]. Of more channels than cuDNN takes, some at a time.
      options: scale, number of channels that cuDNN takes, and whether the sums are needed.
      valid: which keys take part, bool [sequences, n, 1, 1]; None for all. k and v are finite in
        the others, too.
      strangers: which keys of a sequence a query must not see, bool [m, n], the same in all
        sequences; None for none. Every query sees itself.

    Returns:
      The sums of the values [sequences, m, heads, dv], zeros for queries without valid keys, and
      the log-sum-exps [sequences, m, heads], minus infinity for these and NaN where they are not
      needed.
    """
    heads, scale = q.shape[2], options.scale
    if valid is not None:
        one, far = hidden(q.dtype, scale)
        hide = jnp.broadcast_to(jnp.where(valid, 0, far).astype(k.dtype), (*k.shape[:3], 1))
        q = jnp.concatenate([q, jnp.full_like(q[..., :1], one)], -1)
        k = jnp.concatenate([k, hide], -1)
    bias = None
    if strangers is not None:  # one for each head: cuDNN's gradient of it has no other form
        far = -(2.0**15 if q.dtype == jnp.float16 else 2.0**41)
        bias = jnp.where(jnp.asarray(strangers), far, 0).astype(q.dtype)
        bias = jnp.broadcast_to(bias, (1, heads, *bias.shape))
    spare = int(options.sums)  # a channel for the gradient of the sums
    most = options.most_channels - spare
    outputs = []
    lse = jnp.full(q.shape[:3], jnp.nan, jnp.float32)
    for first in range(0, v.shape[3], most):
        some = v[..., first : first + most]
        some = jnp.broadcast_to(some, (*v.shape[:2], heads, some.shape[3]))
        dv = some.shape[3]
        channels = -(-max(q.shape[3], dv + spare) // MULTIPLE) * MULTIPLE
        arrays = [varying.match(_padded(x, channels), q, k, v) for x in (q, k, some)]
        if options.sums and first == 0:
            o, lse = cudnn_sums.attend(arrays[0], arrays[1], arrays[2], bias, scale)
        else:
            o = _attend(arrays[0], arrays[1], arrays[2], bias, scale)
        outputs.append(o[..., :dv])
    o = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, -1)
    if valid is None:
        return o, lse
    seen = valid.any(1, keepdims=True)
    return jnp.where(seen, o, 0), jnp.where(seen[..., 0], lse, softmax.HIDDEN)


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
    q, k, v = batched_alike(q, k, v)
    return _call(q, k, v, bias, scale)


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, scale: float
) -> tuple[jax.Array, Any]:
    q, k, v = once.only('cuDNN', batched_alike(q, k, v))
    return jax.vjp(lambda q, k, v: _call(q, k, v, bias, scale), q, k, v)


def _attend_backward(scale: float, pull: Any, do: jax.Array) -> tuple[jax.Array | None, ...]:
    return (*pull(once.only('cuDNN', do)), None)


_attend.defvjp(_attend_forward, _attend_backward)


def _call(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, scale: float
) -> jax.Array:
    """JAX's function."""
    even = cudnn_sums.even(q, k, v, bias)
    _, of_q, of_k = batched_alike(lax.stop_gradient(q), even.of_q, even.of_k)
    o = jax.nn.dot_product_attention(
        even.q, even.k, even.v, even.bias, scale=scale, implementation=_IMPLEMENTATION,
        query_seq_lengths=of_q, key_value_seq_lengths=of_k,
    )  # fmt: skip
    return o[:, : q.shape[1]]


def _padded(x: jax.Array, channels: int) -> jax.Array:
    short = channels - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)]) if short else x


def forget_answers() -> None:
    """Asks JAX again what it refuses: it is another GPU."""
    refusal_of_jax.cache_clear()


@functools.cache
def refusal_of_jax(channels: int, dtype: str) -> str | None:
    """Why JAX refuses to call cuDNN here, with so many channels; None if it does not."""
    x = jax.ShapeDtypeStruct((1, 16, 1, channels), dtype)

    def gradients(x: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(lambda *x: _call(x[0], x[1], x[2], None, 1.0), x, x, x)[1](x)

    try:
        jax.eval_shape(gradients, x)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f'JAX says: {error}'
    return None
