"""Attention over maps whose rows are dealt over the devices of the mesh axis `space`.

The partitioner cannot see how little of the map a device needs and would gather all of it. Here
each device says what it fetches, and then runs the same engine on its share:

- LOCAL: the rows around its own, from its neighbours (collective-permute);
- GRID: all rows of some residues of columns, in exchange for its own rows (all-to-all);
- FULL and LEARNED: the keys and values of all rows (all-gather; reduce-scatter backward), which is
  linear in the map where the scores are quadratic.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from ggcf_jax.attention import full, grid, learned, local

AXIS = 'space'


def devices():
    """Over how many devices the rows of a map are dealt: 1 without a mesh that has the axis."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)


def attend(q, k, v, *settings_and_module):
    """`module.attend(q, k, v, *settings)` of one of the engine's modules, on dealt rows.

    Args:
      q, k, v: [b, h, w, ., c], h divisible by the devices of `space`.
      settings_and_module: table of a learned graph or setting of the graph, scale, tiles; and the
        module.

    Raises:
      ValueError: b or h is not divisible.
    """
    *settings, module = settings_and_module
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    images = 'data' if 'data' in shape else None
    for name, length, parts in (
        ('height', q.shape[1], shape[AXIS]),
        ('batch', q.shape[0], shape.get('data', 1)),
    ):
        if length % parts:
            raise ValueError(f'{name} {length} of the map is not divisible by {parts} devices')
    f = {local: _local, grid: _grid, full: _full, learned: _learned}[module]
    dealt = PartitionSpec(images, AXIS)
    if module is learned:
        table, *settings = settings
        return jax.shard_map(
            lambda q, k, v, table: f(q, k, v, table, *settings),
            in_specs=(dealt, dealt, dealt, PartitionSpec()),
            out_specs=dealt,
            check_vma=False,
        )(q, k, v, table)
    return jax.shard_map(
        lambda q, k, v: f(q, k, v, *settings),
        in_specs=(dealt, dealt, dealt),
        out_specs=dealt,
        check_vma=False,
    )(q, k, v)


def _local(q, k, v, size, scale, tiles):
    count, rows = lax.axis_size(AXIS), q.shape[1]
    margin = min(size, (count - 1) * rows)
    k, v = (_with_neighbours(x, margin, count) for x in (k, v))
    above = margin - lax.axis_index(AXIS) * rows  # rows before the first of the map
    rows_of_map = jnp.stack([above, above + count * rows])
    return local.attend_rows(q, k, v, rows_of_map, size, scale, tiles)


def _with_neighbours(x, margin, count):
    """`margin` more rows above and below; zeros past the ends of the map."""
    rows = x.shape[1]
    above, below = [], []
    for distance in range(1, math.ceil(margin / rows) + 1):
        some = min(rows, margin - (distance - 1) * rows)
        down = [(i, i + distance) for i in range(count - distance)]
        up = [(i + distance, i) for i in range(count - distance)]
        above.insert(0, lax.ppermute(x[:, rows - some :], AXIS, down))
        below.append(lax.ppermute(x[:, :some], AXIS, up))
    return jnp.concatenate([*above, x, *below], axis=1)


def _grid(q, k, v, stride, scale, tiles):
    count, (b, rows, w, heads, _) = lax.axis_size(AXIS), q.shape
    maps = [grid.split(x, (1, stride))[:, :, 0] for x in (q, k, v)]  # [b, rows, ., tx, heads, c]
    out = jnp.zeros((*maps[0].shape[:4], heads, v.shape[-1]), v.dtype)
    for first, end, members in grid.residues(w, stride):
        # Residues of equally many members, filled up so that every device gets equally many.
        share = math.ceil((end - first) / count)
        runs = [x[:, :, :members, first:end] for x in maps]
        runs = [
            jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, share * count - end + first), (0, 0), (0, 0)))
            for x in runs
        ]
        swap = functools.partial(lax.all_to_all, axis_name=AXIS, tiled=True)
        columns = [swap(x, split_axis=3, concat_axis=1) for x in runs]
        columns = [x.reshape(b, count * rows, members * share, *x.shape[4:]) for x in columns]
        o = grid.attend_strides(*columns, (stride, share), scale, tiles)
        o = swap(o.reshape(b, count * rows, members, share, heads, -1), split_axis=1, concat_axis=3)
        out = lax.dynamic_update_slice(out, o[:, :, :, : end - first], (0, 0, 0, first, 0, 0))
    return out.reshape(b, rows, -1, heads, v.shape[-1])[:, :, :w]


def _all_rows(x):
    return lax.all_gather(x, AXIS, axis=1, tiled=True)


def _full(q, k, v, scale, tiles):
    return full.attend(q, _all_rows(k), _all_rows(v), scale, tiles)


def _learned(q, k, v, table, scale, tiles):
    k, v = _all_rows(k), _all_rows(v)
    rows, h = q.shape[1], k.shape[1]
    # The offsets from this device's rows to all rows.
    own = lax.dynamic_slice_in_dim(table, lax.axis_index(AXIS) * rows, rows + h - 1)
    return learned.attend(q, k, v, own, scale, tiles)
