"""A bias of the scores by the offset of key and query: one table for each head.

    score(i, j) = scale * q_i . k_j + bias[(y_i - y_j) / s_y + R, (x_i - x_j) / s_x + C]

for a table [2 R + 1, 2 C + 1], s being the graph's `steps`: the relative position bias of Swin (Liu
et al., 2021, arXiv:2103.14030, section 3.2) and of NATTEN. Log E of a LEARNED graph is such a
table. Engines never make the bias of all pairs: that of a tile of queries and a tile of keys is a
piece of the table with its diagonals spread out.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import ArrayLike

from ggcf_jax.attention.block_sizes import Options, even
from ggcf_jax.attention.flash import Chunks, Schedule, attend_rows, choose_chunks
from ggcf_jax.attention.graph import computed
from ggcf_jax.attention.graphs import Graph, SeparableGraph
from ggcf_jax.attention.layout import as_map, as_rows, sums_as_map, valid_as_rows
from ggcf_jax.attention.partial import Inputs, Partial

Size2d = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class OffsetBias:
    """Makes the bias of pairs of chunks from the table that `pad` gives; a `flash.Bias`.

    Chunks are whole rows of the map.

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
        """Rows for the offsets that only padded positions have, around [heads, 2h-1, 2w-1]."""
        return jnp.pad(table, ((0, 0), (self.key_rows - 1, self.query_rows - 1), (0, 0)))

    def cut(self, table: jax.Array, i: jax.Array | int, t: jax.Array | int) -> jax.Array:
        """The rows of the table that chunk pair (i, t) needs."""
        rows = self.query_rows + self.key_rows - 1
        return lax.dynamic_slice_in_dim(table, self._row(i, t), rows, axis=1)

    def add(
        self, table: jax.Array, piece: jax.Array, i: jax.Array | int, t: jax.Array | int
    ) -> jax.Array:
        """The table with `piece` added where `cut` took it."""
        piece = piece + self.cut(table, i, t)
        return lax.dynamic_update_slice_in_dim(table, piece, self._row(i, t), axis=1)

    def expand(self, piece: jax.Array) -> jax.Array:
        """The rows of a pair as its bias [heads, queries, keys]."""
        bias = spread(piece, (self.query_rows, self.w), (self.key_rows, self.w))
        return bias.reshape(-1, self.chunks.queries, self.chunks.keys)

    def _row(self, i: jax.Array | int, t: jax.Array | int) -> jax.Array | int:
        # Smallest dy of the pair: first query row less last key row; dy = 1 - h is row key_rows-1.
        lowest = i * self.query_rows - (t * self.key_rows + self.key_rows - 1)
        return lowest + self.h - 1 + self.key_rows - 1


def offset_bias(rows: int, h: int, w: int, batch: int, options: Options) -> OffsetBias:
    """For `rows` rows of queries: chunks of whole rows of about the size that `flash` chooses.

    Args:
      rows: number of rows of queries.
      h: number of rows of keys.
      w: width of the map.
      batch: number of sequences, batch elements times heads, over all devices.
      options: scale and block sizes.
    """
    chunks = choose_chunks(rows * w, batch, options, h * w)
    query_rows = even(rows, max(1, chunks.queries // w))
    return OffsetBias(h, w, query_rows, even(h, max(1, chunks.keys // w)))


def attend_table(inputs: Inputs, table: jax.Array, options: Options) -> Partial:
    """Attention of all positions with a bias of the scores.

    Args:
      inputs: q [b, rows, w, heads, dk] of some of the rows of the map, the others of all h.
      table: float32 [heads or 1, rows + h - 1, 2w-1], entry (dy + h - 1, dx + w - 1) for the
        offset (dy, dx), counted from the first of those rows.
      options: scale and block sizes.
    """
    q, k, v, valid, _, _ = inputs
    b, rows, w, heads, _ = q.shape
    bias = offset_bias(rows, k.shape[1], w, b * heads, options)
    schedule = Schedule(bias.chunks, options, bias)
    q, k, v = (as_rows(x) for x in (q, k, v))
    o, lse = attend_rows(q, k, v, valid_as_rows(valid), bias.pad(table), schedule)
    return Partial(as_map(o, rows, w), sums_as_map(lse, rows, w))


def spread(piece: jax.Array, queries: Size2d, keys: Size2d) -> jax.Array:
    """The bias of a tile of queries and a tile of keys from the offsets between them.

    Slices and reshapes only, no gather: a repeated row, read with a stride one shorter than its
    period, moves by one each time.

    Args:
      piece: [..., th + wh - 1, tw + ww - 1], entry (dy + wh - 1, dx + ww - 1) for the offset
        (dy, dx) of a query and a key inside their tiles.
      queries: height and width th, tw of the tile of queries.
      keys: height and width wh, ww of the tile of keys.

    Returns:
      [..., th, tw, wh, ww].
    """
    (th, tw), (wh, ww) = queries, keys
    near = _diagonals(piece[..., ::-1, :], tw, ww)  # by descending dy: ascending key row
    rows = [near[..., th - 1 - y : th - 1 - y + wh, :, :] for y in range(th)]
    return jnp.moveaxis(jnp.stack(rows, axis=-4), -3, -2)


def of_size(table: jax.Array, h: int, w: int) -> jax.Array:
    """The middle [heads, 2h-1, 2w-1] of a table; an axis that is shorter gets zeros around it."""
    for axis, n in ((1, h), (2, w)):
        radius = table.shape[axis] // 2
        less = radius - (n - 1)
        if less > 0:
            table = lax.slice_in_dim(table, less, less + 2 * n - 1, axis=axis)
        elif less < 0:
            widths = [(0, 0)] * 3
            widths[axis] = (-less, -less)
            table = jnp.pad(table, widths)
    return table


def of_query(
    table: jax.Array, graph: Graph, y: jax.Array, x: jax.Array, h: int, w: int
) -> jax.Array:
    """The bias of the query at row y and column x: [heads, h, w], 0 where no offset has it."""
    return _at(table, graph, y - jnp.arange(h)[:, None], x - jnp.arange(w)[None])


def of_pairs(table: jax.Array, graph: Graph, h: int, w: int) -> jax.Array:
    """The bias of all pairs of positions of an h x w map in row-major order: [heads, n, n]."""
    y, x = jnp.divmod(jnp.arange(h * w), w)
    return _at(table, graph, y[:, None] - y, x[:, None] - x)


def reach(graph: Graph, h: int, w: int) -> Size2d:
    """The largest offsets between neighbours on an h x w map, in the graph's steps."""
    if not isinstance(graph, SeparableGraph):
        return -(-h // graph.steps[0]) - 1, -(-w // graph.steps[1]) - 1
    most = []
    for axis, n in enumerate((h, w)):
        i = np.arange(n)

        def edges(axis: int = axis, n: int = n) -> ArrayLike:
            return graph.axis_edges(axis, jnp.arange(n)[:, None], jnp.arange(n), n)

        offsets = np.abs(i[:, None] - i)[np.broadcast_to(computed(edges), (n, n))]
        most.append(int(offsets.max(initial=0)) // graph.steps[axis])
    return most[0], most[1]


def _at(table: jax.Array, graph: Graph, dy: jax.Array, dx: jax.Array) -> jax.Array:
    """The table at offsets that broadcast."""
    at, inside = [], jnp.asarray(True)
    for n, step, offset in zip(table.shape[1:], graph.steps, (dy, dx)):
        index = offset // step + n // 2
        inside = inside & (index >= 0) & (index < n)
        at.append(jnp.clip(index, 0, n - 1))
    return jnp.where(inside, table[:, at[0], at[1]], 0)


def _diagonals(rows: jax.Array, m: int, n: int) -> jax.Array:
    """Rows over dx in (-n, m) as matrices: [..., m + n - 1] -> [..., m, n], (x, x') for x - x'."""
    lead = rows.shape[:-1]
    period = jnp.pad(rows[..., ::-1], [(0, 0)] * len(lead) + [(0, 1)])
    flat = jnp.broadcast_to(period[..., None, :], (*lead, m, m + n)).reshape(*lead, m * (m + n))
    flat = flat[..., m - 1 : m - 1 + m * (m + n - 1)]
    return flat.reshape(*lead, m, m + n - 1)[..., :n]
