"""Attention over GRID graphs: dense attention inside each residue class of positions.

Residues r < n mod T of an axis have one member more than the others, so a map falls into at most
four batches of equal groups.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import groups, layout
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.graphs import Grid
from ggcf_jax.attention.groups import Start
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune

Strides = tuple[int, int]


class Run(NamedTuple):
    """Residues [first, end) of an axis that have equally many members."""

    first: int
    end: int
    members: int


@dataclasses.dataclass(frozen=True)
class Residues:
    """The residue classes of positions; `groups.Partition`.

    Attributes:
      strides: T of rows and of columns.
    """

    strides: Strides

    def apart(self, h: int, w: int) -> tuple[int, int, int, int]:
        """Periods and residues of rows, then of columns."""
        ty, tx = min(self.strides[0], h), min(self.strides[1], w)
        return -(-h // ty), ty, -(-w // tx), tx

    def pieces(
        self, h: int, w: int, most: Callable[[int], int]
    ) -> Iterator[tuple['Piece', list[tuple[int, int]]]]:
        """Pieces, and where they start, that together hold each class of an h x w map once."""
        runs = itertools.product(residues(h, self.strides[0]), residues(w, self.strides[1]))
        for rows, columns in runs:
            together = most(rows.members * columns.members)
            fields = rows.end - rows.first, columns.end - columns.first
            for count, starts in groups.parts(*fields, together):
                yield Piece(self.strides, rows, columns, count), starts


@dataclasses.dataclass(frozen=True)
class Piece:
    """Equal groups of a map: some residues of a run of rows times some of a run of columns.

    Attributes:
      strides: T of rows and of columns.
      rows: run of residues of rows.
      columns: run of residues of columns.
      count: number of residues of rows and of columns taken, from a `start` inside the runs.
    """

    strides: Strides
    rows: Run
    columns: Run
    count: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns of a group."""
        return self.rows.members, self.columns.members

    def gather(self, x: jax.Array, start: Start, heads: int) -> jax.Array:
        """The groups [groups, b, heads, members, c] of a map [b, h, w, heads * c]."""
        x = _members(x, 2, self.strides[1], self.columns, start[1], self.count[1])
        x = _members(x, 1, self.strides[0], self.rows, start[0], self.count[0])
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
    return groups.attend(inputs, Residues(graph.strides), options)


def attend_pruned(inputs: Inputs, graph: Grid, options: Options, prune: Prune) -> Partial:
    """GRID attention with Context Pruning; `engine.AttendPruned`."""
    return groups.attend_pruned(inputs, Residues(graph.strides), options, prune)


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
