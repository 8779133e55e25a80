"""Context Pruning (section 3.4): which neighbours of a query are kept.

The kept neighbours are the N of largest priority: for 'top' the affinity theta_i . phi_j (the
paper's A, without the weight E of a learned graph), for 'random' a hash of (key, batch, head, i,
j). Exactly N are kept: among equal priorities those that come first in row-major order of the map.
A query with at most N neighbours keeps them all.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import softmax, top_k
from ggcf_jax.attention.block_sizes import even


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prune:
    """How many neighbours each query keeps, and by what priority.

    Attributes:
      keep: N, or None where the drop rate says it.
      drop_per_10000: the drop rate in units of 1/10000, or None.
      seed: uint32 [2] for random priorities, None for the affinities.
    """

    keep: int | None = dataclasses.field(metadata={'static': True})
    drop_per_10000: int | None = dataclasses.field(metadata={'static': True})
    seed: jax.Array | None

    def kept(self, neighbours):
        """Neighbours that are kept of so many; integers or an array of them, at least one."""
        if self.keep is not None:
            return jnp.minimum(neighbours, self.keep)
        # In integers: a rate of 0.7 of 10 neighbours drops 7 on every platform. The quotient and
        # the remainder apart, so that int32 holds the products.
        whole, rest = neighbours // 10000, neighbours % 10000
        dropped = whole * self.drop_per_10000 + rest * self.drop_per_10000 // 10000
        return jnp.maximum(neighbours - dropped, 1)

    def keeps_all(self, neighbours):
        """Whether nothing is dropped of so many neighbours, a Python integer, or of fewer."""
        if self.keep is not None:
            return neighbours <= self.keep
        return neighbours * self.drop_per_10000 < 10000


def _mix(x):
    """A bijection of uint32 in which every output bit depends on every input bit (murmur3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def random_priority(seed, batch, heads, i, j):
    """Priorities of pairs of row-major positions, a function of the pair, not of its tile.

    Args:
      seed: uint32 [2]; i, j: int32 [..., m] and [..., n] with equal leading axes.

    Returns:
      int32 [..., batch, heads, m, n].
    """
    head = _mix(_mix(jnp.arange(batch * heads, dtype=jnp.uint32) + seed[0]) + seed[1])
    i = i.astype(jnp.uint32)[..., None, None, :]
    row = _mix(head.reshape(batch, heads, 1) ^ i)
    column = j.astype(jnp.uint32)[..., None, None, None, :] * jnp.uint32(0x9E3779B1)
    priority = lax.bitcast_convert_type(_mix(row[..., None] ^ column), jnp.int32)
    # The search needs room below and above.
    return jnp.clip(priority, -(2**31) + 2, 2**31 - 3)


def dense_mask(s, mask, prune):
    """The mask of the kept pairs by a full sort, for the reference.

    Args:
      s: affinities, float32 [b, heads, n, n]; mask: bool [n, n], the graph; prune: `Prune`.

    Returns:
      Bool [b, heads, n, n].
    """
    b, heads, n, _ = s.shape
    priority = s
    if prune.seed is not None:
        at = jnp.arange(n)
        priority = random_priority(prune.seed, b, heads, at, at)
    # Rank by (neighbour first, priority down, position up); argsort is stable.
    lowest = jnp.iinfo(jnp.int32).min if priority.dtype == jnp.int32 else -jnp.inf
    order = jnp.argsort(jnp.where(mask, priority, lowest), axis=-1, descending=True, stable=True)
    rank = jnp.argsort(order, axis=-1)
    kept = prune.kept(mask.sum(-1, dtype=jnp.int32))
    return mask & (rank < kept[:, None])


def select(s, mask, prune, batch, i, j):
    """The mask of the kept pairs of one tile.

    Args:
      s: affinities, float32 [..., batch, heads, m, n].
      mask: None where all pairs are neighbours, or bool that broadcasts to s.
      prune: `Prune`; batch: size of that axis.
      i, j: row-major positions of the queries and keys, int32 [..., m] and [..., n].

    Returns:
      Bool, shaped like s.
    """
    if prune.seed is not None:
        s = random_priority(prune.seed, batch, s.shape[-3], i, j)
    return top_k.largest(s, mask, prune.kept)


def attend_rows(q, k, v, position, prune, scale, tiles, bias=None):
    """Dense attention with pruning: chunks of queries against all keys; forward only.

    Args:
      q, k: [..., b, heads, n, dk]; v: [..., b, heads or 1, n, dv].
      position: int32 [..., n], row-major positions of the n in the map.
      prune: `Prune`; scale: factor of the affinities.
      bias: None, or a function of the positions of m queries to log E, [m, n].

    Returns:
      [..., b, heads, n, dv] in the dtype of v.
    """
    n = q.shape[-2]
    # Thin chunks make slow products: at least 64 queries.
    rows = tiles.share(math.prod(q.shape[:-2]))
    size = even(n, max(64, tiles.pruned // (n * rows)))
    last = -(-n // size) - 1

    def chunk(out, t):
        # The last chunk starts early enough to be full: those rows are computed twice, equally.
        start = jnp.minimum(t * size, n - size)
        s = softmax.scores(lax.dynamic_slice_in_dim(q, start, size, axis=q.ndim - 2), k, scale)
        i = lax.dynamic_slice_in_dim(position, start, size, axis=position.ndim - 1)
        kept = select(s, None, prune, q.shape[-4], i, position)
        if bias is not None:
            s = s + bias(i)
        o, _ = softmax.normalise(jnp.where(kept, s, softmax.LOWEST), v)
        o = o.astype(v.dtype)
        return lax.dynamic_update_slice_in_dim(out, o, start, axis=out.ndim - 2), None

    out = jnp.zeros((*q.shape[:-1], v.shape[-1]), v.dtype)
    return lax.scan(chunk, out, jnp.arange(last + 1))[0]
