"""Attention over LOCAL graphs: tiles of queries against halo windows of keys.

A scan goes over the tiles, so that one tile's scores are alive. Windows are slices clamped inside
the map (a gather would make the partitioner collect the whole map); a mask makes them exact.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggcf_jax.attention import pruning, softmax
from ggcf_jax.attention.tiles import Tiles


def _tile_length(n, size, most):
    """The tile length near `most` with the fewest executed pairs on an axis of n positions."""
    lengths = range(max(1, (3 * most + 3) // 4), min(n, most) + 1) if n >= most else [n]

    def executed(b):
        return -(-n // b) * b * min(n, b + 2 * size), -b

    return min(lengths, key=executed)


def _axis(n, b, size, windows):
    """Tiles of an axis: (query start, key start, window length) each, few different lengths."""
    tiles = []
    for start in range(0, n, b):
        low, high = max(0, start - size), min(n, start + b + size)
        tiles.append((start, low, high - low))
    lengths = sorted({length for _, _, length in tiles})
    picks = np.linspace(len(lengths) - 1, 0, min(windows, len(lengths))).round().astype(int)
    kept = sorted({lengths[i] for i in picks} | {lengths[-1]})
    rounded = []
    for start, low, length in tiles:
        length = next(x for x in kept if x >= length)
        rounded.append((start, min(low, n - length), length))
    return rounded


@functools.cache
def plan(h, w, size, tile, windows):
    """Tile shape and the tiles by window shape.

    Returns:
      (bh, bw) and {(window height, window width): int32 [tiles, 4] of query y, x and key y, x}.
    """
    bh, bw = _tile_length(h, size, tile[0]), _tile_length(w, size, tile[1])
    groups = {}
    for qy, ky, wh in _axis(h, bh, size, windows):
        for qx, kx, ww in _axis(w, bw, size, windows):
            groups.setdefault((wh, ww), []).append((qy, qx, ky, kx))
    return (bh, bw), {shape: np.array(rows, np.int32) for shape, rows in groups.items()}


def _pad(x, h, w):
    """Zero rows and columns up to h x w behind a [b, ., ., heads, c] map."""
    return jnp.pad(x, ((0, 0), (0, h - x.shape[1]), (0, w - x.shape[2]), (0, 0), (0, 0)))


def _take(x, y, x0, height, width):
    """The window of a [b, h, w, heads, c] map as a tile [b, heads, height * width, c]."""
    b, _, _, heads, c = x.shape
    cut = lax.dynamic_slice(x, (0, y, x0, 0, 0), (b, height, width, heads, c))
    return jnp.moveaxis(cut.reshape(b, height * width, heads, c), 2, 1)


def _as_window(t, height, width):
    b, heads, _, c = t.shape
    return jnp.moveaxis(t, 1, 2).reshape(b, height, width, heads, c)


def _put(x, t, y, x0, height, width):
    t = _as_window(t.astype(x.dtype), height, width)
    return lax.dynamic_update_slice(x, t, (0, y, x0, 0, 0))


def _add(x, t, y, x0, height, width):
    b, _, _, heads, c = x.shape
    at = (0, y, x0, 0, 0)
    old = lax.dynamic_slice(x, at, (b, height, width, heads, c))
    return lax.dynamic_update_slice(x, old + _as_window(t, height, width), at)


def _mask(at, size, tile, window):
    """Bool [queries, keys] of one tile: which keys of the window are neighbours."""
    near = []
    for q0, k0, b, length in zip(at[:2], at[2:], tile, window):
        apart = (q0 + jnp.arange(b))[:, None] - (k0 + jnp.arange(length))[None]
        near.append(jnp.abs(apart) <= size)
    mask = near[0][:, None, :, None] & near[1][None, :, None, :]
    return mask.reshape(tile[0] * tile[1], window[0] * window[1])


def _counts(at, size, tile, shape):
    """Neighbours of each query of a tile, inside the map: int32 [queries]; padded queries, 1."""
    inside = []
    for q0, b, n in zip(at[:2], tile, shape):
        q = q0 + jnp.arange(b)
        inside.append(jnp.maximum(jnp.minimum(q + size, n - 1) - jnp.maximum(q - size, 0) + 1, 1))
    return (inside[0][:, None] * inside[1][None]).reshape(-1)


def _positions(y, x0, shape, width):
    """Row-major positions in the map of a window's elements."""
    rows, columns = y + jnp.arange(shape[0]), x0 + jnp.arange(shape[1])
    return (rows[:, None] * width + columns[None]).reshape(-1)


def _forward(q, k, v, size, scale, tiles, prune=None):
    b, h, w, heads, _ = q.shape
    tile, groups = plan(h, w, size, tiles.local, tiles.windows)
    hp, wp = -(-h // tile[0]) * tile[0], -(-w // tile[1]) * tile[1]
    padded = _pad(q, hp, wp)
    carry = (
        jnp.zeros((b, hp, wp, heads, v.shape[-1]), v.dtype),
        jnp.zeros((b, hp, wp, heads, 1), jnp.float32),
    )
    for window, rows in groups.items():

        def step(carry, at, window=window):
            query, key = at[:2], at[2:]
            kt, vt = _take(k, *key, *window), _take(v, *key, *window)
            s = softmax.scores(_take(padded, *query, *tile), kt, scale)
            mask = _mask(at, size, tile, window)
            if prune is not None:
                kept = prune.kept(_counts(at, size, tile, (h, w)))
                i, j = _positions(*query, tile, w), _positions(*key, window, w)
                mask = pruning.select(s, mask, kept, prune, i, j)
            o, lse = softmax.normalise(jnp.where(mask, s, softmax.LOWEST), vt)
            return (
                _put(carry[0], o, *query, *tile),
                _put(carry[1], lse[..., None], *query, *tile),
            ), None

        unroll = min(tiles.unroll, len(rows)) if prune is None else 1
        carry, _ = lax.scan(step, carry, jnp.asarray(rows), unroll=unroll)
    return carry[0][:, :h, :w], carry[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def attend(q, k, v, size: int, scale: float, tiles: Tiles):
    """LOCAL_size attention, q, k [b, h, w, heads, dk], v [b, h, w, heads or 1, dv]."""
    return _forward(q, k, v, size, scale, tiles)[0]


def _attend_forward(q, k, v, size, scale, tiles):
    o, lse = _forward(q, k, v, size, scale, tiles)
    return o, (q, k, v, o, lse)


def _attend_backward(size, scale, tiles, saved, do):
    q, k, v, o, lse = saved
    h, w = q.shape[1:3]
    tile, groups = plan(h, w, size, tiles.local, tiles.windows)
    hp, wp = lse.shape[1:3]
    delta = _pad(softmax.row_delta(do, o)[..., None], hp, wp)
    q_map, do_map = _pad(q, hp, wp), _pad(do, hp, wp)
    carry = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_map, k, v))
    for window, rows in groups.items():

        def step(carry, at, window=window):
            query, key = at[:2], at[2:]
            qt, dot, lt, dt = (_take(x, *query, *tile) for x in (q_map, do_map, lse, delta))
            kt, vt = _take(k, *key, *window), _take(v, *key, *window)
            s = softmax.scores(qt, kt, scale, mask=_mask(at, size, tile, window))
            dq, dk, dv, _ = softmax.backward(
                qt, kt, vt, s, dot, lt[..., 0], dt[..., 0], scale, tiles
            )
            return (
                _put(carry[0], dq, *query, *tile),
                _add(carry[1], dk, *key, *window),
                _add(carry[2], dv, *key, *window),
            ), None

        carry, _ = lax.scan(step, carry, jnp.asarray(rows), unroll=min(tiles.unroll, len(rows)))
    dq, dk, dv = carry
    return dq[:, :h, :w].astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


attend.defvjp(_attend_forward, _attend_backward)


def attend_pruned(q, k, v, size, scale, tiles, prune):
    """LOCAL_size attention with Context Pruning; forward only."""
    return _forward(q, k, v, size, scale, tiles, prune)[0]
