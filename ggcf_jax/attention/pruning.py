"""Context Pruning (section 3.4): which neighbours of a query are kept.

The kept neighbours are the N of largest priority: for 'top' the affinity theta_i . phi_j (the
paper's A, without the weight E of a learned graph), compared in float32; for 'random' a hash of
(key, head, i, j). Exactly N are kept: among equal priorities those that come first in
row-major order of the map. A query with at most N neighbours keeps them all.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import softmax, top_k, top_k_bits, varying
from ggcf_jax.attention.block_sizes import Options, even


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prune:
    """How many neighbours each query keeps, and by what priority.

    Attributes:
      keep: number of neighbours to keep per query; None where the drop rate decides.
      drop_per_10000: share of each query's neighbours to drop, in units of 1/10000; or None.
      seed: uint32 [2] for random priorities, None for the affinities.
      width: width of the map, by which random priorities tell rows and columns of positions apart.
    """

    keep: int | None = dataclasses.field(metadata={'static': True})
    drop_per_10000: int | None = dataclasses.field(metadata={'static': True})
    seed: jax.Array | None
    width: int = dataclasses.field(default=1, metadata={'static': True})

    def of_head(self, head: int) -> Self:
        """The same for heads from the `head`-th on: random priorities differ from head to head."""
        if self.seed is None or head == 0:
            return self
        return dataclasses.replace(self, seed=_mix(self.seed + jnp.uint32(head)))

    def kept(self, neighbours: jax.Array) -> jax.Array:
        """Number of neighbours to keep, at least 1, of integer numbers of neighbours."""
        if self.keep is not None:
            return jnp.minimum(neighbours, self.keep)
        # In integers: a rate of 0.7 of 10 neighbours drops 7 on every platform. The quotient and
        # the remainder apart, so that int32 holds the products.
        whole, rest = neighbours // 10000, neighbours % 10000
        rate = self.drop_per_10000 or 0
        dropped = whole * rate + rest * rate // 10000
        return jnp.maximum(neighbours - dropped, 1)

    def keeps_all(self, max_degree: int) -> bool:
        """Whether no query with at most `max_degree` neighbours loses any."""
        if self.keep is not None:
            return max_degree <= self.keep
        return max_degree * (self.drop_per_10000 or 0) < 10000


def random_priority(
    seed: jax.Array, width: int, heads: int, i: jax.Array, j: jax.Array
) -> jax.Array:
    """Priorities of pairs of row-major positions, a function of their rows and columns alone.

    They depend on no tile, nor on the batch or the size of the map: an image keeps the same
    neighbours wherever it is padded.

    Args:
      seed: uint32 [2].
      width: width of the map.
      heads: number of heads, each with draws of its own.
      i: positions of the queries, int32 [..., m].
      j: positions of the keys, int32 [..., n] with the leading axes of i.

    Returns:
      int32 [..., 1, heads, m, n].
    """
    head = _mix(_mix(jnp.arange(heads, dtype=jnp.uint32) + seed[0]) + seed[1])
    i, j = ((at // width * 2**15 + at % width).astype(jnp.uint32) for at in (i, j))
    row = _mix(head[:, None] ^ i[..., None, None, :])
    column = j[..., None, None, None, :] * jnp.uint32(0x9E3779B1)
    priority = lax.bitcast_convert_type(_mix(row[..., None] ^ column), jnp.int32)
    # The search needs room below and above.
    return jnp.clip(priority, -(2**31) + 2, 2**31 - 3)


def dense_mask(s: jax.Array, mask: jax.Array, prune: Prune) -> jax.Array:
    """The mask of the kept pairs by a full sort, for the reference.

    Args:
      s: affinities, float32 [b, heads, n, n].
      mask: edges of the graph, bool that broadcasts to s.
      prune: how many neighbours are kept, by what priority.

    Returns:
      Bool [b, heads, n, n].
    """
    _, heads, n, _ = s.shape
    priority = s.astype(jnp.float32)
    if prune.seed is not None:
        at = jnp.arange(n)
        priority = random_priority(prune.seed, prune.width, heads, at, at)
    # Rank by (neighbour first, priority down, position up); argsort is stable.
    lowest = jnp.iinfo(jnp.int32).min if priority.dtype == jnp.int32 else -jnp.inf
    order = jnp.argsort(jnp.where(mask, priority, lowest), axis=-1, descending=True, stable=True)
    rank = jnp.argsort(order, axis=-1)
    kept = prune.kept(mask.sum(-1, dtype=jnp.int32))
    return mask & ((rank < kept[..., None]) | _has_nan(s, mask))


def select(
    s: jax.Array,
    mask: jax.Array | None,
    prune: Prune,
    i: jax.Array,
    j: jax.Array,
    *,
    few_steps: bool,
) -> jax.Array:
    """The mask of the kept pairs of one tile.

    Args:
      s: affinities, float32 [..., batch, heads, m, n].
      mask: None if all pairs are neighbours, or bool that broadcasts to s.
      prune: how many neighbours are kept, by what priority.
      i: row-major positions of the queries, int32 [..., m].
      j: row-major positions of the keys, int32 [..., n].
      few_steps: `BlockSizes.few_steps`.

    Returns:
      Bool, shaped like s. A query with a NaN among its affinities keeps all neighbours, so that
      its output is NaN as without pruning.
    """
    priority = s.astype(jnp.float32)
    if prune.seed is not None:
        priority = random_priority(prune.seed, prune.width, s.shape[-3], i, j)
        priority = jnp.broadcast_to(priority, s.shape)
    largest = top_k_bits.largest if few_steps else top_k.largest
    kept = largest(priority, mask, prune.kept) | _has_nan(s, mask)
    return kept if mask is None else kept & mask


def attend_rows(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    position: jax.Array,
    prune: Prune,
    options: Options,
    bias: Callable[[jax.Array], jax.Array] | None = None,
    edges: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Dense attention with pruning: chunks of queries against all keys; forward only.

    Args:
      q: queries [..., b, heads, n, dk].
      k: keys [..., b, heads, n, dk].
      v: values [..., b, heads or 1, n, dv].
      valid: which keys take part, bool [..., b, 1, n, 1]; None for all.
      position: row-major positions of the n in the map, int32 [..., n].
      prune: how many neighbours are kept, by what priority.
      options: scale and block sizes.
      bias: None, or a function of the positions of m queries to log E, [m, n].
      edges: None where all see all, or a function of the positions of m queries to their
        neighbours, bool [1 or b, 1, m, n].

    Returns:
      Output [..., b, heads, n, dv] in the dtype of v, log-sum-exp [..., b, heads, n, 1] float32.
    """
    n = q.shape[-2]
    # Thin chunks make slow products: at least 64 queries.
    elements = options.sizes.pruned_in(math.prod(q.shape[:-4]), math.prod(q.shape[-4:-2]))
    size = even(n, max(64, elements // n))
    last = -(-n // size) - 1
    mask = None if valid is None else jnp.swapaxes(valid, -1, -2)
    seen = None if valid is None else valid.any(-2, keepdims=True)

    def chunk(carry: tuple, t: jax.Array) -> tuple[tuple, None]:
        # The last chunk starts early enough to be full: those rows are computed twice, equally.
        start = jnp.minimum(t * size, n - size)
        qt = lax.dynamic_slice_in_dim(q, start, size, axis=q.ndim - 2)
        s = softmax.scores(qt, k, options.scale)
        i = lax.dynamic_slice_in_dim(position, start, size, axis=position.ndim - 1)
        own, any_key = mask, seen
        if edges is not None:
            own = edges(i) if mask is None else edges(i) & mask
            any_key = own.any(-1, keepdims=True)
        kept = select(s, own, prune, i, position, few_steps=options.sizes.few_steps)
        if bias is not None:
            s = s + bias(i)
        o, lse = softmax.normalise(jnp.where(kept, s, softmax.HIDDEN), v)
        new = softmax.where_seen(o.astype(v.dtype), lse[..., None], any_key)
        return tuple(
            lax.dynamic_update_slice_in_dim(x, y, start, axis=x.ndim - 2)
            for x, y in zip(carry, new)
        ), None

    arrays = [x for x in (q, k, v, valid, position) if x is not None]
    carry = (
        varying.zeros((*q.shape[:-1], v.shape[-1]), v.dtype, *arrays),
        varying.zeros((*q.shape[:-1], 1), softmax.accumulator(q, k), *arrays),
    )
    return lax.scan(chunk, carry, jnp.arange(last + 1))[0]


def _has_nan(s: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Whether any neighbour of a query has a NaN for its affinity: bool [..., heads, m, 1]."""
    nan = jnp.isnan(s)
    return (nan if mask is None else nan & mask).any(-1, keepdims=True)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every output bit depends on every input bit (murmur3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
