"""Attention over GRID graphs: dense attention inside each residue class of positions.

Residues r < n mod T of an axis have one member more than the others, so a map falls into at most
four batches of equal groups: no padding and no mask.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import full, pruning, softmax
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


def _members(x, axis, stride, run):
    """The members of a run of residues: the axis becomes two, members and residues."""
    first, end, members = run
    stride = min(stride, x.shape[axis])

    def rows(start, count, stride):
        part = lax.slice_in_dim(x, start, start + count * stride, axis=axis)
        return part.reshape(*x.shape[:axis], count, stride, *x.shape[axis + 1 :])

    if first + members * stride <= x.shape[axis]:
        return lax.slice_in_dim(rows(first, members, stride), 0, end - first, axis=axis + 1)
    # Of the longer run the last members lie in an incomplete period.
    whole = rows(first, members - 1, stride)
    last = rows(first + (members - 1) * stride, 1, end - first)
    return lax.concatenate([lax.slice_in_dim(whole, 0, end - first, axis=axis + 1), last], axis)


def gather(x, strides, rows, columns):
    """The groups of one batch: [groups, b, heads, members, c] of a map [b, h, w, heads, c]."""
    x = _members(_members(x, 2, strides[1], columns), 1, strides[0], rows)
    b, ny, gy, nx, gx, heads, c = x.shape
    return x.transpose(2, 4, 0, 5, 1, 3, 6).reshape(gy * gx, b, heads, ny * nx, c)


def scatter(x, groups, rows, columns):
    """A map as `split` gives it with the groups that `gather` would take written into it."""
    _, b, heads, _, c = groups.shape
    shape = (rows[1] - rows[0], columns[1] - columns[0], b, heads, rows[2], columns[2], c)
    groups = groups.reshape(shape).transpose(2, 4, 0, 5, 1, 3, 6)
    return lax.dynamic_update_slice(x, groups, (0, 0, rows[0], 0, columns[0], 0, 0))


def map_groups(f, arrays, most):
    """f over chunks of at most `most` groups, the first axis of all arrays and results."""
    n = len(arrays[0])
    size = even(n, most)
    if size == n:
        return f(*arrays)

    def chunk(out, t):
        # The last chunk starts early enough to be full: those groups are computed twice, equally.
        start = jnp.minimum(t * size, n - size)
        pieces = f(*(lax.dynamic_slice_in_dim(x, start, size) for x in arrays))
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, out, pieces), None

    shapes = jax.eval_shape(f, *(x[:size] for x in arrays))
    out = jax.tree.map(lambda x: jnp.zeros((n, *x.shape[1:]), x.dtype), shapes)
    return lax.scan(chunk, out, jnp.arange(-(-n // size)))[0]


def _merged(q, k, v, *others):
    """Groups [groups, b * heads, n, c], unless the heads share one v; [groups, n, c] of one."""
    arrays = (q, k, v, *others)
    batch, heads = q.shape[1:3]
    if heads != v.shape[2]:
        return arrays
    # XLA:CPU fuses product, softmax and product into one kernel unless an axis has length one.
    one = () if batch * heads == 1 else (batch * heads,)
    return [x.reshape(len(x), *one, *x.shape[3:]) for x in arrays]


def _plan(q, tiles):
    """Chunks of the groups q [groups, ..., heads, n, dk], and groups at a time."""
    n, batch = q.shape[-2], math.prod(q.shape[1:-2])
    size = full.chunks(n, batch, tiles)
    own = tiles.share(batch)
    if own * n * n <= tiles.scores:
        size = full.Chunks(n, n)
    return size, max(1, tiles.scores // (own * size.queries * size.keys))


def _batches(h, w, strides):
    """The batches of equal groups: a run of rows and a run of columns each."""
    return [
        (rows, columns) for rows in residues(h, strides[0]) for columns in residues(w, strides[1])
    ]


def _over_batches(f, arrays, strides, channels):
    """f(*groups of the arrays, index of the batch) for each batch, its results put into maps.

    Args:
      arrays: maps [b, h, w, heads, c].
      channels: (heads, c, dtype) of each map in the result.

    Returns:
      Maps [b, h, w, heads, c]; and of each batch what f returns besides their groups.
    """
    b, h, w = arrays[0].shape[:3]
    ty, tx = min(strides[0], h), min(strides[1], w)
    apart = (b, -(-h // ty), ty, -(-w // tx), tx)
    maps, rest = [jnp.zeros((*apart, heads, c), dtype) for heads, c, dtype in channels], []
    for i, batch in enumerate(_batches(h, w, strides)):
        groups, other = f(*(gather(x, strides, *batch) for x in arrays), i)
        maps = [scatter(x, g, *batch) for x, g in zip(maps, groups, strict=True)]
        rest.append(other)
    height, width = math.prod(apart[1:3]), math.prod(apart[3:])
    return [x.reshape(b, height, width, *x.shape[5:])[:, :h, :w] for x in maps], rest


def attend(q, k, v, stride, scale, tiles):
    """GRID_stride attention, q, k [b, h, w, heads, dk], v [b, h, w, heads or 1, dv]."""
    return attend_strides(q, k, v, (stride, stride), scale, tiles)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def attend_strides(q, k, v, strides: tuple[int, int], scale: float, tiles: Tiles):
    """As `attend` with one stride of rows and another of columns."""
    return _attend_forward(q, k, v, strides, scale, tiles)[0]


def _attend_forward(q, k, v, strides, scale, tiles):
    def batch(q, k, v, i):
        shape = (*q.shape[:-1], v.shape[-1])
        q, k, v = _merged(q, k, v)
        size, most = _plan(q, tiles)
        o, lse = map_groups(
            lambda q, k, v: full.forward(q, k, v, None, scale, size, None), (q, k, v), most
        )
        return (o.reshape(shape),), lse

    (o,), lse = _over_batches(batch, (q, k, v), strides, [(q.shape[3], v.shape[-1], v.dtype)])
    return o, (q, k, v, o, lse)


def _attend_backward(strides, scale, tiles, saved, do):
    q, k, v, o, lse = saved
    delta = softmax.row_delta(do, o)[..., None]  # here, so that o need not be gathered

    def batch(q, k, v, delta, do, i):
        shapes = [x.shape for x in (q, k, v)]
        q, k, v, delta, do = _merged(q, k, v, delta, do)
        size, most = _plan(q, tiles)
        gradients = map_groups(
            lambda q, k, v, delta, lse, do: full.backward(
                q, k, v, None, delta, lse, do, scale, size, None, tiles
            )[:3],
            (q, k, v, delta, lse[i], do),
            most,
        )
        return [x.reshape(shape) for x, shape in zip(gradients, shapes)], None

    channels = [(*x.shape[3:], x.dtype) for x in (q, k, v)]
    return tuple(_over_batches(batch, (q, k, v, delta, do), strides, channels)[0])


attend_strides.defvjp(_attend_forward, _attend_backward)


def attend_pruned(q, k, v, stride, scale, tiles, prune):
    """GRID_stride attention with Context Pruning, forward only; arguments as for `attend`."""
    b, h, w, heads, _ = q.shape
    batches = _batches(h, w, (stride, stride))

    def batch(q, k, v, i):
        y, x = (
            jnp.arange(first, end)[:, None] + min(stride, n) * jnp.arange(members)
            for n, (first, end, members) in zip((h, w), batches[i])
        )
        position = y[:, None, :, None] * w + x[None, :, None, :]
        n = q.shape[3]
        most = max(1, tiles.pruned // (tiles.share(b * heads) * n * min(n, 64)))
        o = map_groups(
            lambda q, k, v, i: pruning.attend_rows(q, k, v, i, prune, scale, tiles),
            (q, k, v, position.reshape(-1, n)),
            most,
        )
        return (o,), None

    strides, channels = (stride, stride), [(heads, v.shape[-1], v.dtype)]
    return _over_batches(batch, (q, k, v), strides, channels)[0][0]
