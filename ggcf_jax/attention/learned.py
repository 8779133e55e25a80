"""Attention over LEARNED graphs: FULL attention with log E added to the affinities.

log E is a table over the (2h-1)(2w-1) offsets. Chunks are whole rows of the map, so the bias of a
chunk pair is a few rows of the table, each spread into a matrix with constant diagonals.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import full, pruning
from ggcf_jax.attention.block_sizes import even


def _spread(rows, w):
    """Rows over dx in (-w, w) as matrices: [r, 2w-1] -> [r, w, w], entry (x, x') for dx = x - x'.

    A repeated row, read with a stride one shorter than its period, moves by one each time: slices
    and reshapes only, no gather.
    """
    r = rows.shape[0]
    period = jnp.pad(rows[:, ::-1], ((0, 0), (0, 1)))
    flat = jnp.broadcast_to(period[:, None], (r, w, 2 * w)).reshape(r, 2 * w * w)
    flat = flat[:, w - 1 : w - 1 + w * (2 * w - 1)]
    return flat.reshape(r, w, 2 * w - 1)[:, :, :w]


@dataclasses.dataclass(frozen=True)
class OffsetBias:
    """Makes the bias of pairs of chunks from the table that `pad` gives.

    Attributes:
      h, w: size of the map of keys.
      query_rows, key_rows: rows of the map in a chunk of queries and of keys.
    """

    h: int
    w: int
    query_rows: int
    key_rows: int

    @property
    def chunks(self):
        return full.Chunks(self.query_rows * self.w, self.key_rows * self.w)

    def pad(self, table):
        """Rows for the offsets that only padded positions have, around [2h-1, 2w-1]."""
        return jnp.pad(table, ((self.key_rows - 1, self.query_rows - 1), (0, 0)))

    def _row(self, i, t):
        # Smallest dy of the pair: first query row less last key row; dy = 1 - h is row key_rows-1.
        lowest = i * self.query_rows - (t * self.key_rows + self.key_rows - 1)
        return lowest + self.h - 1 + self.key_rows - 1

    def cut(self, table, i, t):
        """The rows of the table that chunk pair (i, t) needs."""
        return lax.dynamic_slice_in_dim(table, self._row(i, t), self.query_rows + self.key_rows - 1)

    def add(self, table, piece, i, t):
        """The table with `piece` added where `cut` took it."""
        piece = piece + self.cut(table, i, t)
        return lax.dynamic_update_slice_in_dim(table, piece, self._row(i, t), axis=0)

    def expand(self, piece):
        """The rows of a pair as its bias [queries, keys]."""
        near = _spread(piece[::-1], self.w)  # by descending dy: ascending key row
        rows = [
            near[self.query_rows - 1 - y : self.query_rows - 1 - y + self.key_rows]
            for y in range(self.query_rows)
        ]
        return jnp.swapaxes(jnp.stack(rows), 1, 2).reshape(self.chunks.queries, self.chunks.keys)


def offset_bias(rows, h, w, batch, tiles):
    """For `rows` rows of queries: chunks of whole rows of about the size that `full` chooses."""
    size = full.chunks(rows * w, batch, tiles, h * w)
    return OffsetBias(h, w, even(rows, max(1, size.queries // w)), even(h, max(1, size.keys // w)))


def attend(q, k, v, table, scale, tiles):
    """Attention with weights E * exp(scale * q . k).

    Args:
      q: [b, rows, w, heads, dk]; k: [b, h, w, heads, dk]; v: [b, h, w, heads or 1, dv].
      table: log E, float32 [rows + h - 1, 2w-1], entry (dy + h - 1, dx + w - 1).
    """
    b, rows, w, heads, _ = q.shape
    bias = offset_bias(rows, k.shape[1], w, b * heads, tiles)
    flat = (full.as_rows(x) for x in (q, k, v))
    return full.as_map(
        full.attend_rows(*flat, bias.pad(table), scale, bias.chunks, bias, tiles), rows, w
    )


def attend_pruned(q, k, v, table, scale, tiles, prune):
    """LEARNED attention with Context Pruning, forward only; arguments as for `attend`."""
    h, w = q.shape[1:3]
    turned = table[::-1, ::-1]

    def bias(i):
        def one(at):  # log E of one query to the whole map is a window of the turned table
            return lax.dynamic_slice(turned, (h - 1 - at // w, w - 1 - at % w), (h, w)).reshape(-1)

        return lax.map(one, i)

    rows = (full.as_rows(x) for x in (q, k, v))
    positions = jnp.arange(h * w)
    return full.as_map(pruning.attend_rows(*rows, positions, prune, scale, tiles, bias), h, w)
