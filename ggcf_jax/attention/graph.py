"""What a graph over the positions of a 2-D map is, and how graphs combine.

A graph says which positions j a position i may fuse context from: E(i, j) of Eq. 3. To add one,
subclass `OffsetGraph` and write `edges` where they depend on the offset alone, `SeparableGraph` and
write `axis_edges` where rows and columns decide apart, or `Graph` and write `adjacency`. That one
method is enough: the graph parses, combines, attends through the dense reference, prunes, shows its
attention maps and is counted. A faster engine is an entry in `engine.ENGINES`.
"""

import abc
import dataclasses
import functools
import inspect
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, Shaped

from ggcf_jax.attention import frame as frames
from ggcf_jax.attention.frame import Frame

_PAIRS_AT_ONCE = 1 << 24  # pairs of positions of one axis that are counted together


class Graph(abc.ABC):
    """Which positions of a map see which.

    A subclass defines `adjacency`; everything else follows from it. Instances are values: frozen
    dataclasses, hashable, equal when their fields are, and registered with
    `jax.tree_util.register_static` if they are passed through `jax.jit` as arguments. The
    output of a position without any neighbour is zero (the graphs of this package include self).

    A graph whose constructor takes an integer first, or an integer for rows and one for columns,
    can be written 'kind:NUMBER' or 'kind:ROWSxCOLUMNS' in a list of heads (`graphs.parse`), one
    whose arguments all have defaults also 'kind'. A further field of a dataclass is written behind
    the number if its metadata name the character before it: `metadata={'before': '@'}`.

    `a | b` and `a & b` are the union and the intersection of graphs without weights.
    """

    trainable = False  # whether `init` returns parameters

    @property
    def steps(self) -> tuple[int, int]:
        """Number of rows and of columns in which a position bias counts the graph's offsets."""
        return 1, 1

    @abc.abstractmethod
    def adjacency(self, h: int, w: int) -> Bool[ArrayLike, 'n n'] | Float[ArrayLike, 'n n']:
        """E of all pairs of positions of an h x w map in row-major order, n = h * w.

        Returns:
          Bool, or non-negative float weights; zero and False mean no edge.
        """

    @classmethod
    def kind(cls) -> str:
        """Name in a list of heads: 'local' for `Local`, 'package.module:Class' elsewhere."""
        if cls.__module__.rpartition('.')[0] == __package__:
            return cls.__name__.lower()
        return f'{cls.__module__}:{cls.__qualname__}'

    def edges_of(self, y: ArrayLike, x: ArrayLike, h: int, w: int) -> Shaped[Array, 'h w']:
        """E of the one query at row y and column x: bool or non-negative float weights."""
        return jnp.asarray(self.adjacency(h, w))[y * w + x].reshape(h, w)

    def mask_of(self, y: ArrayLike, x: ArrayLike, h: int, w: int) -> Bool[Array, 'h w']:
        """Which positions the query at row y and column x sees."""
        return self.edges_of(y, x, h, w) > 0

    def log_edges_of(
        self, y: ArrayLike, x: ArrayLike, h: int, w: int
    ) -> Float[Array, 'h w'] | float:
        """log E of the query at row y and column x; 0 where it sees nothing or E is boolean."""
        edges = self.edges_of(y, x, h, w)
        return 0.0 if edges.dtype == bool else jnp.log(jnp.where(edges > 0, edges, 1))

    def degrees(self, h: int, w: int) -> Int[np.ndarray, 'h w']:
        """Number of neighbours of each position of an h x w map."""
        return (computed(lambda: self.adjacency(h, w)) > 0).sum(1).reshape(h, w)

    def num_edges(self, h: int, w: int) -> int:
        """Number of pairs (i, j) with j a neighbour of i on an h x w map."""
        return int(self.degrees(h, w).sum())

    def max_degree(self, h: int, w: int) -> int:
        """Number of neighbours of the position that has most on an h x w map."""
        return int(self.degrees(h, w).max())

    def parts(self) -> 'tuple[Graph, ...]':
        """Graphs whose union this is: itself, unless simpler ones are known."""
        return (self,)

    def within(self, frame: Frame) -> 'Graph':
        """This graph where an image ends before the map does.

        A graph whose edges depend on where the map ends, and not on positions alone, returns one
        with the edges that it has on a map that ends with the frame: what lies outside of it is
        padding. The others return themselves.

        Args:
          frame: rectangle of the map that holds the image; its numbers may be traced.
        """
        return self

    def init(self, key: PRNGKeyArray) -> dict[str, Array]:
        """New float32 parameters for `bind`; {} unless the graph is `trainable`."""
        return {}

    def bind(self, params: Mapping[str, Array]) -> Self:
        """This graph with its parameters."""
        if params:
            raise ValueError(f'{self} takes no parameters, not {sorted(params)}')
        return self

    def __or__(self, other: 'Graph') -> 'Graph':
        return _combined(Union, self, other)

    def __and__(self, other: 'Graph') -> 'Graph':
        return _combined(Intersection, self, other)

    def __str__(self) -> str:
        parameters = list(inspect.signature(type(self)).parameters.values())
        if not parameters:
            return self.kind()
        first = parameters[0]
        rest = ''.join(
            field.metadata['before'] + _number(getattr(self, field.name))
            for field in written_fields(type(self))
            if getattr(self, field.name) != field.default
        )
        value = getattr(self, first.name)
        if value == first.default and not rest:
            return self.kind()
        return f'{self.kind()}:{_number(value)}{rest}'


class OffsetGraph(Graph):
    """A graph whose edges depend on the offset i - j alone; a subclass defines `edges`.

    One query's neighbours then cost h * w numbers instead of all pairs, and counts need no pairs
    at all.
    """

    @abc.abstractmethod
    def edges(self, dy: Array, dx: Array) -> Shaped[Array, '...']:
        """E of the offsets i - j.

        Args:
          dy, dx: integer arrays that broadcast, offsets in rows and in columns.

        Returns:
          Bool or non-negative float weights, of the broadcast shape.
        """

    def adjacency(self, h: int, w: int) -> Bool[Array, 'n n'] | Float[Array, 'n n']:
        """E of all pairs of positions of an h x w map in row-major order, n = h * w."""
        y, x = jnp.divmod(jnp.arange(h * w, dtype=jnp.int32), w)
        return self.edges(y[:, None] - y, x[:, None] - x)

    def edges_of(self, y: ArrayLike, x: ArrayLike, h: int, w: int) -> Shaped[Array, 'h w']:
        """E of the one query at row y and column x: bool or non-negative float weights."""
        return self.edges(*offsets_from(y, x, h, w))

    def degrees(self, h: int, w: int) -> Int[np.ndarray, 'h w']:
        """Number of neighbours of each position of an h x w map."""
        dy, dx = np.arange(1 - h, h)[:, None], np.arange(1 - w, w)[None]
        seen = computed(lambda: self.edges(jnp.asarray(dy), jnp.asarray(dx))) > 0
        seen = np.broadcast_to(seen, (2 * h - 1, 2 * w - 1))
        # Position (y, x) has the offsets dy in (y - h, y] and dx in (x - w, x]: a box in the table.
        sums = np.pad(seen.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        return sums[h:, w:] - sums[:h, w:] - sums[h:, :w] + sums[:h, :w]


class SeparableGraph(Graph):
    """A graph in which rows and columns decide apart; a subclass defines `axis_edges`.

    j is a neighbour of i if the row of j is one of those of the row of i, and the column of j one
    of those of the column of i. One query's neighbours and counts cost two axes, not all pairs, and
    unions and intersections of such graphs are counted in the same way.
    """

    def within(self, frame: Frame) -> 'SeparableGraph':
        """This graph where an image ends before the map does, see `Graph.within`."""
        return self

    @abc.abstractmethod
    def axis_edges(self, axis: int, i: Array, j: Array, n: int) -> Bool[Array, '...']:
        """Whether the position j of an axis is a neighbour of the position i.

        Args:
          axis: 0 for rows, 1 for columns.
          i, j: integer arrays that broadcast, positions on that axis: the query's and the key's.
          n: length of the axis.

        Returns:
          Bool, of the broadcast shape.
        """

    def adjacency(self, h: int, w: int) -> Bool[Array, 'n n']:
        """E of all pairs of positions of an h x w map in row-major order, n = h * w."""
        rows, columns = (
            self.axis_edges(axis, jnp.arange(n)[:, None], jnp.arange(n)[None], n)
            for axis, n in enumerate((h, w))
        )
        return (rows[:, None, :, None] & columns[:, None, :]).reshape(h * w, h * w)

    def edges_of(self, y: ArrayLike, x: ArrayLike, h: int, w: int) -> Bool[Array, 'h w']:
        """E of the one query at row y and column x."""
        rows = self.axis_edges(0, jnp.asarray(y), jnp.arange(h), h)
        return rows[:, None] & self.axis_edges(1, jnp.asarray(x), jnp.arange(w), w)

    def degrees(self, h: int, w: int) -> Int[np.ndarray, 'h w']:
        """Number of neighbours of each position of an h x w map."""
        return _common_degrees((self,), h, w)


class _Combination(Graph):
    """A union or an intersection: what they share."""

    members: tuple[Graph, ...]
    sign: ClassVar[str]  # between the members in the head grammar
    _combine: ClassVar[Callable]  # of two boolean arrays

    def adjacency(self, h: int, w: int) -> Bool[Array, 'n n']:
        """E of all pairs of positions of an h x w map in row-major order, n = h * w."""
        return self._reduced(jnp.asarray(graph.adjacency(h, w)) for graph in self.members)

    def edges_of(self, y: ArrayLike, x: ArrayLike, h: int, w: int) -> Bool[Array, 'h w']:
        """E of the one query at row y and column x."""
        return self._reduced(graph.edges_of(y, x, h, w) for graph in self.members)

    def degrees(self, h: int, w: int) -> Int[np.ndarray, 'h w']:
        """Number of neighbours of each position: by inclusion and exclusion of separable graphs."""
        terms: list[tuple[SeparableGraph, ...]] = []
        for graphs in as_union(self):
            term = tuple(graph for graph in graphs if isinstance(graph, SeparableGraph))
            if len(term) < len(graphs):
                return super().degrees(h, w)
            terms.append(term)
        total = np.zeros((h, w), np.int64)
        for count in range(1, len(terms) + 1):
            for some in itertools.combinations(terms, count):
                together = tuple({graph: None for term in some for graph in term})
                total += (-1) ** (count + 1) * _common_degrees(together, h, w)
        return total

    def within(self, frame: Frame) -> Graph:
        """The combination of what the members are within the frame."""
        members = tuple(graph.within(frame) for graph in self.members)
        return self if all(a is b for a, b in zip(members, self.members)) else self._of(members)

    def _of(self, members: tuple[Graph, ...]) -> Graph:
        return type(self)(members)  # type: ignore[call-arg]  # of the subclass

    def _reduced(self, edges: Iterator[Shaped[Array, '*shape']]) -> Bool[Array, '*shape']:
        return functools.reduce(type(self)._combine, map(self._boolean, edges))

    def _boolean(self, edges: Shaped[Array, '*shape']) -> Bool[Array, '*shape']:
        if edges.dtype != bool:
            raise ValueError(f'{self}: union and intersection are of graphs without weights')
        return edges

    def __post_init__(self) -> None:
        name = self.kind()
        flat: dict[Graph, None] = {}  # an ordered set
        for graph in self.members:
            if not isinstance(graph, Graph):
                raise ValueError(f'{name} is of graphs, not of {graph!r}')
            if graph.trainable:
                raise ValueError(f'{name} is of graphs without weights, not of {graph}')
            flat |= dict.fromkeys(graph.members if isinstance(graph, type(self)) else (graph,))
        if len(flat) < 2:
            raise ValueError(f'{name} is of two different graphs or more, not of {self.members}')
        object.__setattr__(self, 'members', tuple(flat))

    def __str__(self) -> str:
        return self.sign.join(
            f'({graph})' if isinstance(graph, Union) else str(graph) for graph in self.members
        )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Union(_Combination):
    """The neighbours of any member, each once: `Local(8) | Cross()`, 'local:8|cross'.

    Args:
      members: two different graphs or more, without weights. Unions among them are taken apart.
    """

    members: tuple[Graph, ...]

    sign = '|'
    _combine = operator.or_


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Intersection(_Combination):
    """The neighbours that all members share: `Local(12) & Grid(4)`, 'local:12&grid:4'.

    Args:
      members: two different graphs or more, without weights. Intersections among them are taken
        apart.
    """

    members: tuple[Graph, ...]

    sign = '&'
    _combine = operator.and_


def of_images(
    graph: Graph, valid: Bool[Array, 'b h w'] | None, f: Callable[[Graph], Array]
) -> Shaped[Array, '#b ...']:
    """f of a graph as it is in the images of a batch.

    Args:
      graph: any graph.
      valid: which positions belong to the images; None for all.
      f: function of a graph, such as its edges.

    Returns:
      One for each image, or a single one where the graph is the same in all of them.
    """
    if valid is not None:
        found = frames.of(valid)
        if graph.within(found) is not graph:
            return jax.vmap(lambda frame: f(graph.within(frame)))(found)
    return f(graph)[None]


def knows_border(graph: Graph) -> bool:
    """Whether its edges depend on where an image ends, see `Graph.within`."""
    return graph.within(Frame((0, 0), (0, 0))) is not graph


def as_union(graph: Graph) -> list[tuple[Graph, ...]]:
    """A graph as a union of intersections: the members of each of these.

    Intersections of unions are multiplied out, and graphs are taken apart into their `parts`.
    """
    if isinstance(graph, Union):
        return [term for member in graph.members for term in as_union(member)]
    if isinstance(graph, Intersection):
        choices = itertools.product(*(as_union(member) for member in graph.members))
        return [tuple({g: None for term in choice for g in term}) for choice in choices]
    return [(part,) for part in graph.parts()]


def written_fields(cls: type[Graph]) -> 'list[dataclasses.Field[object]]':
    """The fields of a class that are written behind its number, in order."""
    if not dataclasses.is_dataclass(cls):
        return []
    return [field for field in dataclasses.fields(cls) if 'before' in field.metadata]


def offsets_from(y: ArrayLike, x: ArrayLike, h: int, w: int) -> tuple[Array, Array]:
    """Offsets i - j from the query i at (y, x) to all j: dy [h, 1], dx [1, w]."""
    return jnp.asarray(y) - jnp.arange(h)[:, None], jnp.asarray(x) - jnp.arange(w)[None]


def _combined(cls: type[Union] | type[Intersection], a: Graph, b: object) -> Graph:
    """a and b combined; one of them if they are equal."""
    if not isinstance(b, Graph):
        return NotImplemented
    return a if a == b and not a.trainable else cls((a, b))


def _common_degrees(graphs: tuple[SeparableGraph, ...], h: int, w: int) -> Int[np.ndarray, 'h w']:
    """Number of neighbours of each position that all of some separable graphs have."""
    rows, columns = (_common_axis_degrees(graphs, axis, n) for axis, n in enumerate((h, w)))
    return rows[:, None] * columns


def _common_axis_degrees(
    graphs: tuple[SeparableGraph, ...], axis: int, n: int
) -> Int[np.ndarray, ' n']:
    """The same for each position of one axis."""
    counts, step = [], max(1, _PAIRS_AT_ONCE // n)
    for start in range(0, n, step):
        end = min(n, start + step)

        def pairs(start: int = start, end: int = end) -> Array:
            i, j = jnp.arange(start, end)[:, None], jnp.arange(n)[None]
            seen = (graph.axis_edges(axis, i, j, n) for graph in graphs)
            return functools.reduce(operator.and_, seen)

        seen = np.broadcast_to(computed(pairs), (end - start, n))
        counts.append(seen.sum(1, dtype=np.int64))
    return np.concatenate(counts)


def computed(f: Callable[[], ArrayLike]) -> np.ndarray:
    """f's array: what a graph is, such as counts, are Python numbers, inside jax.jit as well.

    One program computes it; without jax.jit every operation of it is compiled alone. It runs in a
    thread of its own, where nothing is traced and no mesh is in effect (`jax.set_mesh`): the
    devices of that one may belong to other processes, or be absent where a program is compiled
    ahead of time.

    Args:
        f: computes the array from constants.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: np.asarray(jax.jit(f)())).result()


def _number(value: object) -> str:
    """A value as it is written: 8, 4x12, or a word."""
    return 'x'.join(map(str, value)) if isinstance(value, tuple) else str(value)
