"""Attention over LOCAL graphs of any dilation: LOCAL attention inside each residue class.

Positions whose rows and columns differ by multiples of the dilation form a map of their own. Those
of one size, at most four, become elements of one batch, so many at a time that their scores stay
few.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import grid, groups, local, varying
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.graphs import Local
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune


def attend(inputs: Inputs, graph: Local, options: Options) -> Partial:
    """LOCAL attention; `engine.Attend`."""
    if graph.dilations == (1, 1):
        return local.attend(inputs, graph, options)
    inside = Local(graph.size, border=graph.border)
    b, _, _, heads, _ = inputs.q.shape

    def together(shape: tuple[int, int]) -> int:
        if options.kernels != 'xla':  # no scores are kept
            return math.prod(graph.dilations)
        tiles = [min(n, tile) for n, tile in zip(shape, options.sizes.local)]
        windows = [min(n, t + 2 * s) for n, t, s in zip(shape, tiles, inside.sizes)]
        scores = options.sizes.per_device(b * heads) * math.prod((*tiles, *windows))
        return 2 * options.sizes.scores // scores

    def attend_maps(maps: Sequence[jax.Array]) -> Partial:
        return local.attend(groups.from_maps(maps, inputs.bias), inside, options)

    return _over_classes(attend_maps, inputs, groups.as_maps(inputs), graph.dilations, together)


def attend_pruned(inputs: Inputs, graph: Local, options: Options, prune: Prune) -> Partial:
    """LOCAL attention with Context Pruning; `engine.AttendPruned`."""
    if graph.dilations == (1, 1):
        return local.attend_pruned(inputs, graph, options, prune)
    inside = Local(graph.size, border=graph.border)
    h, w = inputs.q.shape[1:3]
    positions = jnp.arange(h * w, dtype=jnp.int32).reshape(1, h, w, 1, 1)

    def attend_maps(maps: Sequence[jax.Array], options: Options = options) -> Partial:
        own, *arrays = maps
        own = own[0, :, :, 0, 0]
        return local.attend_pruned(groups.from_maps(arrays), inside, options, prune, own)

    def each(f: Callable[[Sequence[jax.Array]], Partial], maps: Sequence[jax.Array]) -> Partial:
        if not options.sizes.few_steps:
            return lax.map(f, maps)
        sizes, classes = options.sizes, len(maps[0])
        sizes = dataclasses.replace(
            sizes, pruned=sizes.pruned // classes, pruned_each=sizes.pruned_each // classes
        )
        own = dataclasses.replace(options, sizes=sizes)
        return jax.vmap(lambda maps: attend_maps(maps, own))(maps)

    if options.kernels == 'pallas':  # by the affinities

        def attend_batch(maps: Sequence[jax.Array]) -> Partial:
            return local.attend_pruned(groups.from_maps(maps), inside, options, prune)

        classes, maps = math.prod(graph.dilations), groups.as_maps(inputs)
        return _over_classes(attend_batch, inputs, maps, graph.dilations, lambda shape: classes)
    # Not as a batch: random priorities depend on the place of an image in its batch.
    maps = (positions, *groups.as_maps(inputs))
    return _over_classes(attend_maps, inputs, maps, graph.dilations, lambda shape: 1, each)


def _over_classes(
    f: Callable[[Sequence[jax.Array]], Partial],
    inputs: Inputs,
    maps: Sequence[jax.Array],
    dilations: tuple[int, int],
    together: Callable[[tuple[int, int]], int],
    each: Callable[..., Partial] = lax.map,
) -> Partial:
    """Attention inside the residue classes of maps.

    Args:
      f: attention over maps [b * classes, height, width, heads, c] of some classes.
      inputs: the arrays of the attention.
      maps: what f gets the classes of, [b or 1, h, w, heads, c].
      dilations: D of rows and of columns.
      together: height and width of a class -> number of classes to take at a time.
      each: carries f out for each element of the leading axis of maps.
    """
    b, h, w = inputs.q.shape[:3]
    arrays = [x for x in inputs if x is not None]
    maps = [grid.split(x, dilations) for x in maps]
    apart = maps[0].shape[1:5]
    out = [
        varying.zeros((b, *apart, spec.heads, spec.channels), spec.dtype, *arrays)
        for spec in groups.result_specs(inputs)
    ]
    runs = itertools.product(grid.residues(h, dilations[0]), grid.residues(w, dilations[1]))
    for rows, columns in runs:
        shape = rows.members, columns.members
        fields = rows.end - rows.first, columns.end - columns.first
        count = _divisor(math.prod(fields), together(shape))
        cut = [
            _stacked(
                x[:, : shape[0], rows.first : rows.end, : shape[1], columns.first : columns.end],
                count,
            )
            for x in maps
        ]
        if len(cut[0]) == 1:
            found = jax.tree.map(lambda x: x[None], f([x[0] for x in cut]))
        else:
            found = each(f, cut)
        corner = (0, 0, rows.first, 0, columns.first, 0, 0)
        for i, x in enumerate((found.o, found.lse[..., None])):
            out[i] = lax.dynamic_update_slice(out[i], _unstacked(x, b, fields), corner)
    o, lse = (
        x.reshape(b, math.prod(apart[:2]), math.prod(apart[2:]), *x.shape[5:])[:, :h, :w]
        for x in out
    )
    return Partial(o, lse[..., 0])


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`, or 1."""
    return next(d for d in range(max(1, min(n, most)), 0, -1) if n % d == 0)


def _stacked(x: jax.Array, count: int) -> jax.Array:
    """[b, ny, gy, nx, gx, heads, c] as [steps, b * count, ny, nx, heads, c], `count` classes each.

    Images come first in a batch, so that its sharding stays what it is.
    """
    b, ny, gy, nx, gx, heads, c = x.shape
    steps = gy * gx // count
    x = x.transpose(2, 4, 0, 1, 3, 5, 6).reshape(steps, count, b, ny, nx, heads, c)
    return jnp.swapaxes(x, 1, 2).reshape(steps, b * count, ny, nx, heads, c)


def _unstacked(x: jax.Array, b: int, fields: tuple[int, int]) -> jax.Array:
    """What `_stacked` makes of [b, ny, gy, nx, gx, heads, c], put back."""
    steps, ny, nx, heads, c = (x.shape[0], *x.shape[2:])
    count = math.prod(fields) // steps
    x = jnp.swapaxes(x.reshape(steps, b, count, ny, nx, heads, c), 1, 2)
    return x.reshape(*fields, b, ny, nx, heads, c).transpose(2, 3, 0, 4, 1, 5, 6)
