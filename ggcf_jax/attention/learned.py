"""Attention over LEARNED graphs: FULL attention with log E added to the affinities.

log E is a table over the (2h-1)(2w-1) offsets. Chunks are whole rows of the map, so the bias of a
chunk pair is a few rows of the table, each spread into a matrix with constant diagonals.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import flash, pruning
from ggcf_jax.attention.block_sizes import Options, even
from ggcf_jax.attention.flash import Chunks, Schedule
from ggcf_jax.attention.graphs import Learned
from ggcf_jax.attention.layout import as_map, as_rows, sums_as_map, valid_as_rows
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune


@dataclasses.dataclass(frozen=True)
class OffsetBias:
    """Makes the bias of pairs of chunks from the table that `pad` gives; a `flash.Bias`.

    Attributes:
      h: height of the map of keys.
      w: width of the map.
      query_rows: number of rows of the map in a chunk of queries.
      key_rows: number of rows of the map in a chunk of keys.
    """

    h: int
    w: int
    query_rows: int
    key_rows: int

    @property
    def chunks(self) -> Chunks:
        """The chunk lengths in positions."""
        return Chunks(self.query_rows * self.w, self.key_rows * self.w)

    def pad(self, table: jax.Array) -> jax.Array:
        """Rows for the offsets that only padded positions have, around [2h-1, 2w-1]."""
        return jnp.pad(table, ((self.key_rows - 1, self.query_rows - 1), (0, 0)))

    def cut(self, table: jax.Array, i: jax.Array | int, t: jax.Array | int) -> jax.Array:
        """The rows of the table that chunk pair (i, t) needs."""
        return lax.dynamic_slice_in_dim(table, self._row(i, t), self.query_rows + self.key_rows - 1)

    def add(
        self, table: jax.Array, piece: jax.Array, i: jax.Array | int, t: jax.Array | int
    ) -> jax.Array:
        """The table with `piece` added where `cut` took it."""
        piece = piece + self.cut(table, i, t)
        return lax.dynamic_update_slice_in_dim(table, piece, self._row(i, t), axis=0)

    def expand(self, piece: jax.Array) -> jax.Array:
        """The rows of a pair as its bias [queries, keys]."""
        near = _spread(piece[::-1], self.w)  # by descending dy: ascending key row
        rows = [
            near[self.query_rows - 1 - y : self.query_rows - 1 - y + self.key_rows]
            for y in range(self.query_rows)
        ]
        return jnp.swapaxes(jnp.stack(rows), 1, 2).reshape(self.chunks.queries, self.chunks.keys)

    def _row(self, i: jax.Array | int, t: jax.Array | int) -> jax.Array | int:
        # Smallest dy of the pair: first query row less last key row; dy = 1 - h is row key_rows-1.
        lowest = i * self.query_rows - (t * self.key_rows + self.key_rows - 1)
        return lowest + self.h - 1 + self.key_rows - 1


def attend(inputs: Inputs, graph: Learned, options: Options) -> Partial:
    """LEARNED attention; `engine.Attend`."""
    return attend_table(inputs, graph.log_table(*inputs.q.shape[1:3]), options)


def attend_table(inputs: Inputs, table: jax.Array, options: Options) -> Partial:
    """Attention with weights E * exp(scale * q . k).

    Args:
      inputs: q [b, rows, w, heads, dk] of some of the rows of the map, the others of all h.
      table: log E, float32 [rows + h - 1, 2w-1], entry (dy + h - 1, dx + w - 1).
      options: scale and block sizes.
    """
    q, k, v, valid = inputs
    b, rows, w, heads, _ = q.shape
    bias = _offset_bias(rows, k.shape[1], w, b * heads, options)
    schedule = Schedule(bias.chunks, options, bias)
    q, k, v = (as_rows(x) for x in (q, k, v))
    o, lse = flash.attend_rows(q, k, v, valid_as_rows(valid), bias.pad(table), schedule)
    return Partial(as_map(o, rows, w), sums_as_map(lse, rows, w))


def attend_pruned(inputs: Inputs, graph: Learned, options: Options, prune: Prune) -> Partial:
    """LEARNED attention with Context Pruning; `engine.AttendPruned`."""
    q, k, v, valid = inputs
    h, w = q.shape[1:3]
    turned = graph.log_table(h, w)[::-1, ::-1]

    def bias(i: jax.Array) -> jax.Array:
        def one(at: jax.Array) -> jax.Array:
            # log E of one query to the whole map is a window of the turned table.
            return lax.dynamic_slice(turned, (h - 1 - at // w, w - 1 - at % w), (h, w)).reshape(-1)

        return lax.map(one, i)

    q, k, v = (as_rows(x) for x in (q, k, v))
    o, lse = pruning.attend_rows(
        q, k, v, valid_as_rows(valid), jnp.arange(h * w), prune, options, bias
    )
    return Partial(as_map(o, h, w), sums_as_map(lse, h, w))


def _offset_bias(rows: int, h: int, w: int, batch: int, options: Options) -> OffsetBias:
    """For `rows` rows of queries: chunks of whole rows of about the size that `flash` chooses."""
    chunks = flash.choose_chunks(rows * w, batch, options, h * w)
    query_rows = even(rows, max(1, chunks.queries // w))
    return OffsetBias(h, w, query_rows, even(h, max(1, chunks.keys // w)))


def _spread(rows: jax.Array, w: int) -> jax.Array:
    """Rows over dx in (-w, w) as matrices: [r, 2w-1] -> [r, w, w], entry (x, x') for dx = x - x'.

    A repeated row, read with a stride one shorter than its period, moves by one each time: slices
    and reshapes only, no gather.
    """
    r = rows.shape[0]
    period = jnp.pad(rows[:, ::-1], ((0, 0), (0, 1)))
    flat = jnp.broadcast_to(period[:, None], (r, w, 2 * w)).reshape(r, 2 * w * w)
    flat = flat[:, w - 1 : w - 1 + w * (2 * w - 1)]
    return flat.reshape(r, w, 2 * w - 1)[:, :, :w]
