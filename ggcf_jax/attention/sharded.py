"""Attention over maps whose rows are sharded over the devices of the mesh axis `space`.

The partitioner cannot see how little of the map a device needs and would gather all of it. Here
each device says what it fetches, and then runs the same engine on its share:

- LOCAL: the rows around its own, from its neighbours (collective-permute);
- GRID, COLUMN, dilated LOCAL: all rows of some residues of columns, in exchange for its own rows
  (all-to-all);
- ROW: nothing; CROSS and unions: what their parts do;
- BLOCK: nothing where blocks end with the rows of a device, else all rows of some blocks of columns
  (all-to-all);
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

from ggcf_jax.attention import (
    axial,
    block,
    dilated,
    full,
    grid,
    groups,
    local,
    position_bias,
    union,
)
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.graphs import Block, Column, Full, Grid, Learned, Local, Row
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.union import Rest

AXIS = 'space'


def num_devices() -> int:
    """Number of devices that share the rows of a map: 1 without a mesh that has the axis.

    Inside a `jax.shard_map` that has taken the axis, a map's rows are all on one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if AXIS in mesh.manual_axes else dict(mesh.shape).get(AXIS, 1)


def num_shares() -> int:
    """Number of devices or groups of them that share the images of a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if 'data' in mesh.manual_axes else dict(mesh.shape).get('data', 1)


def is_partly_manual() -> bool:
    """Whether a `jax.shard_map` has taken some axes of the mesh, but not all."""
    mesh = jax.sharding.get_abstract_mesh()
    return 0 < len(mesh.manual_axes) < len(mesh.axis_names)


def attend(
    attend_rows: Callable[..., Partial], inputs: Inputs, graph: Any, options: Options
) -> Partial:
    """Attention on each device's share of the images and, on the axis `space`, of their rows.

    Args:
      attend_rows: `engine.Engine.attend_sharded` of the graph; `attend` where the mesh has no
        `space`.
      inputs: the arrays; h is divisible by the devices of `space`, b by those of `data`.
      graph: graph of all heads; its parameters are replicated.
      options: scale and block sizes of one device.

    Raises:
      ValueError: b or h is not divisible.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shape = {name: n for name, n in mesh.shape.items() if name not in mesh.manual_axes}
    images = 'data' if 'data' in shape else None
    across = AXIS if AXIS in shape else None
    for name, length, parts in (
        ('height', inputs.q.shape[1], shape.get(AXIS, 1)),
        ('batch', inputs.q.shape[0], shape.get('data', 1)),
    ):
        if length % parts:
            raise ValueError(f'{name} {length} of the map is not divisible by {parts} devices')
    rows, whole = PartitionSpec(images, across), PartitionSpec()
    # Mosaic wants every axis of the mesh, those that shard nothing among them.
    alone = {name for name, n in shape.items() if n == 1 and options.kernels == 'pallas'}

    def run(bias: jax.Array | None, graph: Any, *maps: Any) -> Partial:
        q, k, v, valid, frame = maps
        return attend_rows(Inputs(q, k, v, valid, bias, frame), graph, options)

    return jax.shard_map(
        run,
        in_specs=(whole, whole, rows, rows, rows, rows, rows),
        out_specs=rows,
        axis_names=({across, images} - {None}) | alone,
        check_vma=False,
    )(inputs.bias, graph, *inputs[:4], inputs.frame)


def full_rows(inputs: Inputs, graph: Full, options: Options) -> Partial:
    """FULL attention of one device's rows; `engine.Attend`."""
    inputs = _with_all_keys(inputs)
    if inputs.bias is None:
        return full.attend(inputs, graph, options)
    rows, (h, w) = inputs.q.shape[1], inputs.k.shape[1:3]
    table = _own_offsets(position_bias.of_size(inputs.bias, h, w), rows, h)
    return position_bias.attend_table(inputs, table, options)


def local_rows(inputs: Inputs, graph: Local, options: Options) -> Partial:
    """LOCAL attention of one device's rows; `engine.Attend`."""
    if graph.dilations != (1, 1):

        def attend_columns(inputs: Inputs, share: int) -> Partial:
            dilations = graph.dilations[0], share
            return dilated.attend(inputs, Local(graph.size, dilations, graph.border), options)

        return over_columns(attend_columns, inputs, graph.dilations[1])
    count, rows = lax.axis_size(AXIS), inputs.q.shape[1]
    reach = graph.sizes[0] * (2 if graph.border == 'shift' else 1)
    margin = min(reach, (count - 1) * rows)
    inputs = _over_keys(lambda x: _with_neighbours(x, margin, count), inputs)
    above = margin - lax.axis_index(AXIS) * rows  # rows before the first of the map
    rows_of_map = jnp.stack([above, above + count * rows])
    return local.attend_rows(inputs, rows_of_map, graph, options)


def grid_rows(inputs: Inputs, graph: Grid, options: Options) -> Partial:
    """GRID attention of one device's rows; `engine.Attend`."""
    return _grid_rows(inputs, graph.strides, options)


def column_rows(inputs: Inputs, graph: Column, options: Options) -> Partial:
    """COLUMN attention of one device's rows; `engine.Attend`."""
    return _grid_rows(inputs, (1, inputs.q.shape[2]), options)


def _grid_rows(inputs: Inputs, strides: grid.Strides, options: Options) -> Partial:
    """GRID attention of one device's rows, with one stride of rows and another of columns."""

    def attend_columns(inputs: Inputs, share: int) -> Partial:
        return groups.attend(inputs, grid.Residues((strides[0], share)), options)

    return over_columns(attend_columns, inputs, strides[1])


def rest_rows(inputs: Inputs, rest: Rest, options: Options) -> Partial:
    """`union.attend_rest` of one device's rows."""
    rows, w = inputs.q.shape[1:3]
    size = lax.axis_size(AXIS) * rows, w
    if isinstance(rest.graph, Row):
        return groups.attend(inputs, axial.rows(inputs), options, rest.skip(size))
    step = union.strides(rest.graph, size)

    def attend_columns(inputs: Inputs, share: int) -> Partial:
        partition = grid.Residues((step[0], share))
        return groups.attend(inputs, partition, options, rest.skip(size))

    return over_columns(attend_columns, inputs, step[1])


def block_rows(inputs: Inputs, graph: Block, options: Options) -> Partial:
    """BLOCK attention of one device's rows; `engine.Attend`."""
    count, (b, rows, w) = lax.axis_size(AXIS), inputs.q.shape[:3]
    (height, width), (top, left) = graph.sizes, graph.shifts
    if (rows % height == 0 and top == 0) or height == 1:
        return block.attend(inputs, graph, options)  # a block lies on one device
    # Whole blocks of columns, equally many for every device. Positions before and behind the map
    # fill them up: they are not valid.
    before = -left % width
    blocks = -(-(before + w) // width)
    strip = -(-blocks // count) * width
    fill = (before, strip * count - before - w)
    maps = groups.as_maps(inputs)
    if any(fill) and inputs.valid is None:
        maps = (*maps, jnp.ones((b, rows, w, 1, 1), bool))
    swap = functools.partial(lax.all_to_all, axis_name=AXIS, tiled=True)
    strips = [jnp.pad(x, ((0, 0), (0, 0), fill, (0, 0), (0, 0))) for x in maps]
    strips = [swap(x, split_axis=2, concat_axis=1) for x in strips]
    part = block.attend(
        groups.from_maps(strips, inputs.bias), Block((height, width), (top, 0)), options
    )
    o, lse = (swap(x, split_axis=1, concat_axis=2)[:, :, before : before + w] for x in part)
    return Partial(o, lse)


def over_columns(
    attend_columns: Callable[[Inputs, int], Partial], inputs: Inputs, stride: int
) -> Partial:
    """Attention inside the residues of columns: devices exchange rows for columns and back.

    Args:
      attend_columns: attention over a map of all rows that has the columns of some residues,
        column x being of residue x % share, and that number, `share`.
      inputs: the arrays of one device's rows.
      stride: T of columns.
    """
    count = lax.axis_size(AXIS)
    b, rows, w, heads, _ = inputs.q.shape
    swap = functools.partial(lax.all_to_all, axis_name=AXIS, tiled=True)
    # Each [b, rows, ., tx, heads, c].
    maps = [grid.split(x, (1, stride))[:, :, 0] for x in groups.as_maps(inputs)]
    out = [
        jnp.zeros((*maps[0].shape[:4], spec.heads, spec.channels), spec.dtype)
        for spec in groups.result_specs(inputs)
    ]
    for run in grid.residues(w, stride):
        # Residues of equally many members, filled up so that every device gets equally many.
        residues = run.end - run.first
        share = math.ceil(residues / count)
        fill = ((0, 0), (0, 0), (0, 0), (0, share * count - residues), (0, 0), (0, 0))
        runs = [jnp.pad(x[:, :, : run.members, run.first : run.end], fill) for x in maps]
        columns = [swap(x, split_axis=3, concat_axis=1) for x in runs]
        columns = [x.reshape(b, count * rows, run.members * share, *x.shape[4:]) for x in columns]
        part = attend_columns(groups.from_maps(columns, inputs.bias), share)
        for i, x in enumerate((part.o, part.lse[..., None])):
            x = x.reshape(b, count * rows, run.members, share, heads, -1)
            x = swap(x, split_axis=1, concat_axis=3)[:, :, :, :residues]
            out[i] = lax.dynamic_update_slice(out[i], x, (0, 0, 0, run.first, 0, 0))
    o, lse = (x.reshape(b, rows, -1, heads, x.shape[-1])[:, :, :w] for x in out)
    return Partial(o, lse[..., 0])


def learned_rows(inputs: Inputs, graph: Learned, options: Options) -> Partial:
    """LEARNED attention of one device's rows; `engine.Attend`."""
    inputs = _with_all_keys(inputs)
    rows, (h, w) = inputs.q.shape[1], inputs.k.shape[1:3]
    table = _own_offsets(graph.log_table(h, w)[None], rows, h)
    return position_bias.attend_table(inputs, table, options)


def _own_offsets(table: jax.Array, rows: int, h: int) -> jax.Array:
    """Of a table [heads, 2h-1, 2w-1] the offsets from this device's rows to all rows."""
    first = lax.axis_index(AXIS) * rows
    return lax.dynamic_slice_in_dim(table, first, rows + h - 1, axis=1)


def _over_keys(f: Callable[[jax.Array], jax.Array], inputs: Inputs) -> Inputs:
    """The arrays with f applied to all but the queries."""
    valid, frame = (x if x is None else f(x) for x in (inputs.valid, inputs.frame))
    return Inputs(inputs.q, f(inputs.k), f(inputs.v), valid, inputs.bias, frame)


def _with_all_keys(inputs: Inputs) -> Inputs:
    """The arrays with the keys of all devices."""
    return _over_keys(lambda x: lax.all_gather(x, AXIS, axis=1, tiled=True), inputs)


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
