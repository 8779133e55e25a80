"""Attention over BLOCK graphs: dense attention inside each block.

The blocks inside the map have one size, and the border cuts the first and the last of an axis, so
that a map falls into at most nine batches of equal blocks.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from jax import lax

from ggcf_jax.attention import groups, layout
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.graphs import Block
from ggcf_jax.attention.groups import Start
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune


class Run(NamedTuple):
    """Neighbouring blocks of one length on an axis: the first position, how many, how long."""

    first: int
    blocks: int
    length: int


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Windows that do not overlap; `groups.Partition`.

    Attributes:
      sizes: height and width of a block.
      shifts: first row and first column at which a block begins.
    """

    sizes: tuple[int, int]
    shifts: tuple[int, int]

    def apart(self, h: int, w: int) -> tuple[int, int, int, int]:
        """The map itself, whose rows and columns need only one axis each."""
        return h, 1, w, 1

    def pieces(
        self, h: int, w: int, most: Callable[[int], int]
    ) -> Iterator[tuple['Piece', list[tuple[int, int]]]]:
        """Pieces, and where they start, that together hold each block of an h x w map once."""
        runs = (_runs(*axis) for axis in zip((h, w), self.sizes, self.shifts))
        for rows, columns in itertools.product(*runs):
            together = most(rows.length * columns.length)
            for count, starts in groups.parts(rows.blocks, columns.blocks, together):
                yield Piece(rows, columns, count), starts


@dataclasses.dataclass(frozen=True)
class Piece:
    """Equal blocks of a map: some of a run of rows times some of a run of columns.

    Attributes:
      rows: run of blocks along rows.
      columns: run of blocks along columns.
      count: number of blocks taken along each, from a `start` inside the runs.
    """

    rows: Run
    columns: Run
    count: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns of a group."""
        return self.rows.length, self.columns.length

    def gather(self, x: jax.Array, start: Start, heads: int) -> jax.Array:
        """The blocks [blocks, b, heads, members, c] of a map [b, h, w, heads * c]."""
        (gy, gx), (ny, nx) = self.count, (self.rows.length, self.columns.length)
        b, channels = x.shape[0], x.shape[-1]
        x = lax.dynamic_slice(x, self._corner(start), (b, gy * ny, gx * nx, channels))
        x = layout.split_heads(x.reshape(b, gy, ny, gx, nx, channels), heads)
        return x.transpose(1, 3, 0, 5, 2, 4, 6).reshape(gy * gx, b, heads, ny * nx, -1)

    def scatter(self, x: jax.Array, start: Start, groups: jax.Array) -> jax.Array:
        """A map [b, h, 1, w, 1, heads * c] with the blocks put in."""
        _, b, heads, _, c = groups.shape
        (gy, gx), (ny, nx) = self.count, (self.rows.length, self.columns.length)
        groups = groups.reshape(gy, gx, b, heads, ny, nx, c).transpose(2, 0, 4, 1, 5, 3, 6)
        groups = groups.reshape(b, gy * ny, 1, gx * nx, 1, heads * c)
        zero, y, x0, _ = self._corner(start)
        return lax.dynamic_update_slice(x, groups, (zero, y, 0, x0, 0, 0))

    def _corner(self, start: Start) -> tuple:
        y = self.rows.first + start[0] * self.rows.length
        return 0, y, self.columns.first + start[1] * self.columns.length, 0


def attend(inputs: Inputs, graph: Block, options: Options) -> Partial:
    """BLOCK attention; `engine.Attend`."""
    return groups.attend(inputs, Blocks(graph.sizes, graph.shifts), options)


def attend_pruned(inputs: Inputs, graph: Block, options: Options, prune: Prune) -> Partial:
    """BLOCK attention with Context Pruning; `engine.AttendPruned`."""
    return groups.attend_pruned(inputs, Blocks(graph.sizes, graph.shifts), options, prune)


def _runs(n: int, size: int, shift: int) -> list[Run]:
    """The blocks of an axis of n positions, as runs of one length."""
    before = min(shift, n)
    blocks, after = divmod(n - before, size)
    runs = (Run(0, 1, before), Run(before, blocks, size), Run(n - after, 1, after))
    return [run for run in runs if run.blocks and run.length]
