"""Attention of one tile of queries against one tile of keys: products, softmax, gradients.

Tiles are q [..., heads, m, dk], k [..., heads, n, dk], v [..., heads or 1, n, dv]. Products
accumulate in float32 and everything between them is float32.
"""

import jax.numpy as jnp
from jax import lax

# A finite "minus infinity": a row without any key (a padded query) stays free of NaN.
LOWEST = -1e30


def _product(a, b, contract_a, contract_b):
    batch = tuple(range(a.ndim - 2))
    axes = (((a.ndim - 2 + contract_a,), (b.ndim - 2 + contract_b,)), (batch, batch))
    return lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _transposed_product(p, x, tiles):
    """p^T x: [..., m, n], [..., m, d] -> [..., n, d]."""
    if not tiles.transpose_result:
        return _product(p, x, 0, 0)
    # The barrier keeps XLA from folding the transposition back into the product.
    return jnp.swapaxes(lax.optimization_barrier(_product(x, p, 0, 0)), -1, -2)


def _share(x, heads):
    """Folds the heads of [..., heads, m, c] that share one v into its rows."""
    return x.reshape(*x.shape[:-3], heads, -1, x.shape[-1])


def scores(q, k, scale):
    """Float32 affinities [..., heads, m, n]."""
    s = _product(q, k, 1, 1)
    return s if scale == 1.0 else s * scale


def weigh(p, v):
    """p [..., heads, m, n] times v [..., heads or 1, n, dv], float32."""
    o = _product(_share(p.astype(v.dtype), v.shape[-3]), v, 1, 0)
    return o.reshape(*p.shape[:-1], v.shape[-1])


def normalise(s, v, shape=None):
    """Softmax of whole rows of scores, applied.

    Args:
      s: scores [..., heads, m, n], or [..., heads, *queries, *keys] where shape tells.
      v: [..., heads or 1, n, dv].
      shape: (m, n) where s has two axes for each.

    Returns:
      float32 output [..., heads, m, dv] and log-sum-exp [..., heads, m].
    """
    axes = -1 if shape is None else (-2, -1)
    top = s.max(axes, keepdims=True)
    p = jnp.exp(s - top)
    total = p.sum(axes, keepdims=True)
    lse = top + jnp.log(total)
    if shape is not None:
        p = p.reshape(*p.shape[:-4], *shape)
        total, lse = (x.reshape(*p.shape[:-1], 1) for x in (total, lse))
    return weigh(p, v) / total, lse[..., 0]


def start(q, v):
    """The state of `accumulate` before any key: maximum, sum, weighted sum."""
    rows = (*q.shape[:-1], 1)
    return (
        jnp.full(rows, LOWEST, jnp.float32),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros((*q.shape[:-1], v.shape[-1]), jnp.float32),
    )


def accumulate(state, s, v):
    """Online softmax: the state after one more tile of keys with scores s."""
    top, total, o = state
    new = jnp.maximum(top, s.max(-1, keepdims=True))
    p = jnp.exp(s - new)
    old = jnp.exp(top - new)
    return new, total * old + p.sum(-1, keepdims=True), o * old + weigh(p, v)


def finish(state):
    """Output and log-sum-exp as `normalise` gives them."""
    top, total, o = state
    return o / total, (top + jnp.log(total))[..., 0]


def row_delta(do, o):
    """Sum over channels of do * o: float32, without the last axis."""
    return (do.astype(jnp.float32) * o.astype(jnp.float32)).sum(-1)


def backward(q, k, v, s, do, lse, delta, scale, tiles):
    """Gradients of one tile from its recomputed scores (flash attention style).

    Args:
      s: scores [..., heads, m, n], or [..., heads, *queries, *keys] with two axes for each.
      do: [..., heads, m, dv], gradient of the output.
      lse, delta: [..., heads, m], log-sum-exp and `row_delta`.

    Returns:
      float32 dq, dk, dv shaped like q, k, v, and ds shaped like s, the gradient of the scores.
    """
    heads = v.shape[-3]
    matrix = (*q.shape[:-1], k.shape[-2])
    rows = (*q.shape[:-1], 1) if s.shape == matrix else (*s.shape[:-2], 1, 1)
    p = jnp.exp(s - lse.reshape(rows))
    shared = _share(do, heads)
    dv = _transposed_product(_share(p.reshape(matrix).astype(do.dtype), heads), shared, tiles)
    dp = _product(shared, v, 1, 1).reshape(s.shape)
    ds = p * (dp - delta.reshape(rows))
    scaled = (ds * scale if scale != 1.0 else ds).reshape(matrix).astype(q.dtype)
    return _product(scaled, k, 1, 0), _transposed_product(scaled, q, tiles), dv, ds
