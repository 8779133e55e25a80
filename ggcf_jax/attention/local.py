"""Attention over LOCAL graphs: tiles of queries against halo windows of keys.

A scan goes over the tiles, so that one tile's scores are alive. Tiles and windows are slices
clamped inside the map (a gather would make the partitioner collect the whole map, padding would
copy it); a mask makes windows exact. The last tile of an axis may overlap the one before it.
Dilated windows are `dilated`'s.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggcf_jax.attention import frame as frames
from ggcf_jax.attention import layout, position_bias, pruning, softmax, tpu_local, varying, windows
from ggcf_jax.attention.block_sizes import BlockSizes, Options
from ggcf_jax.attention.graphs import Local
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune
from ggcf_jax.attention.softmax import QueryTile

Size2d = tuple[int, int]


class _Corners(NamedTuple):
    """First row and column of each of some tiles: int32 [tiles] each."""

    y: jax.Array
    x: jax.Array


class _Ends(NamedTuple):
    """First position and end of rows and of columns: one for all images, or int32 [b] each."""

    rows: tuple
    columns: tuple


class _AxisTile(NamedTuple):
    """One tile along one axis: first query, first key of its window, length of the window."""

    query: int
    key: int
    window: int


@dataclasses.dataclass(frozen=True)
class WindowGroup:
    """The tiles whose windows have one shape.

    Attributes:
      window: height and width of the windows.
      corners: int32 [tiles, 4], row and column of the first query, then of the first key.
    """

    window: Size2d
    corners: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a map is cut into tiles of queries with their windows of keys.

    Attributes:
      graph: sizes and border rule.
      keys: height and width of the map of keys.
      tile: height and width of the tiles of queries.
      margin: number of rows that the map of keys has more than that of queries, above and below.
      framed: whether windows are moved inward from the border of a frame in the map of keys.
      groups: tiles by the shape of their windows.
    """

    graph: Local
    keys: Size2d
    tile: Size2d
    margin: int
    framed: bool
    groups: tuple[WindowGroup, ...]


@dataclasses.dataclass(frozen=True)
class _Offsets:
    """The bias of tiles whose windows have one shape.

    Attributes:
      table: [heads or 1, rows, columns], the bias by offset with so much zero around it that the
        pieces of all tiles lie inside; None without a bias.
      tile: height and width of the tiles of queries.
      window: height and width of the windows.
      margin: number of rows that the map of keys has more than that of queries above.
    """

    table: jax.Array | None
    tile: Size2d
    window: Size2d
    margin: int

    @classmethod
    def around(cls, bias: jax.Array | None, cut: Tiling, window: Size2d) -> '_Offsets':
        """The bias of one group of tiles."""
        if bias is not None:
            widths = [(t + n, t + n) for t, n in zip(cut.tile, window)]
            bias = jnp.pad(bias, ((0, 0), *widths))
        return cls(bias, cut.tile, window, cut.margin)

    def of(self, query: _Corners, key: _Corners) -> jax.Array | None:
        """The bias of some tiles [tiles, 1, heads or 1, *tile, *window]."""
        if self.table is None:
            return None
        pieces = [
            lax.dynamic_slice(self.table, corner, self._shape) for corner in self._each(query, key)
        ]
        return position_bias.spread(jnp.stack(pieces), self.tile, self.window)[:, None]

    def zeros(self, *like: jax.Array) -> jax.Array | None:
        """Zeros for `add`."""
        if self.table is None:
            return None
        return varying.zeros(self.table.shape, self.table.dtype, *like)

    def add(
        self, total: jax.Array | None, ds: jax.Array, query: _Corners, key: _Corners
    ) -> jax.Array | None:
        """The gradient of the table with that of some tiles' scores added, shaped like `of`."""
        if self.table is None or total is None:
            return None
        ds = ds.sum((1, 2), keepdims=True) if self.table.shape[0] == 1 else ds.sum(1, keepdims=True)
        pieces = varying.zeros((len(query.y), *self._shape), total.dtype, ds)
        spread = functools.partial(position_bias.spread, queries=self.tile, keys=self.window)
        (pieces,) = jax.vjp(spread, pieces)[1](ds[:, 0].astype(total.dtype))
        for corner, piece in zip(self._each(query, key), pieces):
            piece = piece + lax.dynamic_slice(total, corner, self._shape)
            total = lax.dynamic_update_slice(total, piece, corner)
        return total

    def inner(self, total: jax.Array) -> jax.Array:
        """What `add` has found for the bias without the zeros around it."""
        (th, tw), (wh, ww) = self.tile, self.window
        return total[:, th + wh : total.shape[1] - th - wh, tw + ww : total.shape[2] - tw - ww]

    @property
    def _shape(self) -> tuple[int, int, int]:
        assert self.table is not None
        rows, columns = (t + n - 1 for t, n in zip(self.tile, self.window))
        return self.table.shape[0], rows, columns

    def _each(self, query: _Corners, key: _Corners) -> list[tuple[jax.Array, ...]]:
        """Where the piece of one tile after another starts."""
        assert self.table is not None
        zero = jnp.zeros((), query.y.dtype)
        middle = [n // 2 for n in self.table.shape[1:]]
        y = query.y + self.margin - key.y - (self.window[0] - 1) + middle[0]
        x = query.x - key.x - (self.window[1] - 1) + middle[1]
        return [(zero, y[i], x[i]) for i in range(len(query.y))]


@functools.cache
def tiling(
    h: int, w: int, graph: Local, sizes: BlockSizes, margin: int = 0, *, framed: bool = False
) -> Tiling:
    """The tiling of h x w queries among h + 2 * margin rows of keys.

    Args:
      h, w: height and width of the map of queries.
      graph: sizes and border rule, not dilated.
      sizes: tile to aim at and number of different window lengths per axis.
      margin: number of additional rows of keys above and below.
      framed: whether shifted windows are moved inward from the border of a frame in the map.
    """
    size, shift = graph.sizes, graph.border == 'shift'
    # Where rows or columns end is not known here, if devices share them or images differ.
    open_rows, open_columns = framed or margin > 0, framed
    bh, bw = (_tile_length(*axis) for axis in zip((h, w), size, sizes.local))
    groups: dict[Size2d, list[tuple[int, ...]]] = {}
    for row in _axis(h, bh, size[0], sizes.windows, margin, shift, open_rows):
        for column in _axis(w, bw, size[1], sizes.windows, 0, shift, open_columns):
            corners = (row.query, column.query, row.key, column.key)
            groups.setdefault((row.window, column.window), []).append(corners)
    return Tiling(
        graph,
        (h + 2 * margin, w),
        (bh, bw),
        margin,
        framed,
        tuple(WindowGroup(window, np.array(c, np.int32)) for window, c in groups.items()),
    )


def attend(inputs: Inputs, graph: Local, options: Options) -> Partial:
    """LOCAL attention; `engine.Attend`."""
    return attend_rows(inputs, None, graph, options)


def attend_rows(
    inputs: Inputs, rows_of_map: jax.Array | None, graph: Local, options: Options
) -> Partial:
    """LOCAL attention of a block of rows to its surroundings.

    Args:
      inputs: q [b, h, w, heads, dk] and the others with h + 2 margin rows, equally many additional
        ones above and below.
      rows_of_map: int32 [2], first and end of the rows of keys that belong to the map; None for
        all of them.
      graph: sizes and border rule, not dilated.
      options: scale and block sizes.
    """
    if options.kernels == 'cudnn':
        return windows.attend(inputs, rows_of_map, graph, options)
    if options.kernels == 'pallas':
        return tpu_local.attend_rows(inputs, rows_of_map, graph, options)
    return _attend_rows(inputs, rows_of_map, graph, options)


def attend_pruned(
    inputs: Inputs,
    graph: Local,
    options: Options,
    prune: Prune,
    positions: jax.Array | None = None,
) -> Partial:
    """LOCAL attention with Context Pruning; `engine.AttendPruned`.

    Args:
      inputs: the arrays of the attention.
      graph: sizes and border rule, not dilated.
      options: scale and block sizes.
      prune: how many neighbours are kept, by what priority.
      positions: int32 [h, w], numbers of the positions where the map is a part of another one.
    """
    if options.kernels == 'pallas':
        return tpu_local.attend_pruned(inputs, graph, options, prune)
    if options.sizes.few_steps:
        return windows.attend_pruned(inputs, graph, options, prune, positions)
    v = inputs.v
    _, h, w, heads, _ = inputs.q.shape
    cut = tiling(h, w, graph, options.sizes, framed=inputs.frame is not None)
    ends = _ends(inputs, None)
    qm, km, vm, valid = _merged(inputs)
    carry = _empty(inputs)
    for group in cut.groups:

        def step(carry: tuple, at: jax.Array, group: WindowGroup = group) -> tuple:
            query, key = _corners(at)
            qt = _take(qm, query, cut.tile, heads)
            kt = _take(km, key, group.window, heads)
            vt = _take(vm, key, group.window, v.shape[3])
            s = softmax.scores(qt, kt, options.scale)
            mask = _neighbours(query, key, cut, group.window, None, ends, valid)
            seen = _sees_any(mask, valid)
            mask = mask.reshape(*mask.shape[:3], *s.shape[-2:])
            i, j = (
                _positions(at, shape, w) if positions is None else _taken(positions, at, shape)
                for at, shape in ((query, cut.tile), (key, group.window))
            )
            kept = pruning.select(s, mask, prune, i, j, few_steps=False)
            o, lse = softmax.normalise(jnp.where(kept, s, softmax.HIDDEN), vt)
            return _put_both(carry, *softmax.where_seen(o, lse[..., None], seen), query, cut), None

        carry, _ = lax.scan(step, carry, _stacks(group.corners, 1))
    return Partial(layout.split_heads(carry[0], heads), carry[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend_rows(
    inputs: Inputs, rows_of_map: jax.Array | None, graph: Local, options: Options
) -> Partial:
    return _forward(inputs, rows_of_map, graph, options)


def _forward(
    inputs: Inputs, rows_of_map: jax.Array | None, graph: Local, options: Options
) -> Partial:
    b, _, _, heads, _ = inputs.q.shape
    v, cut, ends = inputs.v, _tiling_of(inputs, graph, options), _ends(inputs, rows_of_map)
    qm, km, vm, valid = _merged(inputs)
    carry = _empty(inputs)
    for group in cut.groups:
        table = _Offsets.around(inputs.bias, cut, group.window)

        def step(
            carry: tuple, at: jax.Array, group: WindowGroup = group, table: _Offsets = table
        ) -> tuple:
            query, key = _corners(at)
            qt = _take(qm, query, cut.tile, heads)
            kt = _take(km, key, group.window, heads)
            vt = _take(vm, key, group.window, v.shape[3])
            mask = _neighbours(query, key, cut, group.window, rows_of_map, ends, valid)
            s = _masked_scores(qt, kt, options.scale, mask, table.of(query, key))
            o, lse = softmax.normalise(s, vt, (math.prod(cut.tile), math.prod(group.window)))
            seen = _sees_any(mask, valid)
            return _put_both(carry, *softmax.where_seen(o, lse[..., None], seen), query, cut), None

        carry, _ = lax.scan(step, carry, _stacks(group.corners, _per_step(options, b * heads)))
    return Partial(layout.split_heads(carry[0], heads), carry[1])


def _attend_forward(
    inputs: Inputs, rows_of_map: jax.Array | None, graph: Local, options: Options
) -> tuple[Partial, tuple]:
    result = _forward(inputs, rows_of_map, graph, options)
    return result, (inputs, rows_of_map, result)


def _attend_backward(graph: Local, options: Options, saved: tuple, gradients: Partial) -> tuple:
    inputs, rows_of_map, result = saved
    q, k, v = inputs[:3]
    b, _, _, heads, _ = q.shape
    cut, ends = _tiling_of(inputs, graph, options), _ends(inputs, rows_of_map)
    queries = softmax.query_tile(
        q, result.o, result.lse[..., None], gradients.o, gradients.lse[..., None]
    )
    queries = QueryTile(*(layout.merge_heads(x) for x in queries))
    _, km, vm, valid = _merged(inputs)
    arrays = [x for x in (*queries, km, vm, valid) if x is not None]
    carry: tuple[Any, ...] = tuple(
        varying.zeros(x.shape, softmax.accumulator(x), *arrays) for x in (queries.q, km, vm)
    )
    dbias = inputs.bias
    if dbias is not None:
        dbias = varying.zeros(dbias.shape, dbias.dtype, *arrays)
    for group in cut.groups:
        table = _Offsets.around(inputs.bias, cut, group.window)

        def step(
            carry: tuple, at: jax.Array, group: WindowGroup = group, table: _Offsets = table
        ) -> tuple:
            dq, dk, dv, dtable = carry
            query, key = _corners(at)
            tiles = QueryTile(*(_take(x, query, cut.tile, heads) for x in queries))
            kt = _take(km, key, group.window, heads)
            vt = _take(vm, key, group.window, v.shape[3])
            mask = _neighbours(query, key, cut, group.window, rows_of_map, ends, valid)
            mask = mask & _own(query, cut.tile)
            s = _masked_scores(tiles.q, kt, options.scale, mask, table.of(query, key))
            dqt, dkt, dvt, ds = softmax.backward(tiles, kt, vt, s, options)
            return (
                _add(dq, dqt, query, cut.tile),
                _add(dk, dkt, key, group.window),
                _add(dv, dvt, key, group.window),
                table.add(dtable, ds, query, key),
            ), None

        start = (*carry, table.zeros(*arrays))
        steps = _stacks(group.corners, _per_step(options, b * heads))
        (dq, dk, dv, dtable), _ = lax.scan(step, start, steps)
        carry = (dq, dk, dv)
        if dbias is not None and dtable is not None:
            dbias = dbias + table.inner(dtable)
    dq, dk, dv = (
        varying.gradient(x.reshape(y.shape).astype(y.dtype), y) for x, y in zip(carry, (q, k, v))
    )
    if dbias is not None:
        dbias = varying.gradient(dbias, inputs.bias)
    return Inputs(dq, dk, dv, None, dbias), None


_attend_rows.defvjp(_attend_forward, _attend_backward)


def _tile_length(n: int, size: int, most: int) -> int:
    """The tile length near `most` with the fewest executed pairs on an axis of n positions."""
    lengths = range(max(1, (3 * most + 3) // 4), min(n, most) + 1) if n >= most else [n]

    def executed(b: int) -> tuple[int, int]:
        return -(-n // b) * b * min(n, b + 2 * size), -b

    return min(lengths, key=executed)


def _axis(
    n: int, b: int, size: int, windows: int, margin: int, shift: bool, open_ends: bool
) -> list[_AxisTile]:
    """The tiles of b queries along an axis of n, with at most `windows` different window lengths.

    There are `margin` more positions of keys than of queries at both ends. Where shifted windows
    have to end is not known while `open_ends`.
    """
    keys, tiles = n + 2 * margin, []
    for start in range(0, n, b):
        start = min(start, n - b)
        low, high = start + margin - size, start + b + margin + size
        if shift and open_ends:  # a window moves by S at most
            low, high = low - size, high + size
        elif shift:
            low, high = min(low, n - 2 * size - 1), max(high, 2 * size + 1)
        low, high = max(0, low), min(keys, high)
        tiles.append(_AxisTile(start, low, high - low))
    lengths = sorted({tile.window for tile in tiles})
    picks = np.linspace(len(lengths) - 1, 0, min(windows, len(lengths))).round().astype(int)
    kept = sorted({lengths[i] for i in picks} | {lengths[-1]})
    rounded = []
    for tile in tiles:
        length = next(x for x in kept if x >= tile.window)
        rounded.append(_AxisTile(tile.query, min(tile.key, keys - length), length))
    return rounded


def _per_step(options: Options, batch: int) -> int:
    """Tiles per step: fewer where batch and heads fill the machine already."""
    return max(1, options.sizes.stack // options.sizes.per_device(batch))


def _stacks(corners: np.ndarray, most: int) -> jax.Array:
    """Corners [n, 4] as [steps, tiles per step, 4]; the tiles of a step form one batch."""
    together = next(u for u in range(min(most, len(corners)), 0, -1) if len(corners) % u == 0)
    return jnp.asarray(corners.reshape(-1, together, 4))


def _corners(at: jax.Array) -> tuple[_Corners, _Corners]:
    """First queries and first keys of the tiles of a step, from int32 [tiles, 4]."""
    return _Corners(at[:, 0], at[:, 1]), _Corners(at[:, 2], at[:, 3])


def _take(x: jax.Array, at: _Corners, shape: Size2d, heads: int) -> jax.Array:
    """Slices of a map [b, h, w, heads * c] as tiles [t, b, heads, height * width, c]."""
    b, channels = x.shape[0], x.shape[-1]
    size = (b, *shape, channels)
    cuts = [lax.dynamic_slice(x, corner, size) for corner in _each(at)]
    tiles = jnp.stack(cuts).reshape(len(cuts), b, math.prod(shape), channels)
    return jnp.moveaxis(layout.split_heads(tiles, heads), 3, 2)


def _put(x: jax.Array, tiles: jax.Array, at: _Corners, shape: Size2d) -> jax.Array:
    """Writes tiles, as `_take` returns them, into the map one after another."""
    for corner, new in zip(_each(at), _as_slices(x, tiles, shape)):
        x = lax.dynamic_update_slice(x, new, corner)
    return x


def _add(x: jax.Array, tiles: jax.Array, at: _Corners, shape: Size2d) -> jax.Array:
    """Adds tiles, as `_take` returns them, to the map one after another: they may overlap."""
    for corner, new in zip(_each(at), _as_slices(x, tiles, shape)):
        new = new + lax.dynamic_slice(x, corner, new.shape)
        x = lax.dynamic_update_slice(x, new, corner)
    return x


def _each(at: _Corners) -> list[tuple[jax.Array, ...]]:
    """Where one tile after another starts in a map [b, h, w, heads * c]."""
    zero = jnp.zeros((), at.y.dtype)
    return [(zero, at.y[i], at.x[i], zero) for i in range(len(at.y))]


def _as_slices(x: jax.Array, tiles: jax.Array, shape: Size2d) -> jax.Array:
    """Tiles [t, b, heads, height * width, c] as slices [t, b, height, width, heads * c] of x."""
    tiles = jnp.moveaxis(tiles.astype(x.dtype), 2, 3)
    return tiles.reshape(tiles.shape[0], *x.shape[:1], *shape, x.shape[-1])


def _near(q0: jax.Array, k0: jax.Array, queries: int, keys: int, size: int) -> jax.Array:
    """Which keys are at most `size` away from which queries: bool [tiles, queries, keys]."""
    q = q0[:, None] + jnp.arange(queries)
    k = k0[:, None] + jnp.arange(keys)
    return jnp.abs(q[:, :, None] - k[:, None]) <= size


def _within(
    q0: jax.Array, k0: jax.Array, queries: int, keys: int, size: int, ends: tuple
) -> jax.Array:
    """As `_near` with windows that are moved inward at the ends of the map, [first, end).

    Where images of a batch have ends of their own, int32 [b], the result is [tiles, b, queries,
    keys]; there are queries outside of them, whose windows are moved by `size` at most.
    """
    q = (q0[:, None] + jnp.arange(queries))[:, :, None]
    k = (k0[:, None] + jnp.arange(keys))[:, None]
    each = jnp.ndim(ends[0]) > 0
    if each:
        q, k, ends = q[:, None], k[:, None], tuple(x[:, None, None] for x in ends)
    first = jnp.maximum(ends[0], jnp.minimum(q - size, ends[1] - (2 * size + 1)))
    if each:
        first = jnp.clip(first, q - 2 * size, q)
    return (k >= first) & (k <= first + 2 * size)


def _tiling_of(inputs: Inputs, graph: Local, options: Options) -> Tiling:
    """The tiling of the arrays of an attention."""
    h, w = inputs.q.shape[1:3]
    margin, framed = (inputs.k.shape[1] - h) // 2, inputs.frame is not None
    return tiling(h, w, graph, options.sizes, margin, framed=framed)


def _ends(inputs: Inputs, rows_of_map: jax.Array | None) -> _Ends:
    """Where shifted windows have to end."""
    _, h, w, _, _ = inputs.k.shape
    if inputs.frame is not None:
        return _Ends(*zip(*frames.of(inputs.frame)))
    return _Ends((0, h) if rows_of_map is None else tuple(rows_of_map), (0, w))


def _merged(inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """The arrays with heads and channels merged; `valid` as one channel."""
    q, k, v, valid, _, _ = inputs
    q, k, v = (layout.merge_heads(x) for x in (q, k, v))
    return q, k, v, None if valid is None else valid[..., None]


def _empty(inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """Zeros for the output [b, h, w, heads * dv] and the log-sum-exps [b, h, w, heads]."""
    q, k, v = inputs[:3]
    arrays = [x for x in inputs if x is not None]
    return (
        varying.zeros((*q.shape[:3], q.shape[3] * v.shape[-1]), v.dtype, *arrays),
        varying.zeros(q.shape[:4], softmax.accumulator(q, k), *arrays),
    )


def _put_both(
    carry: tuple, o: jax.Array, lse: jax.Array, query: _Corners, cut: Tiling
) -> tuple[jax.Array, jax.Array]:
    """The maps of outputs and log-sum-exps with those of some tiles written."""
    return _put(carry[0], o, query, cut.tile), _put(carry[1], lse, query, cut.tile)


def _neighbours(
    query: _Corners,
    key: _Corners,
    cut: Tiling,
    window: Size2d,
    rows_of_map: jax.Array | None,
    ends: _Ends,
    valid: jax.Array | None,
) -> jax.Array:
    """`_mask` of the valid keys: bool [tiles, 1 or b, 1, *tile, *window]."""
    mask = _mask(query, key, cut, window, rows_of_map, ends)
    if valid is None:
        return mask
    inside = _take(valid, key, window, 1)
    return mask & inside.reshape(*inside.shape[:2], 1, 1, 1, *window)


def _sees_any(mask: jax.Array, valid: jax.Array | None) -> jax.Array | None:
    """Which queries see any key, bool [tiles, b, 1, queries, 1]; None if all do."""
    if valid is None:
        return None
    seen = mask.any((-2, -1))
    return seen.reshape(*seen.shape[:3], -1, 1)


def _mask(
    query: _Corners,
    key: _Corners,
    cut: Tiling,
    window: Size2d,
    rows_of_map: jax.Array | None,
    ends: _Ends,
) -> jax.Array:
    """Which keys are neighbours of which queries: bool [tiles, 1 or b, 1, *tile, *window].

    Of the rows of keys only [first, end) of `rows_of_map` belong to the map, where it is given.
    """
    sizes = cut.graph.sizes
    rows_at = query.y + cut.margin, key.y, cut.tile[0], window[0], sizes[0]
    columns_at = query.x, key.x, cut.tile[1], window[1], sizes[1]
    if cut.graph.border == 'shift':
        rows, columns = _within(*rows_at, ends.rows), _within(*columns_at, ends.columns)
    else:
        rows, columns = _near(*rows_at), _near(*columns_at)
    if rows_of_map is not None and not cut.framed:  # a frame lies inside the map
        k = key.y[:, None] + jnp.arange(window[0])
        rows &= ((k >= rows_of_map[0]) & (k < rows_of_map[1]))[:, None]
    mask = rows[..., :, None, :, None] & columns[..., None, :, None, :]
    return mask[:, :, None] if cut.framed else mask[:, None, None]


def _own(query: _Corners, tile: Size2d) -> jax.Array:
    """Queries that no tile before has, where tiles overlap: bool [tiles, 1, 1, *tile, 1, 1]."""
    rows, columns = (
        x[:, None] + jnp.arange(length) >= -(-x // length)[:, None] * length
        for x, length in zip(query, tile)
    )
    return (rows[:, :, None] & columns[:, None])[:, None, None, :, :, None, None]


def _positions(at: _Corners, shape: Size2d, width: int) -> jax.Array:
    """Row-major positions of slices in a map of that width: int32 [tiles, elements]."""
    y, x = at.y[:, None] + jnp.arange(shape[0]), at.x[:, None] + jnp.arange(shape[1])
    return (y[:, :, None] * width + x[:, None]).reshape(len(at.y), -1)


def _taken(positions: jax.Array, at: _Corners, shape: Size2d) -> jax.Array:
    """The same from the map of positions [h, w] of another map: int32 [tiles, elements]."""
    return _take(positions[None, :, :, None], at, shape, 1)[:, 0, 0, :, 0]


def _masked_scores(
    q: jax.Array, k: jax.Array, scale: float, mask: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """Scores [..., *tile, *window] with a bias of that shape, lowest where `mask` is false."""
    # With two axes a side, masks need no division of flat indices: XLA:CPU fuses them cheaply.
    s = softmax.scores(q, k, scale)
    s = s.reshape(*s.shape[:-2], *mask.shape[-4:])
    return jnp.where(mask, s if bias is None else s + bias, softmax.HIDDEN)
