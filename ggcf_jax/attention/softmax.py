"""Attention of one tile of queries against one tile of keys: products, softmax, gradients.

Tiles are q [..., heads, m, dk], k [..., heads, n, dk], v [..., heads or 1, n, dv]. Products
accumulate in float32, or in float64 where their factors are float64, and everything between them
has that dtype; below it is called float32.

Scores of keys that do not take part are minus infinity: a row without any key becomes NaN, until
`where_seen` replaces it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.row_sums import sum_of_products

HIDDEN = -jnp.inf  # score of a key that does not take part


class OnlineSoftmax(NamedTuple):
    """What `accumulate` knows of the keys so far.

    Attributes:
      top: float32 [..., heads, m, 1], largest score of each query.
      total: float32 [..., heads, m, 1], sum of exp(score - top).
      o: float32 [..., heads, m, dv], sum of exp(score - top) * v.
    """

    top: jax.Array
    total: jax.Array
    o: jax.Array


class QueryTile(NamedTuple):
    """What the backward pass needs to know of a tile of queries.

    Attributes:
      q: [..., heads, m, dk], the queries.
      do: [..., heads, m, dv], gradient of their output.
      lse: float32 [..., heads, m, 1], log-sum-exp of their scores; any finite number for a query
        without keys.
      delta: float32 [..., heads, m, 1], sum over channels of do * o, less the gradient of lse.
    """

    q: jax.Array
    do: jax.Array
    lse: jax.Array
    delta: jax.Array


def accumulator(*arrays: jax.Array) -> jnp.dtype:
    """The dtype in which products and sums of these arrays accumulate."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def scores(q: jax.Array, k: jax.Array, scale: float) -> jax.Array:
    """Float32 affinities [..., heads, m, n]."""
    if scale != 1.0 and q.dtype == accumulator(q, k):  # of the queries there are fewer
        return _product(q * scale, k, 1, 1)
    s = _product(q, k, 1, 1)
    return s if scale == 1.0 else s * scale


def weigh(p: jax.Array, v: jax.Array) -> jax.Array:
    """p [..., heads, m, n] times v [..., heads or 1, n, dv]: float32 [..., heads, m, dv]."""
    o = _product(_fold_heads(p.astype(v.dtype), v.shape[-3]), v, 1, 0)
    return o.reshape(*p.shape[:-1], v.shape[-1])


def normalise(
    s: jax.Array, v: jax.Array, shape: tuple[int, int] | None = None
) -> tuple[jax.Array, jax.Array]:
    """Softmax over whole rows of scores, applied to the values.

    Args:
      s: scores [..., heads, m, n], or [..., heads, *queries, *keys] where `shape` is given.
      v: values [..., heads or 1, n, dv].
      shape: (m, n) if s has two axes for queries and two for keys.

    Returns:
      float32 output [..., heads, m, dv] and log-sum-exp [..., heads, m].
    """
    axes = -1 if shape is None else (-2, -1)
    top = s.max(axes, keepdims=True)
    p = jnp.exp(s - top)
    total = p.sum(axes, keepdims=True)
    # Keys of affinity minus infinity are keys: the output is NaN, its weight among others zero.
    lse = lax.select(top == HIDDEN, top, top + jnp.log(total))
    if shape is not None:
        p = p.reshape(*p.shape[:-4], *shape)
        total, lse = (x.reshape(*p.shape[:-1], 1) for x in (total, lse))
    return weigh(p, v) / total, lse[..., 0]


def start(q: jax.Array, v: jax.Array) -> OnlineSoftmax:
    """The state of `accumulate` for queries q before any key."""
    rows, dtype = (*q.shape[:-1], 1), accumulator(q, v)
    return OnlineSoftmax(
        top=jnp.full(rows, HIDDEN, dtype),
        total=jnp.zeros(rows, dtype),
        o=jnp.zeros((*q.shape[:-1], v.shape[-1]), dtype),
    )


def accumulate(state: OnlineSoftmax, s: jax.Array, v: jax.Array) -> OnlineSoftmax:
    """The state after one more tile of keys.

    Args:
      state: state before.
      s: scores of the tile [..., heads, m, n].
      v: its values [..., heads or 1, n, dv].
    """
    top = jnp.maximum(state.top, s.max(-1, keepdims=True))
    # Before the first key that takes part, differences of infinities would be NaN for ever.
    subtracted = jnp.where(top == HIDDEN, 0, top)
    p = jnp.exp(s - subtracted)
    old = jnp.exp(state.top - subtracted)
    return OnlineSoftmax(
        top, state.total * old + p.sum(-1, keepdims=True), state.o * old + weigh(p, v)
    )


def finish(state: OnlineSoftmax) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp as `normalise` returns them."""
    return state.o / state.total, (state.top + jnp.log(state.total))[..., 0]


def where_seen(o: jax.Array, lse: jax.Array, seen: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Outputs and log-sum-exps, with zeros and minus infinity for queries without keys.

    Args:
      o: outputs [..., dv].
      lse: log-sum-exps [..., 1].
      seen: which queries see any key, bool that broadcasts to lse; None if all do.
    """
    if seen is None:
        return o, lse
    return jnp.where(seen, o, 0), jnp.where(seen, lse, HIDDEN)


def query_tile(
    q: jax.Array, o: jax.Array, lse: jax.Array, do: jax.Array, dlse: jax.Array
) -> QueryTile:
    """What the backward pass needs to know of queries.

    Args:
      q: queries [..., dk].
      o: their outputs [..., dv].
      lse: log-sum-exps of their scores, float32 [..., 1]; minus infinity for queries without keys.
      do: gradient of o.
      dlse: gradient of lse.
    """
    dtype = accumulator(do, o)
    delta = sum_of_products(do.astype(dtype), o.astype(dtype)) - dlse.astype(dtype)
    # The probabilities of queries without keys are exp(-inf - 0): none of them is NaN.
    alone = lse == HIDDEN
    return QueryTile(q, do, jnp.where(alone, 0, lse), jnp.where(alone, 0, delta))


def backward(
    queries: QueryTile, k: jax.Array, v: jax.Array, s: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients of one tile from its recomputed scores, as in FlashAttention (Dao et al., 2022).

    Args:
      queries: the queries, the gradient of their output, and their sums.
      k: keys [..., heads, n, dk].
      v: values [..., heads or 1, n, dv].
      s: scores [..., heads, m, n], or [..., heads, *queries, *keys] with two axes for each.
      options: scale and block sizes.

    Returns:
      float32 dq, dk, dv shaped like q, k, v, and ds shaped like s, the gradient of the scores.
    """
    q, do, lse, delta = queries
    heads, scale = v.shape[-3], options.scale
    matrix = (*q.shape[:-1], k.shape[-2])
    rows = (*q.shape[:-1], 1) if s.shape == matrix else (*s.shape[:-2], 1, 1)
    p = jnp.exp(s - lse.reshape(rows))
    folded = _fold_heads(do, heads)
    dv = _transposed_product(
        _fold_heads(p.reshape(matrix).astype(do.dtype), heads), folded, options
    )
    dp = _product(folded, v, 1, 1).reshape(s.shape)
    ds = p * (dp - delta.reshape(rows))
    scaled = (ds * scale if scale != 1.0 else ds).reshape(matrix).astype(q.dtype)
    return _product(scaled, k, 1, 0), _transposed_product(scaled, q, options), dv, ds


def _product(a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
    """Batched product over one of the last two axes of each."""
    batch = tuple(range(a.ndim - 2))
    axes = (((a.ndim - 2 + contract_a,), (b.ndim - 2 + contract_b,)), (batch, batch))
    return lax.dot_general(a, b, axes, preferred_element_type=accumulator(a, b))


def _transposed_product(p: jax.Array, x: jax.Array, options: Options) -> jax.Array:
    """p^T x: [..., m, n], [..., m, d] -> [..., n, d]."""
    if not options.sizes.transpose_result:
        return _product(p, x, 0, 0)
    # The barrier keeps XLA from folding the transposition back into the product.
    return jnp.swapaxes(lax.optimization_barrier(_product(x, p, 0, 0)), -1, -2)


def _fold_heads(x: jax.Array, heads: int) -> jax.Array:
    """Folds the heads of [..., heads, m, c] that share one v into its rows."""
    return x.reshape(*x.shape[:-3], heads, -1, x.shape[-1])
