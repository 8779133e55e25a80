"""Attention over LOCAL graphs: tiles of queries against halo windows of keys.

A scan goes over the tiles, so that one tile's scores are alive. Tiles and windows are slices
clamped inside the map (a gather would make the partitioner collect the whole map, padding would
copy it); a mask makes windows exact. The last tile of an axis may overlap the one before it.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggcf_jax.attention import layout, pruning, softmax
from ggcf_jax.attention.block_sizes import Tiles


def _tile_length(n, size, most):
    """The tile length near `most` with the fewest executed pairs on an axis of n positions."""
    lengths = range(max(1, (3 * most + 3) // 4), min(n, most) + 1) if n >= most else [n]

    def executed(b):
        return -(-n // b) * b * min(n, b + 2 * size), -b

    return min(lengths, key=executed)


def _axis(n, b, size, windows, margin):
    """Tiles of an axis: (query start, key start, window length) each, few different lengths.

    There are `margin` more positions of keys than of queries at both ends.
    """
    keys, tiles = n + 2 * margin, []
    for start in range(0, n, b):
        start = min(start, n - b)
        low, high = max(0, start + margin - size), min(keys, start + b + margin + size)
        tiles.append((start, low, high - low))
    lengths = sorted({length for _, _, length in tiles})
    picks = np.linspace(len(lengths) - 1, 0, min(windows, len(lengths))).round().astype(int)
    kept = sorted({lengths[i] for i in picks} | {lengths[-1]})
    rounded = []
    for start, low, length in tiles:
        length = next(x for x in kept if x >= length)
        rounded.append((start, min(low, keys - length), length))
    return rounded


@functools.cache
def plan(h, w, size, tile, windows, margin=0):
    """Tile shape and the tiles by window shape, for h x w queries among h + 2 margin rows of keys.

    Returns:
      (bh, bw) and {(window height, window width): int32 [tiles, 4] of query y, x and key y, x}.
    """
    bh, bw = _tile_length(h, size, tile[0]), _tile_length(w, size, tile[1])
    groups = {}
    for qy, ky, wh in _axis(h, bh, size, windows, margin):
        for qx, kx, ww in _axis(w, bw, size, windows, 0):
            groups.setdefault((wh, ww), []).append((qy, qx, ky, kx))
    return (bh, bw), {shape: np.array(rows, np.int32) for shape, rows in groups.items()}


def _stacks(rows, most):
    """Tiles [n, 4] as [steps, tiles a step, 4]; the tiles of a step form one batch."""
    together = next(u for u in range(min(most, len(rows)), 0, -1) if len(rows) % u == 0)
    return jnp.asarray(rows.reshape(-1, together, 4))


def _take(x, at, height, width, heads):
    """Windows of a map [b, h, w, heads * c] at [t, 2] as tiles [t, b, heads, height * width, c]."""
    b, channels = len(x), x.shape[-1]
    cuts = [
        lax.dynamic_slice(x, (0, at[i, 0], at[i, 1], 0), (b, height, width, channels))
        for i in range(len(at))
    ]
    tiles = jnp.stack(cuts).reshape(-1, b, height * width, channels)
    return jnp.moveaxis(layout.divide(tiles, heads), 3, 2)


def _put(x, tiles, at, height, width, add=False):
    """Writes (or adds) tiles as `_take` gives them back into the map, one after another."""
    b, channels = len(x), x.shape[-1]
    tiles = jnp.moveaxis(tiles.astype(x.dtype), 2, 3).reshape(-1, b, height, width, channels)
    for i in range(len(at)):
        corner = (0, at[i, 0], at[i, 1], 0)
        new = tiles[i]
        if add:
            new = new + lax.dynamic_slice(x, corner, new.shape)
        x = lax.dynamic_update_slice(x, new, corner)
    return x


def _near(q0, k0, queries, keys, size):
    """Bool [tiles, queries, keys] of one axis."""
    q = q0[:, None] + jnp.arange(queries)
    k = k0[:, None] + jnp.arange(keys)
    return jnp.abs(q[:, :, None] - k[:, None]) <= size


def _mask(at, size, tile, window, margin=0, rows_of_map=None):
    """Bool [tiles, 1, 1, *tile, *window]: which keys are neighbours of which queries.

    Of keys with a margin only the rows [first, end) of `rows_of_map` belong to the map.
    """
    rows = _near(at[:, 0] + margin, at[:, 2], tile[0], window[0], size)
    if rows_of_map is not None:
        k = at[:, 2, None] + jnp.arange(window[0])
        rows &= ((k >= rows_of_map[0]) & (k < rows_of_map[1]))[:, None]
    columns = _near(at[:, 1], at[:, 3], tile[1], window[1], size)
    return (rows[:, :, None, :, None] & columns[:, None, :, None])[:, None, None]


def _own(at, tile):
    """Bool [tiles, 1, 1, *tile, 1, 1]: queries that no tile before has, where tiles overlap."""
    rows, columns = (
        x[:, None] + jnp.arange(length) >= -(-x // length)[:, None] * length
        for x, length in zip(at.T, tile)
    )
    return (rows[:, :, None] & columns[:, None])[:, None, None, :, :, None, None]


def _positions(at, shape, width):
    """Row-major positions in a map of that width of windows at [t, 2]: int32 [t, elements]."""
    y, x = at[:, 0, None] + jnp.arange(shape[0]), at[:, 1, None] + jnp.arange(shape[1])
    return (y[:, :, None] * width + x[:, None]).reshape(len(at), -1)


def _masked_scores(q, k, scale, mask):
    # With two axes a side, masks need no division of flat indices: XLA:CPU fuses them cheaply.
    s = softmax.scores(q, k, scale)
    return jnp.where(mask, s.reshape(*s.shape[:-2], *mask.shape[-4:]), softmax.LOWEST)


def _stacked(tiles, batch):
    """Tiles a step: fewer where batch and heads fill the machine already."""
    return max(1, tiles.stack // tiles.share(batch))


def _forward(q, k, v, rows_of_map, size, scale, tiles):
    b, h, w, heads, _ = q.shape
    margin = (k.shape[1] - h) // 2
    tile, groups = plan(h, w, size, tiles.local, tiles.windows, margin)
    flat, vheads = [layout.merge(x) for x in (q, k, v)], v.shape[3]
    carry = (
        jnp.zeros((b, h, w, heads * v.shape[-1]), v.dtype),
        jnp.zeros((b, h, w, heads), jnp.float32),
    )
    for window, rows in groups.items():

        def step(carry, at, window=window):
            query, key = at[:, :2], at[:, 2:]
            qt = _take(flat[0], query, *tile, heads)
            kt, vt = _take(flat[1], key, *window, heads), _take(flat[2], key, *window, vheads)
            mask = _mask(at, size, tile, window, margin, rows_of_map)
            s = _masked_scores(qt, kt, scale, mask)
            o, lse = softmax.normalise(s, vt, (math.prod(tile), math.prod(window)))
            return (
                _put(carry[0], o, query, *tile),
                _put(carry[1], lse[..., None], query, *tile),
            ), None

        carry, _ = lax.scan(step, carry, _stacks(rows, _stacked(tiles, b * heads)))
    return layout.divide(carry[0], heads), carry[1]


def attend(q, k, v, size, scale, tiles):
    """LOCAL_size attention, q, k [b, h, w, heads, dk], v [b, h, w, heads or 1, dv]."""
    return attend_rows(q, k, v, None, size, scale, tiles)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def attend_rows(q, k, v, rows_of_map, size: int, scale: float, tiles: Tiles):
    """LOCAL_size attention of a block of rows q to its surroundings k, v.

    Args:
      q: [b, h, w, heads, dk].
      k, v: [b, h + 2 margin, w, ...], equally many rows more above and below.
      rows_of_map: int32 [2], first and end of the rows of k, v that the map has; None for all.
    """
    return _forward(q, k, v, rows_of_map, size, scale, tiles)[0]


def _attend_forward(q, k, v, rows_of_map, size, scale, tiles):
    o, lse = _forward(q, k, v, rows_of_map, size, scale, tiles)
    return o, (q, k, v, rows_of_map, o, lse)


def _attend_backward(size, scale, tiles, saved, do):
    q, k, v, rows_of_map, o, lse = saved
    b, h, w, heads, _ = q.shape
    margin = (k.shape[1] - h) // 2
    tile, groups = plan(h, w, size, tiles.local, tiles.windows, margin)
    queries = [*map(layout.merge, (q, do)), lse, softmax.row_delta(do, o)]
    flat, vheads = [layout.merge(x) for x in (k, v)], v.shape[3]
    carry = tuple(jnp.zeros(x.shape, jnp.float32) for x in (queries[0], *flat))
    for window, rows in groups.items():

        def step(carry, at, window=window):
            query, key = at[:, :2], at[:, 2:]
            qt, dot, lt, dt = (_take(x, query, *tile, heads) for x in queries)
            kt, vt = _take(flat[0], key, *window, heads), _take(flat[1], key, *window, vheads)
            mask = _mask(at, size, tile, window, margin, rows_of_map) & _own(query, tile)
            s = _masked_scores(qt, kt, scale, mask)
            dq, dk, dv, _ = softmax.backward(qt, kt, vt, s, dot, lt, dt, scale, tiles)
            return (
                _put(carry[0], dq, query, *tile, add=True),
                _put(carry[1], dk, key, *window, add=True),
                _put(carry[2], dv, key, *window, add=True),
            ), None

        carry, _ = lax.scan(step, carry, _stacks(rows, _stacked(tiles, b * heads)))
    gradients = [x.reshape(y.shape).astype(y.dtype) for x, y in zip(carry, (q, k, v))]
    return *gradients, None


attend_rows.defvjp(_attend_forward, _attend_backward)


def attend_pruned(q, k, v, size, scale, tiles, prune):
    """LOCAL_size attention with Context Pruning, forward only; arguments as for `attend`."""
    b, h, w, heads, _ = q.shape
    tile, groups = plan(h, w, size, tiles.local, tiles.windows)
    flat, vheads = [layout.merge(x) for x in (q, k, v)], v.shape[3]
    out = jnp.zeros((b, h, w, heads * v.shape[-1]), v.dtype)
    for window, rows in groups.items():

        def step(out, at, window=window):
            query, key = at[:, :2], at[:, 2:]
            qt = _take(flat[0], query, *tile, heads)
            kt, vt = _take(flat[1], key, *window, heads), _take(flat[2], key, *window, vheads)
            s = softmax.scores(qt, kt, scale)
            mask = _mask(at, size, tile, window).reshape(-1, 1, 1, *s.shape[-2:])
            positions = _positions(query, tile, w), _positions(key, window, w)
            kept = pruning.select(s, mask, prune, b, *positions)
            o, _ = softmax.normalise(jnp.where(kept, s, softmax.LOWEST), vt)
            return _put(out, o, query, *tile), None

        out, _ = lax.scan(step, out, _stacks(rows, 1))
    return layout.divide(out, heads)
