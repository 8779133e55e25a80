"""Simpler graphs in place of combined ones: the same edges on every map.

    simplify(Local(12) & Grid(4)) == Local(3, dilation=4)
    simplify(Row() | Column()) == Cross()

So a combination attends by an engine wherever it is one of the graphs that have one.
"""

import dataclasses
import math
from collections.abc import Sequence

from ggcf_jax.attention.graph import Graph, Intersection, Union
from ggcf_jax.attention.kinds import Block, Column, Cross, Full, Grid, Local, Row


@dataclasses.dataclass(frozen=True)
class _Reach:
    """Neighbours along one axis: multiples of `step` that are at most `size` steps away.

    Attributes:
      step: number of positions from one neighbour to the next.
      size: number of steps to each side; None for all of the axis.
    """

    step: int
    size: int | None

    def both(self, other: '_Reach') -> '_Reach':
        """The neighbours that both have."""
        step = math.lcm(self.step, other.step)
        farthest = [r.size * r.step for r in (self, other) if r.size is not None]
        size = min(farthest) // step if farthest else None
        return _Reach(1 if size == 0 else step, size)

    def within(self, other: '_Reach') -> bool:
        """Whether all neighbours are among those of the other."""
        return self.both(other) == self


_Window = tuple[_Reach, _Reach]  # rows and columns


def simplify(graph: Graph) -> Graph:
    """A graph with the same edges on every map, as simple as this package knows.

    Members that others contain are left out, intersections of windows, grids, rows and columns
    become one graph, and a row and a column a cross. What is not combined stays as it is.

    Args:
      graph: any graph.
    """
    if isinstance(graph, Intersection):
        return _intersection([simplify(member) for member in graph.members])
    if isinstance(graph, Union):
        return _union([simplify(member) for member in graph.members])
    return graph


def _intersection(members: Sequence[Graph]) -> Graph:
    windows = [(graph, window) for graph in members if (window := _window(graph)) is not None]
    others = [graph for graph in members if _window(graph) is None]
    if len(windows) > 1:
        rows, columns = windows[0][1]
        for _, (y, x) in windows[1:]:
            rows, columns = rows.both(y), columns.both(x)
        whole = _graph_of((rows, columns))
        others = [*(graph for graph, _ in windows), *others] if whole is None else [whole, *others]
    else:
        others = list(members)
    kept = [
        a
        for i, a in enumerate(others)
        if not any(
            _contains(a, b) and (not _contains(b, a) or j < i)
            for j, b in enumerate(others)
            if j != i
        )
    ]
    return kept[0] if len(kept) == 1 else Intersection(tuple(kept))


def _union(members: Sequence[Graph]) -> Graph:
    if Row() in members and Column() in members:
        members = [Cross(), *(m for m in members if m not in (Row(), Column()))]
    kept = [
        a
        for i, a in enumerate(members)
        if not any(
            _contains(b, a) and (not _contains(a, b) or j < i)
            for j, b in enumerate(members)
            if j != i
        )
    ]
    return kept[0] if len(kept) == 1 else Union(tuple(kept))


def _contains(a: Graph, b: Graph) -> bool:
    """Whether a has all edges of b on every map; False also where that is not known."""
    if a == b or isinstance(a, Full) or b == Block(1):
        return True
    if isinstance(a, Union):
        return any(_contains(member, b) for member in a.members)
    if isinstance(a, Intersection):
        return all(_contains(member, b) for member in a.members)
    if isinstance(b, Union):
        return all(_contains(a, member) for member in b.members)
    if isinstance(b, Intersection):
        return any(_contains(a, member) for member in b.members)
    if isinstance(b, Cross):
        return _contains(a, Row()) and _contains(a, Column())
    if isinstance(a, Cross):
        return _contains(Row(), b) or _contains(Column(), b)
    if isinstance(a, Block) and isinstance(b, Block):
        return all(
            big % small == 0 and (shift - other) % small == 0
            for big, small, shift, other in zip(a.sizes, b.sizes, a.shifts, b.shifts)
        )
    if isinstance(b, Local) and b.border == 'shift':
        # A window that is moved inward reaches farther than its size, but keeps its step.
        if isinstance(a, Local) and a.border == 'shift':
            return a.dilations == b.dilations and all(m >= n for m, n in zip(a.sizes, b.sizes))
        moved: _Window = tuple(  # type: ignore[assignment]  # of two
            _Reach(step, None if size else 0) for size, step in zip(b.sizes, b.dilations)
        )
        outer = _window(a)
        return outer is not None and all(x.within(y) for x, y in zip(moved, outer))
    if isinstance(a, Local) and a.border == 'shift':
        return _contains(Local(a.size, a.dilation), b)
    outer, inner = _window(a), _window(b)
    if outer is None or inner is None:
        return False
    return all(x.within(y) for x, y in zip(inner, outer))


def _window(graph: Graph) -> _Window | None:
    """The reach along both axes; None for a graph that is not described by it."""
    if isinstance(graph, Full):
        return _Reach(1, None), _Reach(1, None)
    if isinstance(graph, Row):
        return _Reach(1, 0), _Reach(1, None)
    if isinstance(graph, Column):
        return _Reach(1, None), _Reach(1, 0)
    if isinstance(graph, Grid):
        rows, columns = (_Reach(stride, None) for stride in graph.strides)
        return rows, columns
    if isinstance(graph, Local) and graph.border == 'truncate':
        rows, columns = (
            _Reach(step if size else 1, size) for size, step in zip(graph.sizes, graph.dilations)
        )
        return rows, columns
    if graph == Block(1):
        return _Reach(1, 0), _Reach(1, 0)
    return None


def _graph_of(window: _Window) -> Graph | None:
    """The graph with these reaches; None where no class has them."""
    rows, columns = window
    if rows.size is None and columns.size is None:
        steps = rows.step, columns.step
        return Full() if steps == (1, 1) else Grid(steps)
    if rows.size is not None and columns.size is not None:
        if rows.size == columns.size == 0:
            return Block(1)  # every position sees itself alone
        return Local((rows.size, columns.size), (rows.step, columns.step))
    if window == _window(Row()):
        return Row()
    if window == _window(Column()):
        return Column()
    return None
