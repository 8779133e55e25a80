"""Attention over GRID graphs: dense attention inside each residue class of positions.

Residues r < n mod T of an axis have one member more than the others, so a map falls into at most
four batches of equal groups: no padding and no mask.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import full, pruning
from ggcf_jax.attention.tiles import Tiles, even


def residues(n, stride):
    """Runs of residues with equally many members on an axis: (first, end, members) each."""
    members, longer = divmod(n, stride)
    runs = [(0, longer, members + 1), (longer, min(stride, n), members)]
    return [run for run in runs if run[1] > run[0] and run[2]]


def split(x, strides):
    """[b, h, w, heads, c] with rows and columns apart by residue: [b, ., ty, ., tx, heads, c]."""
    b, h, w, heads, c = x.shape
    ty, tx = min(strides[0], h), min(strides[1], w)
    x = jnp.pad(x, ((0, 0), (0, -h % ty), (0, -w % tx), (0, 0), (0, 0)))
    return x.reshape(b, -(-h // ty), ty, -(-w // tx), tx, heads, c)


def gather(x, rows, columns):
    """The groups of one batch: [groups, b, heads, members, c] of a `split` map."""
    x = x[:, : rows[2], rows[0] : rows[1], : columns[2], columns[0] : columns[1]]
    b, ny, gy, nx, gx, heads, c = x.shape
    return x.transpose(2, 4, 0, 5, 1, 3, 6).reshape(gy * gx, b, heads, ny * nx, c)


def scatter(x, groups, rows, columns):
    """The `split` map with the groups that `gather` would take written into it."""
    _, b, heads, _, c = groups.shape
    shape = (rows[1] - rows[0], columns[1] - columns[0], b, heads, rows[2], columns[2], c)
    groups = groups.reshape(shape).transpose(2, 4, 0, 5, 1, 3, 6)
    return lax.dynamic_update_slice(x, groups, (0, 0, rows[0], 0, columns[0], 0, 0))


def map_groups(f, arrays, most):
    """f over chunks of at most `most` groups, the first axis of all arrays and results."""
    n = len(arrays[0])
    size = even(n, most)
    pieces = -(-n // size)
    if pieces == 1:
        return f(*arrays)
    arrays = [jnp.pad(x, [(0, pieces * size - n)] + [(0, 0)] * (x.ndim - 1)) for x in arrays]
    arrays = [x.reshape(pieces, size, *x.shape[1:]) for x in arrays]
    results = lax.map(lambda piece: f(*piece), tuple(arrays))
    return jax.tree.map(lambda x: x.reshape(pieces * size, *x.shape[2:])[:n], results)


def _plan(q, tiles):
    """Chunks of the groups q [groups, b, heads, n, dk], and groups at a time."""
    _, b, heads, n, _ = q.shape
    size = full.chunks(n, b * heads, tiles)
    own = tiles.share(b * heads)
    if own * n * n <= tiles.scores:
        size = full.Chunks(n, n)
    return size, max(1, tiles.scores // (own * size.queries * size.keys))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend_groups(q, k, v, scale: float, tiles: Tiles):
    """Dense attention inside each group, q, k, v [groups, b, heads, members, c]."""
    return _attend_forward(q, k, v, scale, tiles)[0]


def _attend_forward(q, k, v, scale, tiles):
    size, most = _plan(q, tiles)
    o, lse = map_groups(
        lambda q, k, v: full.forward(q, k, v, None, scale, size, None), (q, k, v), most
    )
    return o, (q, k, v, o, lse)


def _attend_backward(scale, tiles, saved, do):
    size, most = _plan(saved[0], tiles)
    return map_groups(
        lambda q, k, v, o, lse, do: full.backward(
            q, k, v, None, o, lse, do, scale, size, None, tiles
        )[:3],
        (*saved, do),
        most,
    )


attend_groups.defvjp(_attend_forward, _attend_backward)


def over_groups(f, q, k, v, strides):
    """f(groups of q, of k, of v, rows, columns) for each batch of groups, put back into a map.

    Args:
      strides: of rows and of columns.

    Returns:
      [b, h, w, heads, dv] in the dtype of v.
    """
    b, h, w, heads, _ = q.shape
    maps = [split(x, strides) for x in (q, k, v)]
    o = jnp.zeros((*maps[0].shape[:-1], v.shape[-1]), v.dtype)
    for rows in residues(h, strides[0]):
        for columns in residues(w, strides[1]):
            groups = f(*(gather(x, rows, columns) for x in maps), rows, columns)
            o = scatter(o, groups, rows, columns)
    height, width = math.prod(o.shape[1:3]), math.prod(o.shape[3:5])
    return o.reshape(b, height, width, heads, -1)[:, :h, :w]


def attend(q, k, v, stride, scale, tiles):
    """GRID_stride attention, q, k [b, h, w, heads, dk], v [b, h, w, heads or 1, dv]."""
    return attend_strides(q, k, v, (stride, stride), scale, tiles)


def attend_strides(q, k, v, strides, scale, tiles):
    """As `attend` with one stride of rows and another of columns."""
    return over_groups(
        lambda q, k, v, rows, columns: attend_groups(q, k, v, scale, tiles), q, k, v, strides
    )


def attend_pruned(q, k, v, stride, scale, tiles, prune):
    """GRID_stride attention with Context Pruning, forward only; arguments as for `attend`."""
    b, h, w, heads, _ = q.shape

    def groups(q, k, v, rows, columns):
        y, x = (
            jnp.arange(first, end)[:, None] + min(stride, n) * jnp.arange(members)
            for n, (first, end, members) in ((h, rows), (w, columns))
        )
        position = y[:, None, :, None] * w + x[None, :, None, :]
        n = q.shape[3]
        most = max(1, tiles.pruned // (tiles.share(b * heads) * n * min(n, 64)))
        return map_groups(
            lambda q, k, v, i: pruning.attend_rows(q, k, v, i, prune, scale, tiles),
            (q, k, v, position.reshape(-1, n)),
            most,
        )

    return over_groups(groups, q, k, v, (stride, stride))
