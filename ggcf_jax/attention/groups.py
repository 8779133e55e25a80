"""Dense attention inside groups of positions: the residue classes of GRID, the blocks of BLOCK.

A partition says how a map falls into groups that do not overlap. Groups of one size form a piece: a
batch without padding and without a mask. A scan cuts as many groups at a time from the map as its
scores may be alive.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import cudnn, flash, layout, position_bias, pruning, softmax, varying
from ggcf_jax.attention import frame as frames
from ggcf_jax.attention.block_sizes import Options, even
from ggcf_jax.attention.flash import Chunks, Schedule
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.position_bias import OffsetBias
from ggcf_jax.attention.pruning import Prune
from ggcf_jax.attention.softmax import QueryTile

_ALL = 1 << 62  # more groups than a map has

Start = Sequence[int] | jax.Array  # number of the first group taken along rows and along columns


class Piece(Protocol):
    """Some groups of one size, from a `start` on that the methods are given."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns of a group: its members are numbered row by row."""

    def gather(self, x: jax.Array, start: Start, heads: int) -> jax.Array:
        """The groups [groups, b, heads, members, c] of a map [b, h, w, heads * c]."""

    def scatter(self, x: jax.Array, start: Start, groups: jax.Array) -> jax.Array:
        """The map x, of the shape `Partition.apart` and [heads * c], with the groups put in."""


class Partition(Protocol):
    """How maps fall into groups; hashable."""

    def apart(self, h: int, w: int) -> tuple[int, int, int, int]:
        """Shape of a map that `Piece.scatter` writes: two axes for rows and two for columns.

        Together they may be longer than the map.
        """

    def pieces(
        self, h: int, w: int, most: Callable[[int], int]
    ) -> Iterator[tuple[Piece, list[tuple[int, int]]]]:
        """Pieces, and where they start, that together hold each group of an h x w map once.

        Args:
          h, w: height and width of the map.
          most: number of members of a group -> number of groups to take at a time.
        """


class Skip(Protocol):
    """Says which members of a group do not see which, though they are in one; hashable."""

    def of(self, width: int) -> flash.Skip:
        """The same for a group whose members are numbered by rows of this length."""


class MapSpec(NamedTuple):
    """Heads, channels and dtype of a map [b, h, w, heads, channels] that a loop makes."""

    heads: int
    channels: int
    dtype: jnp.dtype


def attend(
    inputs: Inputs, partition: Partition, options: Options, skip: Skip | None = None
) -> Partial:
    """Attention of each position to those of its group.

    Args:
      inputs: the arrays of the attention.
      partition: the groups.
      options: scale and block sizes.
      skip: who does not see whom in a group; None where all see all.
    """
    if options.kernels == 'cudnn':
        return _attend_fused(inputs, partition, options, skip)
    return _attend_chunks(inputs, partition, options, skip)


def attend_pruned(inputs: Inputs, partition: Partition, options: Options, prune: Prune) -> Partial:
    """As `attend` with Context Pruning, forward only."""
    b, h, w, heads, _ = inputs.q.shape
    positions = jnp.arange(h * w, dtype=jnp.int32).reshape(1, h, w, 1, 1)

    def groups(
        members: tuple[int, int],
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        positions: jax.Array,
        valid: jax.Array | None = None,
    ) -> Sequence[jax.Array]:
        positions = positions.reshape(positions.shape[0], -1)
        return pruning.attend_rows(q, k, v, valid, positions, prune, options)

    def most(n: int) -> int:
        return options.sizes.pruned_in(1, b * heads) // (n * min(n, 64))

    q, k, v, *valid = as_maps(inputs)
    maps = (q, k, v, positions, *valid)
    o, lse = _over_groups(groups, maps, partition, result_specs(inputs), most)
    return Partial(o, lse[..., 0])


def as_maps(inputs: Inputs) -> tuple[jax.Array, ...]:
    """q, k, v and, where they are given, `valid` and `frame` as maps of one channel."""
    masks = [x[..., None, None] for x in (inputs.valid, inputs.frame) if x is not None]
    return (*inputs[:3], *masks)


def from_maps(maps: Sequence[jax.Array], bias: jax.Array | None = None) -> Inputs:
    """The arrays that `as_maps` gives these maps for, with the bias, which is no map."""
    q, k, v, *masks = maps
    valid, frame = [*(x[..., 0, 0] for x in masks), None, None][:2]
    return Inputs(q, k, v, valid, bias, frame)


def result_specs(inputs: Inputs) -> list[MapSpec]:
    """The maps of a `Partial`."""
    q, k, v = inputs[:3]
    heads = q.shape[3]
    return [MapSpec(heads, v.shape[-1], v.dtype), MapSpec(heads, 1, softmax.accumulator(q, k))]


def _attend_fused(
    inputs: Inputs, partition: Partition, options: Options, skip: Skip | None
) -> Partial:
    """`attend` by fused kernels: all groups of one size together."""

    def groups(members: tuple[int, int], *maps: jax.Array) -> Sequence[jax.Array]:
        count, b, heads, n, _ = maps[0].shape
        q, k, v, *valid = (
            jnp.swapaxes(x.reshape(count * b, x.shape[2], n, x.shape[4]), 1, 2) for x in maps
        )
        strangers = None
        if skip is not None:
            at = jnp.arange(n)
            strangers = skip.of(members[1])(at[:, None], at, None)
        o, lse = cudnn.attend(q, k, v, options, valid[0] if valid else None, strangers)
        found = (jnp.swapaxes(x, 1, 2) for x in (o, lse[..., None]))
        return [x.reshape(count, b, heads, n, -1) for x in found]

    specs = result_specs(inputs)
    o, lse = _over_groups(groups, as_maps(inputs), partition, specs, lambda n: _ALL)
    return Partial(o, lse[..., 0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _attend_chunks(
    inputs: Inputs, partition: Partition, options: Options, skip: Skip | None
) -> Partial:
    return _attend(inputs, partition, options, skip)


def _attend(inputs: Inputs, partition: Partition, options: Options, skip: Skip | None) -> Partial:
    b, _, _, heads, _ = inputs.q.shape

    def groups(
        members: tuple[int, int],
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *masks: jax.Array,
    ) -> Sequence[jax.Array]:
        shape = q.shape[:-1]
        schedule = _schedule(inputs, members, options, skip)
        valid, ends = _hidden(masks)
        table = None
        if inputs.bias is None:
            (q, k, v), (valid, ends) = _merged((q, k, v), (valid, ends))
        else:
            table = _table(inputs.bias, members, schedule)
        o, lse = flash.forward(q, k, v, valid, table, schedule, ends)
        return o.reshape(*shape, -1), lse.reshape(*shape, 1)

    most = _groups_per_step(b * heads, options)
    o, lse = _over_groups(groups, as_maps(inputs), partition, result_specs(inputs), most)
    return Partial(o, lse[..., 0])


def _attend_forward(
    inputs: Inputs, partition: Partition, options: Options, skip: Skip | None
) -> tuple[Partial, tuple]:
    result = _attend(inputs, partition, options, skip)
    return result, (inputs, result)


def _attend_backward(
    partition: Partition, options: Options, skip: Skip | None, saved: tuple, gradients: Partial
) -> tuple:
    inputs, result = saved
    q, k, v = inputs[:3]
    # The sums of do * o are taken here, so that o need not be gathered.
    queries = softmax.query_tile(
        q, result.o, result.lse[..., None], gradients.o, gradients.lse[..., None]
    )

    def groups(
        members: tuple[int, int],
        q: jax.Array,
        do: jax.Array,
        lse: jax.Array,
        delta: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *masks: jax.Array,
    ) -> Sequence[jax.Array]:
        shapes = [x.shape for x in (q, k, v)]
        schedule = _schedule(inputs, members, options, skip)
        valid, ends = _hidden(masks)
        if inputs.bias is not None:
            bias = varying.match(inputs.bias, q, k, v)
            table, pull = jax.vjp(lambda bias: _table(bias, members, schedule), bias)
            tile = QueryTile(q, do, lse, delta)
            *gradients, dtable = flash.backward(tile, k, v, valid, table, schedule, ends)
            return [*gradients, *pull(dtable)]
        (k, v, *rows), (valid, ends) = _merged((k, v, q, do, lse, delta), (valid, ends))
        *gradients, _ = flash.backward(QueryTile(*rows), k, v, valid, None, schedule, ends)
        return [x.reshape(shape) for x, shape in zip(gradients, shapes)]

    specs = [MapSpec(x.shape[3], x.shape[4], x.dtype) for x in (q, k, v)]
    maps = (*queries, *as_maps(inputs)[1:])
    most = _groups_per_step(q.shape[0] * q.shape[3], options)
    sums = [] if inputs.bias is None else [inputs.bias]
    found = _over_groups(groups, maps, partition, specs, most, sums)
    dq, dk, dv, *dbias = (varying.gradient(x, y) for x, y in zip(found, (q, k, v, *sums)))
    return (Inputs(dq, dk, dv, None, *dbias),)


_attend_chunks.defvjp(_attend_forward, _attend_backward)


def _over_groups(
    f: Callable[..., Sequence[jax.Array]],
    arrays: Sequence[jax.Array],
    partition: Partition,
    specs: Sequence[MapSpec],
    most: Callable[[int], int],
    sums: Sequence[jax.Array] = (),
) -> list[jax.Array]:
    """f over the groups of maps, so many at a time that its scores stay few.

    Args:
      f: shape of a group, groups of the arrays [groups, b, heads, members, c] -> groups of each
        result, and what is added to each of the sums.
      arrays: maps [b, h, w, heads, c].
      partition: the groups.
      specs: one for each map in the result.
      most: number of members of a group -> number of groups to take at a time.
      sums: arrays of the shapes and dtypes of the sums.

    Returns:
      Maps [b, h, w, heads, c], then the sums.
    """
    b, h, w = arrays[0].shape[:3]
    apart = (b, *partition.apart(h, w))
    merged = [(layout.merge_heads(x), x.shape[3]) for x in arrays]
    out = [
        varying.zeros((*apart, spec.heads * spec.channels), spec.dtype, *arrays) for spec in specs
    ]
    out += [varying.zeros(x.shape, x.dtype, *arrays) for x in sums]
    for piece, starts in partition.pieces(h, w, most):

        def step(
            out: list[jax.Array], start: Start, piece: Piece = piece
        ) -> tuple[list[jax.Array], None]:
            found = f(piece.shape, *(piece.gather(x, start, heads) for x, heads in merged))
            return [
                x + g if i >= len(specs) else piece.scatter(x, start, g)
                for i, (x, g) in enumerate(zip(out, found, strict=True))
            ], None

        if len(starts) == 1:  # known at compile time outside of a loop
            out, _ = step(out, starts[0])
        else:
            out, _ = lax.scan(step, out, jnp.array(starts, jnp.int32))
    height, width = math.prod(apart[1:3]), math.prod(apart[3:])
    maps = [x.reshape(b, height, width, -1)[:, :h, :w] for x in out[: len(specs)]]
    maps = [layout.split_heads(x, spec.heads) for x, spec in zip(maps, specs)]
    return [*maps, *out[len(specs) :]]


def parts(
    rows: int, columns: int, together: int
) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """A field of groups of one size in equal parts, and what is left.

    Args:
      rows, columns: number of groups along each axis.
      together: number of groups to take at a time.

    Yields:
      Number of groups along each axis in a part, and where the parts of these numbers start.
    """
    # Rounded: a few more groups than that are better than a small rest.
    cuts = _parts(rows, round(together / columns)), _parts(columns, together)
    for (height, top), (width, left) in itertools.product(*cuts):
        yield (height, width), list(itertools.product(top, left))


def _parts(n: int, most: int) -> list[tuple[int, Sequence[int]]]:
    """n groups in equal parts of at most `most`, and what is left: (length, starts) of each."""
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


def _schedule(
    inputs: Inputs, members: tuple[int, int], options: Options, skip: Skip | None
) -> Schedule:
    """How the loops go over groups of that many rows and columns."""
    (h, w), batch = members, inputs.q.shape[0] * inputs.q.shape[3]
    chunks, bias = _chunks(h * w, batch, options), None
    if inputs.bias is not None:
        bias = OffsetBias(h, w, h, h)
        if chunks.queries < h * w:
            bias = position_bias.offset_bias(h, h, w, batch, options)
        chunks = bias.chunks
    return Schedule(chunks, options, bias, None if skip is None else skip.of(w))


def _table(bias: jax.Array, members: tuple[int, int], schedule: Schedule) -> jax.Array:
    """The table that `schedule.bias` reads for groups of that many rows and columns."""
    assert isinstance(schedule.bias, OffsetBias)
    return schedule.bias.pad(position_bias.of_size(bias, *members))


def _chunks(n: int, batch: int, options: Options) -> Chunks:
    """Chunks of groups of n members, `batch` sequences (batch elements times heads) each."""
    if options.sizes.per_device(batch) * n * n <= options.sizes.scores:
        return Chunks(n, n)
    return flash.choose_chunks(n, batch, options)


def _hidden(masks: Sequence[jax.Array]) -> tuple[jax.Array | None, jax.Array | None]:
    """`valid` and, for groups that are lines, the ends of `frame`, of what `as_maps` adds.

    Args:
      masks: groups of them, bool [groups, b, 1, members, 1] each.

    Returns:
      `valid`, and int32 [groups, b, 1, 2, 1], the first member in the frame and that behind the
      last.
    """
    valid, frame = [*masks, None, None][:2]
    if frame is None:
        return valid, None
    return valid, jnp.stack(frames.ends(frame[..., 0]), -1)[..., None]


def _merged(
    arrays: Sequence[jax.Array], hidden: Sequence[jax.Array | None]
) -> tuple[Sequence[jax.Array], Sequence[jax.Array | None]]:
    """Groups [groups, b * heads, n, c], unless the heads share one v; [groups, n, c] of one.

    Args:
      arrays: groups [groups, b, heads or 1, n, c].
      hidden: the same of what `_hidden` returns.
    """
    batch, heads = arrays[0].shape[1:3]
    if any(x.shape[2] != heads for x in arrays):
        return arrays, hidden
    # XLA:CPU fuses product, softmax and product into one kernel unless an axis has length one.
    one = () if batch * heads == 1 else (batch * heads,)

    def merged(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], *one, *x.shape[3:])

    spread = [
        x if x is None else jnp.broadcast_to(x, (*x.shape[:2], heads, *x.shape[3:])) for x in hidden
    ]
    return [merged(x) for x in arrays], [x if x is None else merged(x) for x in spread]
