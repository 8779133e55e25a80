"""Attention over CROSS graphs with Context Pruning; without, they are `union`s."""

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import layout, pruning, softmax, varying
from ggcf_jax.attention.block_sizes import Options, even
from ggcf_jax.attention.graphs import Cross
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune


def attend_pruned(inputs: Inputs, graph: Cross, options: Options, prune: Prune) -> Partial:
    """CROSS attention with Context Pruning; `engine.AttendPruned`.

    One row of queries after the other, or in few steps some rows at a time. The affinities of a
    query stand in the row-major order of its neighbours while it chooses among them: its column
    above, its row, its column below.
    """
    q, k, v, valid, _, _ = inputs
    b, h, w, heads, _ = q.shape
    column_keys, column_values = (layout.columns_first(x) for x in (k, v))
    positions = jnp.arange(h * w, dtype=jnp.int32).reshape(h, w)

    def row(y: jax.Array) -> tuple[jax.Array, jax.Array]:
        qt, kt, vt = (jnp.swapaxes(_row(x, y), 1, 2) for x in (q, k, v))  # [b, heads, w, c]
        queries = jnp.moveaxis(qt, 2, 0)[..., None, :]  # [w, b, heads, 1, dk]
        along = jnp.moveaxis(softmax.scores(qt, kt, options.scale), 2, 0)[..., None, :]
        across = softmax.scores(queries, column_keys, options.scale)
        order, back = _orders(y, h, w)
        s = jnp.concatenate([across, along], -1)[..., order]  # [w, b, heads, 1, h + w - 1]
        j = jnp.concatenate([positions.T, jnp.broadcast_to(_row(positions, y, 0), (w, w))], -1)
        j = j[:, order]
        i = _row(positions, y, 0)[:, None]
        mask = None
        if valid is not None:
            inside = [
                jnp.moveaxis(valid, 2, 0),
                jnp.broadcast_to(_row(valid, y)[None], (w, b, w)),
            ]
            mask = jnp.concatenate(inside, -1)[..., order][:, :, None, None]
        kept = pruning.select(s, mask, prune, i, j, few_steps=options.sizes.few_steps)
        s = jnp.where(kept, s, softmax.HIDDEN)
        top = s.max(-1, keepdims=True)
        p = jnp.exp(s - top)
        total = p.sum(-1, keepdims=True)
        p_across, p_along = jnp.split(p[..., back], [h], -1)
        p_across = jnp.where(jnp.arange(h) == y, 0, p_across)  # the query, which its row has
        o_along = softmax.weigh(jnp.moveaxis(p_along[..., 0, :], 0, 2), vt)
        o = softmax.weigh(p_across, column_values) + jnp.moveaxis(o_along, 2, 0)[..., None, :]
        seen = None if mask is None else mask.any(-1, keepdims=True)
        lse = jnp.where(top == softmax.HIDDEN, softmax.HIDDEN, top + jnp.log(total))
        return softmax.where_seen((o / total).astype(v.dtype), lse, seen)

    if options.sizes.few_steps:
        elements = options.sizes.pruned_in(1, b * heads)
        size = even(h, max(1, elements // (w * (h + w - 1))))
        found = lax.map(row, jnp.arange(h), batch_size=size)
        o, lse = (x[..., 0, :].transpose(2, 0, 1, 3, 4) for x in found)
        return Partial(o, lse[..., 0])

    def put(carry: tuple, y: jax.Array) -> tuple[tuple, None]:
        return tuple(
            lax.dynamic_update_slice_in_dim(x, jnp.moveaxis(part[..., 0, :], 0, 1)[:, None], y, 1)
            for x, part in zip(carry, row(y))
        ), None

    arrays = [x for x in inputs if x is not None]
    carry = (
        varying.zeros((b, h, w, heads, v.shape[-1]), v.dtype, *arrays),
        varying.zeros((b, h, w, heads, 1), softmax.accumulator(q, k), *arrays),
    )
    (o, lse), _ = lax.scan(put, carry, jnp.arange(h))
    return Partial(o, lse[..., 0])


def _row(x: jax.Array, y: jax.Array, axis: int = 1) -> jax.Array:
    """Row y of a map, without the axis of rows."""
    return lax.dynamic_index_in_dim(x, y, axis, keepdims=False)


def _orders(y: jax.Array, h: int, w: int) -> tuple[jax.Array, jax.Array]:
    """The row-major order of the neighbours of a query in row y, and the way back.

    Returns:
      int32 [h + w - 1], which of the h neighbours in its column and the w in its row, one behind
      the other, come when; and int32 [h + w], the places of these. The query, which is among both,
      has the place of the row.
    """
    at, column = jnp.arange(h + w - 1), jnp.arange(h)
    order = jnp.where(at < y, at, jnp.where(at < y + w, h + at - y, at - w + 1))
    place = jnp.where(column <= y, column, column + w - 1)
    return order, jnp.concatenate([place, y + jnp.arange(w)])
