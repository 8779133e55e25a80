"""Attention over GRID graphs: dense attention inside each residue class of positions.

Residues r < n mod T of an axis have one member more than the others, so a map falls into at most
four batches of equal groups: no padding and no mask. A scan cuts as many groups at a time from the
map as its scores may be alive.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import flash, layout, pruning, softmax, varying
from ggcf_jax.attention.block_sizes import Options, even
from ggcf_jax.attention.flash import Chunks, Schedule
from ggcf_jax.attention.graphs import Grid
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune
from ggcf_jax.attention.softmax import QueryTile

Strides = tuple[int, int]
Start = Sequence[int] | jax.Array  # first residue of rows and of columns inside their runs


class Run(NamedTuple):
    """Residues [first, end) of an axis that have equally many members."""

    first: int
    end: int
    members: int


class MapSpec(NamedTuple):
    """Heads, channels and dtype of a map [b, h, w, heads, channels] that a loop makes."""

    heads: int
    channels: int
    dtype: jnp.dtype


@dataclasses.dataclass(frozen=True)
class Piece:
    """Equal groups of a map: some residues of a run of rows times some of a run of columns.

    Attributes:
      rows: run of residues of rows.
      columns: run of residues of columns.
      count: number of residues of rows and of columns taken, from a `start` inside the runs.
    """

    rows: Run
    columns: Run
    count: tuple[int, int]

    def gather(self, x: jax.Array, start: Start, strides: Strides, heads: int) -> jax.Array:
        """The groups [groups, b, heads, members, c] of a map [b, h, w, heads * c]."""
        x = _members(x, 2, strides[1], self.columns, start[1], self.count[1])
        x = _members(x, 1, strides[0], self.rows, start[0], self.count[0])
        x = layout.split_heads(x, heads)
        b, ny, gy, nx, gx, heads, c = x.shape
        return x.transpose(2, 4, 0, 5, 1, 3, 6).reshape(gy * gx, b, heads, ny * nx, c)

    def scatter(self, x: jax.Array, start: Start, groups: jax.Array) -> jax.Array:
        """A map [b, ., ty, ., tx, heads * c], rows and columns apart, with the groups put in."""
        _, b, heads, _, c = groups.shape
        shape = (*self.count, b, heads, self.rows.members, self.columns.members, c)
        groups = groups.reshape(shape).transpose(2, 4, 0, 5, 1, 3, 6)
        groups = groups.reshape(*groups.shape[:-2], heads * c)
        corner = (0, 0, self.rows.first + start[0], 0, self.columns.first + start[1], 0)
        return lax.dynamic_update_slice(x, groups, corner)


def attend(inputs: Inputs, graph: Grid, options: Options) -> Partial:
    """GRID attention; `engine.Attend`."""
    return attend_strides(inputs, graph.strides, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def attend_strides(
    inputs: Inputs, strides: Strides, options: Options, skip_self: bool = False
) -> Partial:
    """GRID attention with one stride of rows and another of columns.

    Args:
      inputs: the arrays of the attention.
      strides: T of rows and of columns.
      options: scale and block sizes.
      skip_self: whether positions do not see themselves.
    """
    return _attend(inputs, strides, options, skip_self)


def attend_pruned(inputs: Inputs, graph: Grid, options: Options, prune: Prune) -> Partial:
    """GRID attention with Context Pruning; `engine.AttendPruned`."""
    return attend_strides_pruned(inputs, graph.strides, options, prune)


def attend_strides_pruned(
    inputs: Inputs, strides: Strides, options: Options, prune: Prune
) -> Partial:
    """As `attend_strides` with Context Pruning, forward only."""
    b, h, w, heads, _ = inputs.q.shape
    positions = jnp.arange(h * w, dtype=jnp.int32).reshape(1, h, w, 1, 1)

    def groups(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        positions: jax.Array,
        valid: jax.Array | None = None,
    ) -> Sequence[jax.Array]:
        positions = positions.reshape(positions.shape[0], -1)
        return pruning.attend_rows(q, k, v, valid, positions, prune, options)

    def most(n: int) -> int:
        return options.sizes.pruned // (options.sizes.per_device(b * heads) * n * min(n, 64))

    q, k, v, *valid = as_maps(inputs)
    maps = (q, k, v, positions, *valid)
    o, lse = _over_groups(groups, maps, strides, result_specs(inputs), most)
    return Partial(o, lse[..., 0])


def as_maps(inputs: Inputs) -> tuple[jax.Array, ...]:
    """q, k, v and, where it is given, `valid` as a map of one head and one channel."""
    q, k, v, valid = inputs
    return (q, k, v) if valid is None else (q, k, v, valid[..., None, None])


def from_maps(maps: Sequence[jax.Array]) -> Inputs:
    """The arrays that `as_maps` gives these maps for."""
    q, k, v, *valid = maps
    return Inputs(q, k, v, valid[0][..., 0, 0] if valid else None)


def result_specs(inputs: Inputs) -> list[MapSpec]:
    """The maps of a `Partial`."""
    q, k, v, _ = inputs
    heads = q.shape[3]
    return [MapSpec(heads, v.shape[-1], v.dtype), MapSpec(heads, 1, softmax.accumulator(q, k))]


def residues(n: int, stride: int) -> list[Run]:
    """Runs of residues with equally many members on an axis of n positions."""
    members, longer = divmod(n, stride)
    runs = [Run(0, longer, members + 1), Run(longer, min(stride, n), members)]
    return [run for run in runs if run.end > run.first and run.members]


def split(x: jax.Array, strides: Strides) -> jax.Array:
    """[b, h, w, heads, c] with rows and columns apart by residue: [b, ., ty, ., tx, heads, c]."""
    b, h, w, heads, c = x.shape
    ty, tx = min(strides[0], h), min(strides[1], w)
    x = jnp.pad(x, ((0, 0), (0, -h % ty), (0, -w % tx), (0, 0), (0, 0)))
    return x.reshape(b, -(-h // ty), ty, -(-w // tx), tx, heads, c)


def _attend(inputs: Inputs, strides: Strides, options: Options, skip_self: bool) -> Partial:
    b, _, _, heads, _ = inputs.q.shape

    def groups(
        q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None
    ) -> Sequence[jax.Array]:
        shape = q.shape[:-1]
        (q, k, v), valid = _merged((q, k, v), valid)
        schedule = Schedule(_chunks(q.shape[-2], b * heads, options), options, skip_self=skip_self)
        o, lse = flash.forward(q, k, v, valid, None, schedule)
        return o.reshape(*shape, -1), lse.reshape(*shape, 1)

    most = _groups_per_step(b * heads, options)
    o, lse = _over_groups(groups, as_maps(inputs), strides, result_specs(inputs), most)
    return Partial(o, lse[..., 0])


def _attend_forward(
    inputs: Inputs, strides: Strides, options: Options, skip_self: bool
) -> tuple[Partial, tuple]:
    result = _attend(inputs, strides, options, skip_self)
    return result, (inputs, result)


def _attend_backward(
    strides: Strides, options: Options, skip_self: bool, saved: tuple, gradients: Partial
) -> tuple:
    inputs, result = saved
    q, k, v, _ = inputs
    b, _, _, heads, _ = q.shape
    # The sums of do * o are taken here, so that o need not be gathered.
    queries = softmax.query_tile(
        q, result.o, result.lse[..., None], gradients.o, gradients.lse[..., None]
    )

    def groups(
        q: jax.Array,
        do: jax.Array,
        lse: jax.Array,
        delta: jax.Array,
        k: jax.Array,
        v: jax.Array,
        valid: jax.Array | None = None,
    ) -> Sequence[jax.Array]:
        shapes = [x.shape for x in (q, k, v)]
        (k, v, *tile), valid = _merged((k, v, q, do, lse, delta), valid)
        schedule = Schedule(_chunks(k.shape[-2], b * heads, options), options, skip_self=skip_self)
        *gradients, _ = flash.backward(QueryTile(*tile), k, v, valid, None, schedule)
        return [x.reshape(shape) for x, shape in zip(gradients, shapes)]

    specs = [MapSpec(x.shape[3], x.shape[4], x.dtype) for x in (q, k, v)]
    maps = (*queries, *as_maps(inputs)[1:])
    most = _groups_per_step(b * heads, options)
    found = _over_groups(groups, maps, strides, specs, most)
    dq, dk, dv = (varying.gradient(x, y) for x, y in zip(found, (q, k, v)))
    return (Inputs(dq, dk, dv, None),)


attend_strides.defvjp(_attend_forward, _attend_backward)


def _over_groups(
    f: Callable[..., Sequence[jax.Array]],
    arrays: Sequence[jax.Array],
    strides: Strides,
    specs: Sequence[MapSpec],
    most: Callable[[int], int],
) -> list[jax.Array]:
    """f over the groups of maps, so many at a time that its scores stay few.

    Args:
      f: groups of the arrays [groups, b, heads, members, c] -> groups of each result.
      arrays: maps [b, h, w, heads, c].
      strides: T of rows and of columns.
      specs: one for each map in the result.
      most: number of members of a group -> number of groups to take at a time.

    Returns:
      Maps [b, h, w, heads, c].
    """
    b, h, w = arrays[0].shape[:3]
    ty, tx = min(strides[0], h), min(strides[1], w)
    apart = (b, -(-h // ty), ty, -(-w // tx), tx)
    merged = [(layout.merge_heads(x), x.shape[3]) for x in arrays]
    out = [
        varying.zeros((*apart, spec.heads * spec.channels), spec.dtype, *arrays) for spec in specs
    ]
    for piece, starts in _pieces(h, w, strides, most):

        def step(
            out: list[jax.Array], start: Start, piece: Piece = piece
        ) -> tuple[list[jax.Array], None]:
            groups = f(*(piece.gather(x, start, strides, heads) for x, heads in merged))
            return [piece.scatter(x, start, g) for x, g in zip(out, groups, strict=True)], None

        if len(starts) == 1:  # known at compile time outside of a loop
            out, _ = step(out, starts[0])
        else:
            out, _ = lax.scan(step, out, jnp.array(starts, jnp.int32))
    height, width = math.prod(apart[1:3]), math.prod(apart[3:])
    out = [x.reshape(b, height, width, -1)[:, :h, :w] for x in out]
    return [layout.split_heads(x, spec.heads) for x, spec in zip(out, specs)]


def _pieces(
    h: int, w: int, strides: Strides, most: Callable[[int], int]
) -> Iterator[tuple[Piece, list[tuple[int, int]]]]:
    """Pieces, and where they start, that together hold each group of an h x w map once."""
    for rows, columns in itertools.product(residues(h, strides[0]), residues(w, strides[1])):
        y, x = rows.end - rows.first, columns.end - columns.first
        together = most(rows.members * columns.members)
        # Rounded: a few more groups than that are better than a small rest.
        parts = _parts(y, round(together / x)), _parts(x, together)
        for (height, top), (width, left) in itertools.product(*parts):
            yield Piece(rows, columns, (height, width)), list(itertools.product(top, left))


def _parts(n: int, most: int) -> list[tuple[int, Sequence[int]]]:
    """n residues in equal parts of at most `most`, and what is left: (length, starts) of each."""
    length = even(n, most)
    end = n - n % length
    parts: list[tuple[int, Sequence[int]]] = [(length, range(0, end, length))]
    return parts if end == n else [*parts, (n - end, [end])]


def _groups_per_step(batch: int, options: Options) -> Callable[[int], int]:
    """Number of groups to take at a time, as a function of the members of one."""

    def most(n: int) -> int:
        chunks = _chunks(n, batch, options)
        rows = options.sizes.per_device(batch)
        return options.sizes.scores // (rows * chunks.queries * chunks.keys)

    return most


def _chunks(n: int, batch: int, options: Options) -> Chunks:
    """Chunks of groups of n members, `batch` sequences (batch elements times heads) each."""
    if options.sizes.per_device(batch) * n * n <= options.sizes.scores:
        return Chunks(n, n)
    return flash.choose_chunks(n, batch, options)


def _members(
    x: jax.Array, axis: int, stride: int, run: Run, start: jax.Array | int, count: int
) -> jax.Array:
    """Members of `count` residues of a run from `start` on: the axis becomes two, both apart."""
    n = x.shape[axis]
    stride = min(stride, n)
    periods = n // stride
    whole = lax.slice_in_dim(x, 0, periods * stride, axis=axis)
    whole = whole.reshape(*x.shape[:axis], periods, stride, *x.shape[axis + 1 :])
    whole = lax.dynamic_slice_in_dim(whole, run.first + start, count, axis=axis + 1)
    if run.members == periods:
        return whole
    # Of the longer run the last members lie in the incomplete period.
    last = lax.dynamic_slice_in_dim(x, periods * stride + start, count, axis=axis)
    return lax.concatenate([whole, jnp.expand_dims(last, axis)], axis)


def _merged(
    arrays: Sequence[jax.Array], valid: jax.Array | None
) -> tuple[Sequence[jax.Array], jax.Array | None]:
    """Groups [groups, b * heads, n, c], unless the heads share one v; [groups, n, c] of one."""
    batch, heads = arrays[0].shape[1:3]
    if any(x.shape[2] != heads for x in arrays):
        return arrays, valid
    # XLA:CPU fuses product, softmax and product into one kernel unless an axis has length one.
    one = () if batch * heads == 1 else (batch * heads,)
    if valid is not None:
        valid = jnp.broadcast_to(valid, (*valid.shape[:2], heads, *valid.shape[3:]))
        valid = valid.reshape(valid.shape[0], *one, *valid.shape[3:])
    return [x.reshape(x.shape[0], *one, *x.shape[3:]) for x in arrays], valid
