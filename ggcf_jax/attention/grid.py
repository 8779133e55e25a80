"""Attention over GRID graphs: dense attention inside each residue class of positions.

Residues r < n mod T of an axis have one member more than the others, so a map falls into at most
four batches of equal groups: no padding and no mask. A scan cuts as many groups at a time from the
map as its scores may be alive.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ggcf_jax.attention import full, layout, pruning, softmax
from ggcf_jax.attention.block_sizes import Tiles, even


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


def _members(x, axis, stride, run, start, count):
    """Members of `count` residues of a run from `start` on: the axis becomes two, both apart."""
    first, _, members = run
    n = x.shape[axis]
    stride = min(stride, n)
    periods = n // stride
    whole = lax.slice_in_dim(x, 0, periods * stride, axis=axis)
    whole = whole.reshape(*x.shape[:axis], periods, stride, *x.shape[axis + 1 :])
    whole = lax.dynamic_slice_in_dim(whole, first + start, count, axis=axis + 1)
    if members == periods:
        return whole
    # Of the longer run the last members lie in the incomplete period.
    last = lax.dynamic_slice_in_dim(x, periods * stride + start, count, axis=axis)
    return lax.concatenate([whole, jnp.expand_dims(last, axis)], axis)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Equal groups of a map: some residues of a run of rows times some of a run of columns.

    Attributes:
      rows, columns: (first, end, members) as `residues` gives them.
      count: how many residues of rows and of columns are taken, from a `start` inside the runs.
    """

    rows: tuple[int, int, int]
    columns: tuple[int, int, int]
    count: tuple[int, int]

    def gather(self, x, start, strides, heads):
        """The groups [groups, b, heads, members, c] of a map [b, h, w, heads * c]."""
        x = _members(x, 2, strides[1], self.columns, start[1], self.count[1])
        x = _members(x, 1, strides[0], self.rows, start[0], self.count[0])
        x = layout.divide(x, heads)
        b, ny, gy, nx, gx, heads, c = x.shape
        return x.transpose(2, 4, 0, 5, 1, 3, 6).reshape(gy * gx, b, heads, ny * nx, c)

    def scatter(self, x, start, groups):
        """A map [b, ., ty, ., tx, heads * c], rows and columns apart, with the groups put in."""
        _, b, heads, _, c = groups.shape
        shape = (*self.count, b, heads, self.rows[2], self.columns[2], c)
        groups = groups.reshape(shape).transpose(2, 4, 0, 5, 1, 3, 6)
        groups = groups.reshape(*groups.shape[:-2], heads * c)
        corner = (0, 0, self.rows[0] + start[0], 0, self.columns[0] + start[1], 0)
        return lax.dynamic_update_slice(x, groups, corner)


def _merged(q, k, v, *others):
    """Groups [groups, b * heads, n, c], unless the heads share one v; [groups, n, c] of one."""
    arrays = (q, k, v, *others)
    batch, heads = q.shape[1:3]
    if heads != v.shape[2]:
        return arrays
    # XLA:CPU fuses product, softmax and product into one kernel unless an axis has length one.
    one = () if batch * heads == 1 else (batch * heads,)
    return [x.reshape(len(x), *one, *x.shape[3:]) for x in arrays]


def _size(n, batch, tiles):
    """Chunks of groups of n members, `batch` elements times heads in each."""
    if tiles.share(batch) * n * n <= tiles.scores:
        return full.Chunks(n, n)
    return full.chunks(n, batch, tiles)


def _together(batch, tiles):
    """How many groups to take at a time, as a function of the members of one."""

    def most(n):
        size = _size(n, batch, tiles)
        return tiles.scores // (tiles.share(batch) * size.queries * size.keys)

    return most


def _parts(n, most):
    """n residues in equal parts of at most `most`, and what is left: (length, starts) of each."""
    length = even(n, most)
    end = n - n % length
    parts = [(length, range(0, end, length))]
    return parts if end == n else [*parts, (n - end, [end])]


def _pieces(h, w, strides, most):
    """Pieces, and where they start, that together hold each group of an h x w map once.

    Args:
      most: members of a group -> groups at a time.
    """
    for rows, columns in itertools.product(residues(h, strides[0]), residues(w, strides[1])):
        y, x = rows[1] - rows[0], columns[1] - columns[0]
        together = most(rows[2] * columns[2])
        # Rounded: a few more groups than that are better than a small rest.
        parts = _parts(y, round(together / x)), _parts(x, together)
        for (height, top), (width, left) in itertools.product(*parts):
            yield Piece(rows, columns, (height, width)), list(itertools.product(top, left))


def _over_groups(f, arrays, strides, channels, most):
    """f over the groups of maps, so many at a time that its scores stay few.

    Args:
      f: groups of the arrays [groups, b, heads, members, c] -> groups of each result.
      arrays: maps [b, h, w, heads, c].
      channels: (heads, c, dtype) of each map in the result.
      most: as for `_pieces`.

    Returns:
      Maps [b, h, w, heads, c].
    """
    b, h, w = arrays[0].shape[:3]
    ty, tx = min(strides[0], h), min(strides[1], w)
    apart = (b, -(-h // ty), ty, -(-w // tx), tx)
    flat = [(layout.merge(x), x.shape[3]) for x in arrays]
    out = [jnp.zeros((*apart, heads * c), dtype) for heads, c, dtype in channels]
    for piece, starts in _pieces(h, w, strides, most):

        def step(out, start, piece=piece):
            groups = f(*(piece.gather(x, start, strides, heads) for x, heads in flat))
            return [piece.scatter(x, start, g) for x, g in zip(out, groups, strict=True)], None

        if len(starts) == 1:  # known at compile time outside of a loop
            out, _ = step(out, starts[0])
        else:
            out, _ = lax.scan(step, out, np.array(starts, np.int32))
    height, width = math.prod(apart[1:3]), math.prod(apart[3:])
    out = [x.reshape(b, height, width, -1)[:, :h, :w] for x in out]
    return [layout.divide(x, heads) for x, (heads, _, _) in zip(out, channels)]


def attend(q, k, v, stride, scale, tiles):
    """GRID_stride attention, q, k [b, h, w, heads, dk], v [b, h, w, heads or 1, dv]."""
    return attend_strides(q, k, v, (stride, stride), scale, tiles)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def attend_strides(q, k, v, strides: tuple[int, int], scale: float, tiles: Tiles):
    """As `attend` with one stride of rows and another of columns."""
    return _attend_forward(q, k, v, strides, scale, tiles)[0]


def _attend_forward(q, k, v, strides, scale, tiles):
    b, _, _, heads, _ = q.shape

    def groups(q, k, v):
        shape = q.shape[:-1]
        q, k, v = _merged(q, k, v)
        size = _size(q.shape[-2], b * heads, tiles)
        o, lse = full.forward(q, k, v, None, scale, size, None)
        return o.reshape(*shape, -1), lse.reshape(*shape, 1)

    channels = [(heads, v.shape[-1], v.dtype), (heads, 1, jnp.float32)]
    o, lse = _over_groups(groups, (q, k, v), strides, channels, _together(b * heads, tiles))
    return o, (q, k, v, o, lse)


def _attend_backward(strides, scale, tiles, saved, do):
    q, k, v, o, lse = saved
    b, _, _, heads, _ = q.shape
    delta = softmax.row_delta(do, o)[..., None]  # here, so that o need not be gathered

    def groups(q, k, v, delta, lse, do):
        shapes = [x.shape for x in (q, k, v)]
        q, k, v, delta, lse, do = _merged(q, k, v, delta, lse, do)
        size = _size(q.shape[-2], b * heads, tiles)
        gradients = full.backward(q, k, v, None, delta, lse, do, scale, size, None, tiles)[:3]
        return [x.reshape(shape) for x, shape in zip(gradients, shapes)]

    channels = [(*x.shape[3:], x.dtype) for x in (q, k, v)]
    arrays = (q, k, v, delta, lse, do)
    return tuple(_over_groups(groups, arrays, strides, channels, _together(b * heads, tiles)))


attend_strides.defvjp(_attend_forward, _attend_backward)


def attend_pruned(q, k, v, stride, scale, tiles, prune):
    """GRID_stride attention with Context Pruning, forward only; arguments as for `attend`."""
    b, h, w, heads, _ = q.shape
    positions = jnp.arange(h * w, dtype=jnp.int32).reshape(1, h, w, 1, 1)

    def groups(q, k, v, positions):
        positions = positions.reshape(len(positions), -1)
        return (pruning.attend_rows(q, k, v, positions, prune, scale, tiles),)

    def most(n):
        return tiles.pruned // (tiles.share(b * heads) * n * min(n, 64))

    channels = [(heads, v.shape[-1], v.dtype)]
    return _over_groups(groups, (q, k, v, positions), (stride, stride), channels, most)[0]
