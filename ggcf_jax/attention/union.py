"""Attention over unions of graphs: one after the other without the keys of those before it, joined.

The first member attends by its own engine. The others are grids, rows and columns, whose groups
hide the pairs that members before them see. `merge` joins the parts by their log-sum-exps, so that
each key counts once. A cross is the union of its row and its column.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ggcf_jax.attention import groups, pruning
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.frame import Frame
from ggcf_jax.attention.graph import Graph, SeparableGraph, Union, of_images
from ggcf_jax.attention.graphs import Block, Column, Grid, Local, Row
from ggcf_jax.attention.grid import Residues, Strides
from ggcf_jax.attention.layout import as_map, as_rows, sums_as_map, valid_as_rows
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune


class Rest(NamedTuple):
    """A member of a union without what members before it see.

    Attributes:
      graph: a grid, a row or a column.
      before: the members before it.
    """

    graph: Grid | Row | Column
    before: tuple[SeparableGraph, ...]

    def skip(self, size: tuple[int, int]) -> 'Skip':
        """Which pairs of its groups are left out, on a map of this height and width."""
        axis = 1 if isinstance(self.graph, Row) else 0
        return Skip(self.before, size, strides(self.graph, size), axis)


@dataclasses.dataclass(frozen=True)
class Skip:
    """Leaves out pairs that some graphs see; `groups.Skip`, and `flash.Skip` once it has a width.

    The members of a group are known by their distances alone. So the graphs are functions of the
    offset, or the group is a row or a column, where numbers are positions of the map: then they may
    know where the image ends.

    Attributes:
      graphs: the graphs, each of which has every position for a neighbour of itself.
      size: height and width of the map.
      strides: distance between neighbouring members of a group along rows and along columns.
      axis: 1 if the group is a row, 0 if it is a column.
      width: number of members in a row of the group.
    """

    graphs: tuple[SeparableGraph, ...]
    size: tuple[int, int]
    strides: Strides
    axis: int
    width: int = 1

    def of(self, width: int) -> 'Skip':
        """The same for groups of this width."""
        return dataclasses.replace(self, width=width)

    def __call__(self, i: jax.Array, j: jax.Array, ends: jax.Array | None) -> jax.Array:
        """Whether any of the graphs sees the j-th member from the i-th; `flash.Skip`."""
        (yi, xi), (yj, xj) = (divmod(n, self.width) for n in (i, j))
        (ty, tx), (h, w) = self.strides, self.size
        seen = jnp.zeros((), bool)
        for graph in self.graphs:
            if ends is not None:
                graph = graph.within(self._frame(ends))
            rows = graph.axis_edges(0, yi * ty, yj * ty, h)
            seen = seen | (rows & graph.axis_edges(1, xi * tx, xj * tx, w))
        return seen

    def _frame(self, ends: jax.Array) -> Frame:
        """The frame along the group; across it there is one position."""
        own, (h, w) = (ends[..., :1, :], ends[..., 1:, :]), self.size
        rows, columns = [own if axis == self.axis else (0, n) for axis, n in enumerate((h, w))]
        return Frame((rows[0], columns[0]), (rows[1], columns[1]))


def split(graph: Graph) -> tuple[SeparableGraph, tuple[Rest, ...]] | None:
    """The first member and the others; None for a graph that does not fall into such parts.

    Args:
      graph: a union, or a graph with `parts`.
    """
    members = graph.members if isinstance(graph, Union) else (graph,)
    parts = list(dict.fromkeys(part for member in members for part in member.parts()))
    # Windows come first: their engines leave nothing out.
    first = [part for part in parts if isinstance(part, (Local, Block))]
    lines = [part for part in parts if isinstance(part, (Row, Column))]
    grids = [part for part in parts if isinstance(part, Grid)]
    if len(parts) < 2 or len(first) > 1 or len(first) + len(lines) + len(grids) < len(parts):
        return None
    if first and grids and not _of_offsets(first[0]):
        return None
    ordered: Sequence[SeparableGraph] = [*first, *grids, *lines]
    rests = [
        Rest(part, tuple(ordered[:i]))
        for i, part in enumerate(ordered)
        if i and isinstance(part, (Grid, Row, Column))
    ]
    return ordered[0], tuple(rests)


def strides(graph: Grid | Row | Column, size: tuple[int, int]) -> Strides:
    """Distance between neighbours along rows and along columns."""
    if isinstance(graph, Row):
        return size[0], 1
    if isinstance(graph, Column):
        return 1, size[1]
    return graph.strides


def attend_rest(inputs: Inputs, rest: Rest, options: Options) -> Partial:
    """Attention over a member without what members before it see."""
    _, h, w, _, _ = inputs.q.shape
    partition = Residues(strides(rest.graph, (h, w)))
    return groups.attend(inputs, partition, options, rest.skip((h, w)))


def attend_pruned(inputs: Inputs, graph: Graph, options: Options, prune: Prune) -> Partial:
    """Attention over a union with Context Pruning; `engine.AttendPruned`.

    A query chooses among the neighbours of all members: chunks of queries stand against the whole
    map. Memory is linear in it, time that of FULL.
    """
    q, k, v, valid, _, _ = inputs
    _, h, w, _, _ = q.shape

    def edges(i: jax.Array) -> jax.Array:
        def of(graph: Graph) -> jax.Array:
            return jax.vmap(lambda at: graph.mask_of(at // w, at % w, h, w).reshape(-1))(i)

        return of_images(graph, valid, of)[:, None]

    o, lse = pruning.attend_rows(
        as_rows(q), as_rows(k), as_rows(v), valid_as_rows(valid), jnp.arange(h * w), prune, options,
        edges=edges,
    )  # fmt: skip
    return Partial(as_map(o, h, w), sums_as_map(lse, h, w))


def _of_offsets(graph: Graph) -> bool:
    """Whether the edges are functions of the offset."""
    return isinstance(graph, Local) and graph.border == 'truncate'
