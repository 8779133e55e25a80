"""LOCAL attention by fused kernels: each tile of queries and its window of keys are sequences.

All tiles of a map have one size, and all windows: a window is moved inside the map where it would
reach past it. What of a window is no neighbour of a query is hidden by channels that know the rows
and the columns of the tile: 1 in the channels of the query's own row and column, far below zero in
those that must not see the key.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ggcf_jax.attention import cudnn, softmax
from ggcf_jax.attention.block_sizes import Options, even
from ggcf_jax.attention.graphs import Local
from ggcf_jax.attention.partial import Inputs, Partial


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
    """LOCAL attention of a block of rows to its surroundings, as `local.attend_rows`.

    The log-sum-exps of the result are NaN: the kernels do not give them.
    """
    q, k, v, valid, _ = inputs
    b, h, w, heads, _ = q.shape
    margin = (k.shape[1] - h) // 2
    rows = _axis(h, margin, graph, 0)
    columns = _axis(w, 0, graph, 1)
    ends = (0, k.shape[1]) if rows_of_map is None else (rows_of_map[0], rows_of_map[1])
    penalty = _penalty(rows, margin, graph.sizes[0], ends, graph.border == 'shift')
    across = _penalty(columns, 0, graph.sizes[1], (0, w), graph.border == 'shift')
    one, far = cudnn.hidden(q.dtype, options.scale)

    tiles = len(rows.starts), len(columns.starts)
    shape = b, *tiles, rows.window, columns.window, heads
    hide = jnp.concatenate(
        [
            jnp.broadcast_to(penalty[:, None, :, None], (*shape[1:5], rows.tile)),
            jnp.broadcast_to(across[None, :, None, :], (*shape[1:5], columns.tile)),
        ],
        -1,
    )
    hide = hide[None, :, :, :, :, None]
    inside = None
    if valid is not None:
        inside = _windows(valid[..., None, None], rows, columns).reshape(*shape[:5], 1, 1)
        hide = hide | ~inside
    hide = jnp.where(hide, far, 0).astype(k.dtype)
    hide = jnp.broadcast_to(hide, (*shape, hide.shape[-1]))
    keys = jnp.concatenate([_windows(k, rows, columns).reshape(*shape, -1), hide], -1)

    size = rows.tile, columns.tile
    of_row = np.broadcast_to(np.eye(size[0])[:, None], (*size, size[0]))
    of_column = np.broadcast_to(np.eye(size[1]), (*size, size[1]))
    own = jnp.asarray(one * np.concatenate([of_row, of_column], -1)[:, :, None], q.dtype)
    queries = _tiles(q, rows, columns)
    own = jnp.broadcast_to(own, (*queries.shape[:-1], own.shape[-1]))
    queries = jnp.concatenate([queries, own], -1)

    count = b * tiles[0] * tiles[1]
    o = cudnn.attend(
        queries.reshape(count, rows.tile * columns.tile, heads, -1),
        keys.reshape(count, rows.window * columns.window, heads, -1),
        _windows(v, rows, columns).reshape(count, rows.window * columns.window, v.shape[3], -1),
        options.scale,
    )
    o = o.reshape(b, *tiles, rows.tile, columns.tile, heads, -1)
    if inside is not None:
        o = jnp.where(_sees_any(penalty, across, inside[..., 0, 0])[..., None, None], o, 0)
    o = o.transpose(0, 1, 3, 2, 4, 5, 6)
    o = o.reshape(b, tiles[0] * rows.tile, tiles[1] * columns.tile, heads, -1)[:, :h, :w]
    return Partial(o, jnp.full(q.shape[:4], jnp.nan, softmax.accumulator(q, k)))


def _axis(n: int, margin: int, graph: Local, axis: int) -> _Axis:
    """The tiles of n queries with `margin` more keys before and behind."""
    size, keys = graph.sizes[axis], n + 2 * margin
    tile = even(n, cudnn.TILE[axis])
    # Where the map ends is not known with a margin: a shifted window moves by S at most.
    reach = 2 * size if graph.border == 'shift' and margin else size
    window = min(keys, max(tile + 2 * reach, min(keys, 2 * size + 1)))
    starts = [min(max(0, first + margin - reach), keys - window) for first in range(0, n, tile)]
    return _Axis(keys, tile, window, tuple(starts))


def _penalty(
    axis: _Axis, margin: int, size: int, ends: tuple, shift: bool
) -> jax.Array:  # fmt: skip
    """Which keys of a window the queries of a tile must not see: bool [tiles, window, tile].

    Args:
      axis: how the axis is cut.
      margin: number of keys before the first query.
      size: S of the graph.
      ends: first and end of the keys that belong to the map.
      shift: whether windows are moved inside the map at its border.
    """
    first = np.arange(len(axis.starts)) * axis.tile + margin
    i = (first[:, None] + np.arange(axis.tile))[:, None, :]
    j = axis.positions[:, :, None]
    inside = (j >= ends[0]) & (j < ends[1])
    if not shift:
        return jnp.asarray(~(inside & (abs(i - j) <= size)))
    start = jnp.maximum(ends[0], jnp.minimum(i - size, ends[1] - (2 * size + 1)))
    return ~(inside & (j >= start) & (j <= start + 2 * size))


def _sees_any(rows: jax.Array, columns: jax.Array, inside: jax.Array) -> jax.Array:
    """Which queries have a valid key among their neighbours.

    Args:
      rows: what the rows of the tiles must not see, as `_penalty`.
      columns: the same for columns.
      inside: which keys of the windows are valid, bool [b, tiles, tiles, window, window].

    Returns:
      Bool [b, tiles, tiles, tile, tile].
    """
    seen = jnp.einsum(
        'yki,byxkl,xlj->byxij', *(x.astype(jnp.float32) for x in (~rows, inside, ~columns))
    )
    return seen > 0


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
    """The windows [b, tiles * tiles * window * window, heads, c] of a map [b, h, w, heads, c]."""
    b, h, w, heads, c = x.shape
    y, at = rows.positions, columns.positions
    index = y[:, None, :, None] * w + at[None, :, None, :]
    return x.reshape(b, h * w, heads, c)[:, index.ravel()]


def _windows_forward(x: jax.Array, rows: _Axis, columns: _Axis) -> tuple[jax.Array, None]:
    return _windows(x, rows, columns), None


def _windows_backward(
    rows: _Axis, columns: _Axis, saved: None, windows: jax.Array
) -> tuple[jax.Array]:
    """Each position collects the gradients of the windows that have it, in float32.

    Collected, not scattered: on a GPU a scatter would need atomic additions.
    """
    b, _, heads, c = windows.shape
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
