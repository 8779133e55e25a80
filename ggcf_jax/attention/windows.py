"""LOCAL attention in tiles that are all alike: of queries, each with a window of keys.

All tiles of a map have one size, and all windows: a window is moved inside the map where it would
reach past it. So fused kernels attend to all of them in one call, and pruning to many at a time.

What of a window is no neighbour of a query is a stranger. From fused kernels it is hidden by
channels that know the rows and the columns of the tile: 1 in the channels of the query's own row
and column, far below zero in those that must not see the key. Where there is no room for more
channels, a bias hides it, which differs for the tiles at the border.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggcf_jax.attention import cudnn, pruning, softmax, varying
from ggcf_jax.attention import frame as frames
from ggcf_jax.attention.block_sizes import Options, even
from ggcf_jax.attention.graphs import Local
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune


class _Axis(NamedTuple):
    """How an axis is cut: equal tiles of queries, equal windows of keys; hashable.

    Attributes:
      keys: number of positions of keys.
      tile: length of a tile; the last one may reach past the end of the queries.
      window: length of a window.
      starts: first key of each window.
    """

    keys: int
    tile: int
    window: int
    starts: tuple[int, ...]

    @property
    def positions(self) -> np.ndarray:
        """Key positions of the windows, int32 [tiles, window]."""
        return np.add.outer(np.array(self.starts, np.int32), np.arange(self.window, dtype=np.int32))

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each key stands in the windows, one behind the other.

        Returns:
          int32 [most, keys], a place in [tiles * window] for each window that has the key, and
          which of these are meant, bool [most, keys].
        """
        found: list[list[int]] = [[] for _ in range(self.keys)]
        for place, key in enumerate(self.positions.ravel().tolist()):
            found[key].append(place)
        most = max(map(len, found))
        places = [row + [0] * (most - len(row)) for row in found]
        used = np.arange(most)[:, None] < np.array([len(row) for row in found])
        return np.array(places, np.int32).T, used


def attend(
    inputs: Inputs, rows_of_map: jax.Array | None, graph: Local, options: Options
) -> Partial:
    """LOCAL attention of a block of rows to its surroundings, as `local.attend_rows`."""
    q, k, v, valid, _, _ = inputs
    b, h, w, heads, _ = q.shape
    by_channels = cudnn.hides_by_channels(q.shape[-1], options.most_channels)
    tile = [cudnn.tile(axis, graph.sizes[axis], by_channels=by_channels) for axis in (0, 1)]
    rows, columns, strangers = _cut(inputs, rows_of_map, graph, tile)
    queries = _tiles(q, rows, columns)
    keys, values = (_windows(x, rows, columns) for x in (k, v))
    inside = None if valid is None else _windows(valid[..., None, None], rows, columns)
    hide = _hide_by_channels if by_channels else _hide_by_bias
    o, lse = hide(queries, keys, values, inside, strangers, options)
    if inside is not None:
        seen = strangers.sees_any(inside[..., 0, 0])[..., None]
        o = jnp.where(seen[..., None], o, 0)
        lse = jnp.where(seen, lse, softmax.HIDDEN)

    def as_map(x: jax.Array) -> jax.Array:
        height, width = (len(axis.starts) * axis.tile for axis in (rows, columns))
        x = x.transpose(0, 1, 3, 2, 4, 5, 6)
        return x.reshape(b, height, width, heads, -1)[:, :h, :w]

    return Partial(as_map(o), as_map(lse[..., None])[..., 0])


def attend_pruned(
    inputs: Inputs, graph: Local, options: Options, prune: Prune, positions: jax.Array | None
) -> Partial:
    """LOCAL attention with Context Pruning, as `local.attend_pruned`: few steps of many tiles."""
    q, k, v, valid, _, _ = inputs
    b, h, w, heads, _ = q.shape
    rows, columns, strangers = _cut(inputs, None, graph, options.sizes.local)
    if positions is None:
        positions = jnp.arange(h * w, dtype=jnp.int32).reshape(h, w)
    own = positions[None, :, :, None, None]
    of_queries = [_as_sequences(_tiles(x, rows, columns)) for x in (q, own)]
    of_keys = [_as_sequences(_windows(x, rows, columns)) for x in (k, v, own)]
    if valid is not None:
        of_keys.append(_as_sequences(_windows(valid[..., None, None], rows, columns)))
    count, m, n = of_queries[0].shape[0], of_queries[0].shape[3], of_keys[0].shape[3]
    # [tiles, b or 1, window, tile] along each axis
    y, x = np.divmod(np.arange(count), len(columns.starts))
    hidden = [
        jnp.moveaxis(jnp.asarray(of_axis).reshape(-1, *of_axis.shape[-3:])[:, tile], 0, 1)
        for of_axis, tile in zip(strangers, (y, x))
    ]
    size = even(count, options.sizes.pruned_in(1, b * heads) // (m * n))

    def step(carry: tuple, t: jax.Array) -> tuple[tuple, None]:
        # The last step starts early enough to be full: those tiles are computed twice, equally.
        start = jnp.minimum(t * size, count - size)
        (qt, i), (kt, vt, j, *inside), (of_rows, of_columns) = (
            [lax.dynamic_slice_in_dim(x, start, size) for x in arrays]
            for arrays in (of_queries, of_keys, hidden)
        )
        near = [~jnp.swapaxes(x, -1, -2) for x in (of_rows, of_columns)]
        mask = near[0][:, :, :, None, :, None] & near[1][:, :, None, :, None, :]
        mask = mask.reshape(size, -1, 1, m, n)
        seen = None
        if inside:
            mask = mask & jnp.swapaxes(inside[0], -1, -2)
            seen = mask.any(-1, keepdims=True)
        s = softmax.scores(qt, kt, options.scale)
        i, j = (x[:, 0, 0, :, 0] for x in (i, j))
        kept = pruning.select(s, mask, prune, i, j, few_steps=True)
        o, lse = softmax.normalise(jnp.where(kept, s, softmax.HIDDEN), vt)
        new = softmax.where_seen(o.astype(v.dtype), lse[..., None], seen)
        return tuple(
            lax.dynamic_update_slice_in_dim(x, y, start, axis=0) for x, y in zip(carry, new)
        ), None

    arrays = [x for x in inputs if x is not None]
    carry = (
        varying.zeros((count, b, heads, m, v.shape[-1]), v.dtype, *arrays),
        varying.zeros((count, b, heads, m, 1), softmax.accumulator(q, k), *arrays),
    )
    o, lse = lax.scan(step, carry, jnp.arange(-(-count // size)))[0]

    def as_map(x: jax.Array) -> jax.Array:
        fields = len(rows.starts), len(columns.starts)
        x = x.reshape(*fields, b, heads, rows.tile, columns.tile, -1).transpose(2, 0, 4, 1, 5, 3, 6)
        return x.reshape(b, fields[0] * rows.tile, -1, heads, x.shape[-1])[:, :h, :w]

    return Partial(as_map(o), as_map(lse)[..., 0])


def _as_sequences(x: jax.Array) -> jax.Array:
    """Tiles or windows [b, *tiles, height, width, heads, c] as [tiles, b, heads, members, c]."""
    b, ny, nx, height, width, heads, c = x.shape
    return x.transpose(1, 2, 0, 5, 3, 4, 6).reshape(ny * nx, b, heads, height * width, c)


def _cut(
    inputs: Inputs, rows_of_map: jax.Array | None, graph: Local, tile: Sequence[int]
) -> tuple[_Axis, _Axis, '_Strangers']:
    """How the rows and the columns of maps are cut, and what of the windows is hidden.

    Args:
      inputs: the arrays of the attention.
      rows_of_map: first and end of the rows of keys that belong to the map; None for all of them.
      graph: sizes and border rule.
      tile: greatest height and width of a tile.
    """
    _, h, w, _, _ = inputs.q.shape
    margin, frame = (inputs.k.shape[1] - h) // 2, inputs.frame
    rows, columns = (
        _axis(n, m, graph, axis, tile[axis], open_ends=m > 0 or frame is not None)
        for axis, (n, m) in enumerate([(h, margin), (w, 0)])
    )
    shift = graph.border == 'shift'
    keys = inputs.k.shape[1]
    ends: Any = (0, keys) if rows_of_map is None else (rows_of_map[0], rows_of_map[1]), (0, w)
    if frame is not None:
        ends = tuple(zip(*frames.of(frame)))
    strangers = _Strangers(
        _strangers(rows, margin, graph.sizes[0], ends[0], shift=shift),
        _strangers(columns, 0, graph.sizes[1], ends[1], shift=shift),
    )
    return rows, columns, strangers


class _Strangers(NamedTuple):
    """Which keys of the windows the queries of their tiles must not see, along each axis.

    Attributes:
      rows: bool [tiles, window, tile] along rows, or [b, tiles, window, tile] where images end
        in different places.
      columns: the same along columns.
    """

    rows: Any
    columns: Any

    def sees_any(self, inside: jax.Array) -> jax.Array:
        """Which queries have a valid key among their neighbours: bool [b, *tiles, *tile].

        Args:
          inside: which keys are valid, bool [b, *tiles, *window].
        """
        factors = (~self.rows, inside, ~self.columns)
        axes = '...yki,...yxkl,...xlj->...yxij'
        seen = jnp.einsum(axes, *(x.astype(jnp.float32) for x in factors))
        return seen > 0


def _hide_by_channels(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    inside: jax.Array | None,
    strangers: _Strangers,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """Attention of all tiles in one call.

    Args:
      queries: [b, *tiles, *tile, heads, dk].
      keys: [b, *tiles, *window, heads, dk].
      values: [b, *tiles, *window, heads or 1, dv].
      inside: which keys are valid, bool [b, *tiles, *window, 1, 1]; None for all.
      strangers: which keys are not seen.
      options: scale, and the number of channels that there is room for.

    Returns:
      The sums [b, *tiles, *tile, heads, dv] and the log-sum-exps without the last axis.
    """
    height, width = queries.shape[3:5]
    field = keys.shape[1:5]
    one, far = cudnn.hidden(queries.dtype, options.scale)
    of_row = np.broadcast_to(np.eye(height)[:, None], (height, width, height))
    of_column = np.broadcast_to(np.eye(width), (height, width, width))
    own = one * np.concatenate([of_row, of_column], -1)[:, :, None]
    lead, (tiles, of_tiles, window, of_window) = strangers.rows.shape[:-3], field
    in_rows = strangers.rows.reshape(*lead, tiles, 1, window, 1, height)
    in_columns = strangers.columns.reshape(*lead, 1, of_tiles, 1, of_window, width)
    hide = jnp.concatenate(
        [jnp.broadcast_to(x, (*lead, *field, x.shape[-1])) for x in (in_rows, in_columns)], -1
    )[..., None, :]
    if inside is not None:
        hide = hide | ~inside
    queries, keys = (
        jnp.concatenate([x, jnp.broadcast_to(y.astype(x.dtype), (*x.shape[:-1], y.shape[-1]))], -1)
        for x, y in ((queries, jnp.asarray(own)), (keys, jnp.where(hide, far, 0)))
    )
    return _call(queries, keys, values, None, None, options)


def _hide_by_bias(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    inside: jax.Array | None,
    strangers: _Strangers,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """As `_hide_by_channels`: one call for each field of tiles that must not see the same keys."""
    rows = []
    for top, bottom in _alike(strangers.rows):
        columns = []
        for left, right in _alike(strangers.columns):
            hide = (
                strangers.rows[top][:, None, :, None] | strangers.columns[left][None, :, None, :]
            )  # [*window, *tile]
            hide = hide.reshape(math.prod(hide.shape[:2]), -1).T
            field = (slice(None), slice(top, bottom), slice(left, right))
            own = None if inside is None else inside[field]
            columns.append(_call(queries[field], keys[field], values[field], own, hide, options))
        rows.append(jax.tree.map(lambda *x: jnp.concatenate(x, 2), *columns))
    return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *rows)


def _alike(strangers: np.ndarray) -> list[tuple[int, int]]:
    """Runs of neighbouring tiles with the same strangers: first and end."""
    new = [i for i, x in enumerate(strangers) if i == 0 or (x != strangers[i - 1]).any()]
    return list(zip(new, [*new[1:], len(strangers)]))


def _call(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    inside: jax.Array | None,
    strangers: np.ndarray | None,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """Attention of some tiles to their windows, in one call."""

    def sequences(x: jax.Array) -> jax.Array:
        return x.reshape(math.prod(x.shape[:3]), math.prod(x.shape[3:5]), *x.shape[5:])

    o, lse = cudnn.attend(
        sequences(queries),
        sequences(keys),
        sequences(values),
        options,
        None if inside is None else sequences(inside),
        strangers,
    )
    return o.reshape(*queries.shape[:-1], -1), lse.reshape(queries.shape[:-1])


def _axis(n: int, margin: int, graph: Local, axis: int, most: int, *, open_ends: bool) -> _Axis:
    """The tiles of n queries with `margin` more keys before and behind, at most `most` long.

    Where the axis ends is not known while `open_ends`.
    """
    size, keys = graph.sizes[axis], n + 2 * margin
    tile = even(n, most)
    # A shifted window moves by S at most.
    reach = 2 * size if graph.border == 'shift' and open_ends else size
    window = min(keys, max(tile + 2 * reach, min(keys, 2 * size + 1)))
    starts = [min(max(0, first + margin - reach), keys - window) for first in range(0, n, tile)]
    return _Axis(keys, tile, window, tuple(starts))


def _strangers(axis: _Axis, margin: int, size: int, ends: tuple[Any, Any], *, shift: bool) -> Any:
    """Which keys of a window the queries of a tile must not see: bool [tiles, window, tile].

    Args:
      axis: how the axis is cut.
      margin: number of keys before the first query.
      size: S of the graph.
      ends: first and end of the keys that belong to the map; the result is an array of numpy
        unless they are traced. Of a frame int32 [b] each: the result is [b, tiles, window, tile].
      shift: whether windows are moved inside the map at its border.
    """
    first = np.arange(len(axis.starts)) * axis.tile + margin
    i = (first[:, None] + np.arange(axis.tile))[:, None, :]
    j = axis.positions[:, :, None]
    framed = jnp.ndim(ends[0]) > 0
    if framed:
        ends = ends[0][:, None, None, None], ends[1][:, None, None, None]
    inside = (j >= ends[0]) & (j < ends[1])
    if not shift:
        return ~(inside & (abs(i - j) <= size))
    np_or_jnp: Any = np if isinstance(ends[0], int) else jnp
    start = np_or_jnp.maximum(ends[0], np_or_jnp.minimum(i - size, ends[1] - (2 * size + 1)))
    if framed:  # there are queries outside of it
        start = jnp.clip(start, i - 2 * size, i)
    return ~(inside & (j >= start) & (j <= start + 2 * size))


def _tiles(x: jax.Array, rows: _Axis, columns: _Axis) -> jax.Array:
    """[b, h, w, heads, c] as [b, tiles, tiles, tile, tile, heads, c], zeros past the end."""
    b, h, w, heads, c = x.shape
    counts = len(rows.starts), len(columns.starts)
    height, width = counts[0] * rows.tile, counts[1] * columns.tile
    x = jnp.pad(x, ((0, 0), (0, height - h), (0, width - w), (0, 0), (0, 0)))
    x = x.reshape(b, counts[0], rows.tile, counts[1], columns.tile, heads, c)
    return x.transpose(0, 1, 3, 2, 4, 5, 6)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _windows(x: jax.Array, rows: _Axis, columns: _Axis) -> jax.Array:
    """The windows [b, *tiles, *window, heads, c] of a map [b, h, w, heads, c]."""
    b, h, w, heads, c = x.shape
    y, at = rows.positions, columns.positions
    index = y[:, None, :, None] * w + at[None, :, None, :]
    return x.reshape(b, h * w, heads, c)[:, index.ravel()].reshape(b, *index.shape, heads, c)


def _windows_forward(x: jax.Array, rows: _Axis, columns: _Axis) -> tuple[jax.Array, None]:
    return _windows(x, rows, columns), None


def _windows_backward(
    rows: _Axis, columns: _Axis, saved: None, windows: jax.Array
) -> tuple[jax.Array]:
    """Each position collects the gradients of the windows that have it, in float32.

    Collected, not scattered: on a GPU a scatter would need atomic additions.
    """
    b, *_, heads, c = windows.shape
    windows = windows.reshape(b, -1, heads, c)
    total = None
    for y, in_rows in zip(*rows.places()):
        for x, in_columns in zip(*columns.places()):
            (ty, wy), (tx, wx) = np.divmod(y, rows.window), np.divmod(x, columns.window)
            tile = ty[:, None] * len(columns.starts) + tx
            index = (tile * rows.window + wy[:, None]) * columns.window + wx
            found = windows[:, index.ravel()].astype(jnp.float32)
            used = (in_rows[:, None] & in_columns).reshape(1, -1, 1, 1)
            found = jnp.where(used, found, 0)
            total = found if total is None else total + found
    assert total is not None
    return (total.astype(windows.dtype).reshape(b, rows.keys, columns.keys, heads, c),)


_windows.defvjp(_windows_forward, _windows_backward)
