"""Neighbourhood graphs over the positions of a 2-D map: what each one is, and the head grammar.

A graph says which positions j a position i may fuse context from: E(i, j) of Eq. 3. To add one,
subclass `OffsetGraph` and write `edges`, or `Graph` and write `adjacency` where the edges depend on
more than the offset. That one method is enough: the graph parses, attends through the dense
reference, prunes, shows its attention maps and is counted. A faster engine is an entry in
`engine.ENGINES`.
"""

import abc
import dataclasses
import importlib
import inspect
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, Shaped

_NUMBER = re.compile(r'[0-9]+(x[0-9]+)?')  # of a head: 8, or 4x12
OFFSET_UNIT = 32.0  # positions; the unit in which Learned sees offsets, the same for every map


class Graph(abc.ABC):
    """Which positions of a map see which.

    A subclass defines `adjacency`; everything else follows from it. Instances are values: frozen
    dataclasses, hashable, equal when their fields are, and registered with
    `jax.tree_util.register_static` if they are passed through `jax.jit` as arguments. Every
    position should have at least one neighbour (the graphs of this module include self): the
    weights of a position without any are NaN.

    A graph whose constructor takes an integer first, or an integer for rows and one for columns,
    can be written 'kind:NUMBER' or 'kind:ROWSxCOLUMNS' in a list of heads (`parse`), one whose
    arguments all have defaults also 'kind'.
    """

    trainable = False  # whether `init` returns parameters

    @abc.abstractmethod
    def adjacency(self, h: int, w: int) -> Bool[ArrayLike, 'n n'] | Float[ArrayLike, 'n n']:
        """E of all pairs of positions of an h x w map in row-major order, n = h * w.

        Returns:
          Bool, or non-negative float weights; zero and False mean no edge.
        """

    @classmethod
    def kind(cls) -> str:
        """Name in a list of heads: 'local' for `Local`, 'package.module:Class' elsewhere."""
        if cls.__module__ == __name__:
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

    def num_edges(self, h: int, w: int) -> int:
        """Number of pairs (i, j) with j a neighbour of i on an h x w map."""
        return int((np.asarray(self.adjacency(h, w)) > 0).sum())

    def max_degree(self, h: int, w: int) -> int:
        """Number of neighbours of the position that has most on an h x w map."""
        return int((np.asarray(self.adjacency(h, w)) > 0).sum(1).max())

    def init(self, key: PRNGKeyArray) -> dict[str, Array]:
        """New float32 parameters for `bind`; {} unless the graph is `trainable`."""
        return {}

    def bind(self, params: Mapping[str, Array]) -> Self:
        """This graph with its parameters."""
        if params:
            raise ValueError(f'{self} takes no parameters, not {sorted(params)}')
        return self

    def __str__(self) -> str:
        parameters = list(inspect.signature(type(self)).parameters.values())
        if not parameters:
            return self.kind()
        value = getattr(self, parameters[0].name)
        if value == parameters[0].default:
            return self.kind()
        number = 'x'.join(map(str, value)) if isinstance(value, tuple) else value
        return f'{self.kind()}:{number}'


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
        return self.edges(*_offsets_from(y, x, h, w))

    def num_edges(self, h: int, w: int) -> int:
        """Number of pairs (i, j) with j a neighbour of i on an h x w map."""
        dy, dx, seen = self._offset_table(h, w)
        pairs = (h - np.abs(dy)) * (w - np.abs(dx))  # positions that have this offset
        return int((seen * pairs).sum())

    def max_degree(self, h: int, w: int) -> int:
        """Number of neighbours of the position that has most on an h x w map."""
        seen = self._offset_table(h, w)[2]
        # Position (y, x) has the offsets dy in (y - h, y] and dx in (x - w, x]: a box in the table.
        sums = np.pad(seen.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        return int((sums[h:, w:] - sums[:h, w:] - sums[h:, :w] + sums[:h, :w]).max())

    def _offset_table(self, h: int, w: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All offsets dy [2h-1, 1] and dx [1, 2w-1] of a map, and which of them are edges."""
        dy, dx = np.arange(1 - h, h)[:, None], np.arange(1 - w, w)[None]
        with jax.ensure_compile_time_eval():  # counts are Python numbers, inside jax.jit as well
            seen = np.asarray(self.edges(jnp.asarray(dy), jnp.asarray(dx))) > 0
        return dy, dx, np.broadcast_to(seen, (2 * h - 1, 2 * w - 1))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Full(OffsetGraph):
    """Every position sees every position: E = 1, single-head self-attention (non-local)."""

    def edges(self, dy: Array, dx: Array) -> Bool[Array, '...']:
        """All true."""
        return jnp.ones(jnp.broadcast_shapes(dy.shape, dx.shape), bool)

    def num_edges(self, h: int, w: int) -> int:
        """Number of pairs (i, j) with j a neighbour of i on an h x w map."""
        return (h * w) ** 2

    def max_degree(self, h: int, w: int) -> int:
        """Number of neighbours of the position that has most on an h x w map."""
        return h * w


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Local(OffsetGraph):
    """The window of Eq. 4: |dy| <= S and |dx| <= S, truncated at the border of the map.

    Args:
      size: S, number of positions to each side, at least 1; an interior position has (2 S + 1)^2
        neighbours. Or one number for rows and one for columns, at least 0.
    """

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        size = _per_axis(self.size, 'the size of a local graph', least=0)
        object.__setattr__(self, 'size', size)

    @property
    def sizes(self) -> tuple[int, int]:
        """S of rows and of columns."""
        return _pair(self.size)

    def edges(self, dy: Array, dx: Array) -> Bool[Array, '...']:
        """True where the offset lies in the window."""
        return (jnp.abs(dy) <= self.sizes[0]) & (jnp.abs(dx) <= self.sizes[1])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Grid(OffsetGraph):
    """The grid of Eq. 5: dy and dx both multiples of T; any map size, divisible or not.

    Args:
      stride: T, number of positions from one neighbour to the next along each axis, at least 1; or
        one number for rows and one for columns.
    """

    stride: int | tuple[int, int]

    def __post_init__(self) -> None:
        stride = _per_axis(self.stride, 'the stride of a grid graph', least=1)
        object.__setattr__(self, 'stride', stride)

    @property
    def strides(self) -> tuple[int, int]:
        """T of rows and of columns."""
        return _pair(self.stride)

    def edges(self, dy: Array, dx: Array) -> Bool[Array, '...']:
        """True where both offsets are multiples of their strides."""
        return (dy % self.strides[0] == 0) & (dx % self.strides[1] == 0)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Row(OffsetGraph):
    """The row of the query: dy = 0, one half of axial attention."""

    def edges(self, dy: Array, dx: Array) -> Bool[Array, '...']:
        """True in the row of the query."""
        return jnp.broadcast_to(dy == 0, jnp.broadcast_shapes(dy.shape, dx.shape))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Column(OffsetGraph):
    """The column of the query: dx = 0, the other half of axial attention."""

    def edges(self, dy: Array, dx: Array) -> Bool[Array, '...']:
        """True in the column of the query."""
        return jnp.broadcast_to(dx == 0, jnp.broadcast_shapes(dy.shape, dx.shape))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Learned(OffsetGraph):
    """Trainable guidance (section 4.2): E(i, j) = softplus(MLP(dy, dx, sqrt(dy^2 + dx^2))) > 0.

    The MLP has two fully connected layers, 3 -> hidden -> 1 with a ReLU between. Its inputs are
    offsets in units of 32 positions whatever the size of the map, so that the same parameters mean
    the same graph on every map (dividing by h and w would not). The paper leaves open how E stays
    positive; softplus is our choice. A new MLP gives E close to 1, the FULL graph.

    Without `params` this is a specification, hashable; `bind(params)` gives a graph that can
    attend. It is a pytree whose leaves are the parameters: gradients flow through `attend`.

    Args:
      hidden: number of units of the first layer.
      params: None, or float arrays w1 [3, hidden], b1 [hidden], w2 [hidden], b2 [].
    """

    hidden: int = dataclasses.field(default=16, metadata={'static': True})
    params: Mapping[str, Array] | None = None

    trainable = True

    def __post_init__(self) -> None:
        hidden = _natural(self.hidden, 'the hidden units of a learned graph')
        object.__setattr__(self, 'hidden', hidden)

    def init(self, key: PRNGKeyArray) -> dict[str, Array]:
        """New float32 parameters for `bind`."""
        k1, k2, k3 = jax.random.split(key, 3)
        return {
            'w1': jax.random.normal(k1, (3, self.hidden)) * math.sqrt(2 / 3),
            # Spread over +-1: with zero biases every unit would bend at offset zero only.
            'b1': jax.random.uniform(k2, (self.hidden,), minval=-1.0, maxval=1.0),
            'w2': jax.random.normal(k3, (self.hidden,)) * (0.1 / math.sqrt(self.hidden)),
            'b2': jnp.asarray(math.log(math.e - 1.0)),  # softplus gives 1
        }

    def bind(self, params: Mapping[str, Array]) -> Self:
        """This graph with its parameters."""
        return type(self)(self.hidden, params)

    def log_edges(self, dy: Array, dx: Array) -> Float[Array, '...']:
        """log E of the offsets i - j, float32: finite also where E underflows.

        Args:
          dy, dx: number arrays that broadcast, offsets in rows and in columns.
        """
        dy, dx = (x.astype(jnp.float32) for x in jnp.broadcast_arrays(dy, dx))
        x = self._logits(dy, dx)
        # softplus(x) -> e^x far below zero, where the logarithm would underflow.
        return jnp.where(x < -20, x, jnp.log(jax.nn.softplus(jnp.maximum(x, -20))))

    def edges(self, dy: Array, dx: Array) -> Float[Array, '...']:
        """Positive float32 weights E of the offsets i - j."""
        return jnp.exp(self.log_edges(dy, dx))

    def log_table(self, h: int, w: int) -> Float[Array, '2*h-1 2*w-1']:
        """log E of all offsets of an h x w map: entry (dy + h - 1, dx + w - 1)."""
        return self.log_edges(jnp.arange(1 - h, h)[:, None], jnp.arange(1 - w, w)[None])

    def adjacency(self, h: int, w: int) -> Float[Array, 'n n']:
        """Positive float32 weights E of all pairs, from the MLP's values at the offsets."""
        y, x = jnp.divmod(jnp.arange(h * w, dtype=jnp.int32), w)
        dy, dx = y[:, None] - y, x[:, None] - x
        return jnp.exp(self.log_table(h, w))[dy + h - 1, dx + w - 1]

    def mask_of(self, y: ArrayLike, x: ArrayLike, h: int, w: int) -> Bool[Array, 'h w']:
        """All true: the weights are positive, whatever the parameters."""
        return jnp.ones((h, w), bool)

    def log_edges_of(
        self, y: ArrayLike, x: ArrayLike, h: int, w: int
    ) -> Float[Array, 'h w'] | float:
        """log E of the query at row y and column x."""
        return self.log_edges(*_offsets_from(y, x, h, w))

    def num_edges(self, h: int, w: int) -> int:
        """Number of pairs (i, j) on an h x w map: all, whatever the parameters."""
        return (h * w) ** 2

    def max_degree(self, h: int, w: int) -> int:
        """Number of neighbours of each position: all, whatever the parameters."""
        return h * w

    def _logits(self, dy: Array, dx: Array) -> Array:
        if self.params is None:
            raise ValueError(
                'this learned graph has no parameters: bind them first, '
                'graph = graph.bind(graph.init(key))'
            )
        dy, dx = dy / OFFSET_UNIT, dx / OFFSET_UNIT
        features = jnp.stack([dy, dx, jnp.sqrt(dy * dy + dx * dx)], axis=-1)
        p = {name: jnp.asarray(value, jnp.float32) for name, value in self.params.items()}
        units = jax.nn.relu(jnp.matmul(features, p['w1'], precision='highest') + p['b1'])
        return jnp.matmul(units, p['w2'], precision='highest') + p['b2']


# The graphs that the head grammar knows by a short name: every concrete class of this module.
GRAPHS: dict[str, type[Graph]] = {
    cls.kind(): cls
    for cls in list(vars().values())
    if inspect.isclass(cls) and issubclass(cls, Graph) and not inspect.isabstract(cls)
}


def parse(text: str) -> tuple[Graph, ...]:
    """The graphs of a list of heads such as 'local:8,16,24,grid:8,16,24', 'full' or 'learned'.

    A graph outside this module is written 'package.module:Class' or 'package.module:Class:NUMBER'
    and is imported.

    Args:
      text: heads separated by commas; a bare number repeats the kind of the head before it, and
        4x12 gives 4 for rows and 12 for columns.

    Returns:
      One graph per head, in order.

    Raises:
      ValueError: an unknown kind, a class that cannot be imported or is no graph, a missing or
        superfluous number, a number below 1, or no head.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'heads are written like local:8,16,24,grid:8,16,24; got {text!r}')
    heads: list[Graph] = []
    kind = None
    for head in (part.strip() for part in text.split(',')):
        if _NUMBER.fullmatch(head):
            if kind is None:
                raise ValueError(f'head {head!r} is a bare number with no kind before it: {text!r}')
            number: str | None = head
        else:
            kind, number = _split_head(head)
        if number is not None and not _NUMBER.fullmatch(number):
            raise ValueError(
                f'head {head!r} needs a whole number of at least 1 after the colon, or one for '
                'rows and one for columns as in local:4x12'
            )
        heads.append(_build(_find(kind, head), number, head))
    return tuple(heads)


def _split_head(head: str) -> tuple[str, str | None]:
    """'local:8' -> ('local', '8'); 'pkg.module:Ring:8' -> ('pkg.module:Ring', '8')."""
    kind, *rest = head.split(':', 2 if '.' in head.partition(':')[0] else 1)
    if '.' in kind and rest:
        kind = f'{kind}:{rest.pop(0)}'
    return kind, rest[0] if rest else None


def _find(kind: str, head: str) -> type[Graph]:
    """The class of a kind; that of another package is imported."""
    if kind in GRAPHS:
        return GRAPHS[kind]
    module_name, colon, class_name = kind.partition(':')
    if not colon:
        raise ValueError(
            f'head {head!r} is not one of {", ".join(map(_usage, GRAPHS))}, '
            'nor package.module:Class of a graph of yours'
        )
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f'head {head!r}: {kind} cannot be imported ({error}); install the package or put its '
            'folder on PYTHONPATH'
        ) from error
    if not (inspect.isclass(cls) and issubclass(cls, Graph)):
        raise ValueError(f'head {head!r}: {kind} is not a subclass of ggcf_jax.attention.Graph')
    return cls


def _build(cls: type[Graph], number: str | None, head: str) -> Graph:
    """The graph of a class with its first argument, where a number was written."""
    parameters = inspect.signature(cls).parameters.values()
    required = sum(p.default is p.empty for p in parameters)
    numbers_given = tuple(map(int, number.split('x'))) if number else ()
    given: tuple[Any, ...] = (numbers_given,) if len(numbers_given) == 2 else numbers_given
    if not required <= len(given) <= len(parameters):
        if cls.kind() in GRAPHS:
            raise ValueError(f'head {head!r} is not one of {", ".join(map(_usage, GRAPHS))}')
        raise ValueError(f'head {head!r}: {cls.kind()} takes {inspect.signature(cls)}')
    return cls(*given)


def _usage(kind: str) -> str:
    """How a kind is written: 'full', 'local:SIZE', 'learned[:HIDDEN]'."""
    parameters = list(inspect.signature(GRAPHS[kind]).parameters.values())
    if not parameters:
        return kind
    number = f':{parameters[0].name.upper()}'
    return kind + (number if parameters[0].default is inspect.Parameter.empty else f'[{number}]')


def _offsets_from(y: ArrayLike, x: ArrayLike, h: int, w: int) -> tuple[Array, Array]:
    """Offsets i - j from the query i at (y, x) to all j: dy [h, 1], dx [1, w]."""
    return jnp.asarray(y) - jnp.arange(h)[:, None], jnp.asarray(x) - jnp.arange(w)[None]


def _per_axis(value: object, what: str, *, least: int) -> int | tuple[int, int]:
    """One whole number of at least 1, or one for each axis of at least `least`, as Python integers.

    Two equal numbers are one, so that equal graphs compare equal.
    """
    if not isinstance(value, (tuple, list)):
        return _natural(value, what)
    if len(value) != 2 or any(
        isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < least for n in value
    ):
        raise ValueError(
            f'{what} must be an integer of at least 1, or two of at least {least}, not {value!r}'
        )
    rows, columns = map(int, value)
    return _natural(rows, what) if rows == columns else (rows, columns)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _natural(value: object, what: str) -> int:
    """A whole number of at least 1 as a Python integer: numpy's are taken as well."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f'{what} must be an integer of at least 1, not {value!r}')
    return int(value)
