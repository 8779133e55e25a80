"""Attention over maps whose rows are sharded over the devices of the mesh axis `space`.

The partitioner cannot see how little of the map a device needs and would gather all of it. Here
each device says what it fetches, and then runs the same engine on its share:

- LOCAL: the rows around its own, from its neighbours (collective-permute);
- GRID, COLUMN: all rows of some residues of columns, in exchange for its own rows (all-to-all);
- ROW: nothing;
- FULL and LEARNED: the keys and values of all rows (all-gather; reduce-scatter backward), which is
  linear in the map where the scores are quadratic.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from ggcf_jax.attention import full, grid, learned, local
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.graphs import Column, Full, Grid, Learned, Local

AXIS = 'space'


def num_devices() -> int:
    """Number of devices that share the rows of a map: 1 without a mesh that has the axis.

    Inside a `jax.shard_map` that has taken the axis, a map's rows are all on one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if AXIS in mesh.manual_axes else dict(mesh.shape).get(AXIS, 1)


def attend(
    attend_rows: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    graph: Any,
    options: Options,
) -> jax.Array:
    """Attention over sharded rows.

    Args:
      attend_rows: `engine.Engine.attend_sharded` of the graph.
      q: queries [b, h, w, heads, dk], h divisible by the devices of `space`, b by those of `data`.
      k: keys [b, h, w, heads, dk].
      v: values [b, h, w, heads or 1, dv].
      graph: graph of all heads; its parameters are replicated.
      options: scale and block sizes of one device.

    Raises:
      ValueError: b or h is not divisible.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shape = {name: n for name, n in mesh.shape.items() if name not in mesh.manual_axes}
    images = 'data' if 'data' in shape else None
    for name, length, parts in (
        ('height', q.shape[1], shape[AXIS]),
        ('batch', q.shape[0], shape.get('data', 1)),
    ):
        if length % parts:
            raise ValueError(f'{name} {length} of the map is not divisible by {parts} devices')
    rows = PartitionSpec(images, AXIS)
    return jax.shard_map(
        functools.partial(attend_rows, options=options),
        in_specs=(rows, rows, rows, PartitionSpec()),
        out_specs=rows,
        axis_names={AXIS, images} - {None},
        check_vma=False,
    )(q, k, v, graph)


def full_rows(q: jax.Array, k: jax.Array, v: jax.Array, graph: Full, options: Options) -> jax.Array:
    """FULL attention of one device's rows; `engine.Attend`."""
    return full.attend(q, _all_rows(k), _all_rows(v), graph, options)


def local_rows(
    q: jax.Array, k: jax.Array, v: jax.Array, graph: Local, options: Options
) -> jax.Array:
    """LOCAL attention of one device's rows; `engine.Attend`."""
    count, rows = lax.axis_size(AXIS), q.shape[1]
    margin = min(graph.sizes[0], (count - 1) * rows)
    k, v = (_with_neighbours(x, margin, count) for x in (k, v))
    above = margin - lax.axis_index(AXIS) * rows  # rows before the first of the map
    rows_of_map = jnp.stack([above, above + count * rows])
    return local.attend_rows(q, k, v, rows_of_map, graph.sizes, options)


def grid_rows(q: jax.Array, k: jax.Array, v: jax.Array, graph: Grid, options: Options) -> jax.Array:
    """GRID attention of one device's rows; `engine.Attend`."""
    return _grid_rows(q, k, v, graph.strides, options)


def column_rows(
    q: jax.Array, k: jax.Array, v: jax.Array, graph: Column, options: Options
) -> jax.Array:
    """COLUMN attention of one device's rows; `engine.Attend`."""
    return _grid_rows(q, k, v, (1, q.shape[2]), options)


def _grid_rows(
    q: jax.Array, k: jax.Array, v: jax.Array, strides: grid.Strides, options: Options
) -> jax.Array:
    """GRID attention of one device's rows, with one stride of rows and another of columns."""
    count, (b, rows, w, heads, _) = lax.axis_size(AXIS), q.shape
    # Each [b, rows, ., tx, heads, c].
    maps = [grid.split(x, (1, strides[1]))[:, :, 0] for x in (q, k, v)]
    out = jnp.zeros((*maps[0].shape[:4], heads, v.shape[-1]), v.dtype)
    swap = functools.partial(lax.all_to_all, axis_name=AXIS, tiled=True)
    for run in grid.residues(w, strides[1]):
        # Residues of equally many members, filled up so that every device gets equally many.
        residues = run.end - run.first
        share = math.ceil(residues / count)
        fill = ((0, 0), (0, 0), (0, 0), (0, share * count - residues), (0, 0), (0, 0))
        runs = [jnp.pad(x[:, :, : run.members, run.first : run.end], fill) for x in maps]
        columns = [swap(x, split_axis=3, concat_axis=1) for x in runs]
        columns = [x.reshape(b, count * rows, run.members * share, *x.shape[4:]) for x in columns]
        o = grid.attend_strides(*columns, (strides[0], share), options)
        o = o.reshape(b, count * rows, run.members, share, heads, -1)
        o = swap(o, split_axis=1, concat_axis=3)
        out = lax.dynamic_update_slice(out, o[:, :, :, :residues], (0, 0, 0, run.first, 0, 0))
    return out.reshape(b, rows, -1, heads, v.shape[-1])[:, :, :w]


def learned_rows(
    q: jax.Array, k: jax.Array, v: jax.Array, graph: Learned, options: Options
) -> jax.Array:
    """LEARNED attention of one device's rows; `engine.Attend`."""
    k, v = _all_rows(k), _all_rows(v)
    rows, (h, w) = q.shape[1], k.shape[1:3]
    # The offsets from this device's rows to all rows.
    first = lax.axis_index(AXIS) * rows
    own = lax.dynamic_slice_in_dim(graph.log_table(h, w), first, rows + h - 1)
    return learned.attend_table(q, k, v, own, options)


def _with_neighbours(x: jax.Array, margin: int, count: int) -> jax.Array:
    """x with `margin` more rows above and below; zeros past the ends of the map."""
    rows = x.shape[1]
    above: list[jax.Array] = []
    below: list[jax.Array] = []
    for distance in range(1, math.ceil(margin / rows) + 1):
        some = min(rows, margin - (distance - 1) * rows)
        down = [(i, i + distance) for i in range(count - distance)]
        up = [(i + distance, i) for i in range(count - distance)]
        above.insert(0, lax.ppermute(x[:, rows - some :], AXIS, down))
        below.append(lax.ppermute(x[:, :some], AXIS, up))
    return jnp.concatenate([*above, x, *below], axis=1)


def _all_rows(x: jax.Array) -> jax.Array:
    """The rows of all devices."""
    return lax.all_gather(x, AXIS, axis=1, tiled=True)
