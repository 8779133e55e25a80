"""The graphs that the head grammar knows by a short name."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from ggcf_jax.attention.frame import Frame
from ggcf_jax.attention.graph import Graph, OffsetGraph, SeparableGraph, offsets_from

Border = Literal['truncate', 'shift']

BORDERS: tuple[Border, ...] = ('truncate', 'shift')
OFFSET_UNIT = 32.0  # positions; the unit in which Learned sees offsets, the same for every map


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Full(SeparableGraph):
    """Every position sees every position: E = 1, single-head self-attention (non-local)."""

    def axis_edges(self, axis: int, i: Array, j: Array, n: int) -> Bool[Array, '...']:
        """All true."""
        return jnp.ones(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def degrees(self, h: int, w: int) -> Int[np.ndarray, 'h w']:
        """Number of neighbours of each position of an h x w map: all."""
        return np.full((h, w), h * w)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Local(SeparableGraph):
    """The window of Eq. 4: |dy| <= S and |dx| <= S; dilated, every D-th position of a larger one.

    With dilation D the window holds the S nearest positions to each side among those whose row and
    column differ by multiples of D: dilated neighbourhood attention (Hassani and Shi, 2022,
    arXiv:2209.15001). It is LOCAL inside each residue class of GRID with stride D.

    At the border of the map a truncated window ends, so that positions there have fewer neighbours.
    A shifted one is moved inward and keeps its size: every position has min(2 S + 1, n) neighbours
    per axis, n being the number of positions of its residue class. That is the rule of NATTEN
    (github.com/SHI-Labs/NATTEN, csrc/include/natten/cuda/reference/mask.hpp at b05994f).
    Where only some positions are valid, the border is that of their frame, the smallest rectangle
    that holds them; queries outside of it, whose windows are moved by S at most, see what is left.

    Args:
      size: S, number of positions to each side, at least 1; an interior position has (2 S + 1)^2
        neighbours. Or one number for rows and one for columns, at least 0.
      dilation: D, number of positions from one neighbour to the next along each axis, at least 1;
        or one number for rows and one for columns.
      border: 'truncate' or 'shift'.
    """

    size: int | tuple[int, int]
    dilation: int | tuple[int, int] = dataclasses.field(default=1, metadata={'before': '@'})
    border: Border = dataclasses.field(default='truncate', metadata={'before': ':'})

    def __post_init__(self) -> None:
        size = _per_axis(self.size, 'the size of a local graph', least=0)
        dilation = _per_axis(self.dilation, 'the dilation of a local graph', least=1)
        object.__setattr__(self, 'size', size)
        object.__setattr__(self, 'dilation', dilation)
        if self.border not in BORDERS:
            raise ValueError(
                f'the border of a local graph is one of {", ".join(BORDERS)}, not {self.border!r}'
            )

    @property
    def sizes(self) -> tuple[int, int]:
        """S of rows and of columns."""
        return _pair(self.size)

    @property
    def dilations(self) -> tuple[int, int]:
        """D of rows and of columns."""
        return _pair(self.dilation)

    @property
    def steps(self) -> tuple[int, int]:
        """D of rows and of columns: a position bias counts neighbours."""
        return self.dilations

    def axis_edges(self, axis: int, i: Array, j: Array, n: int) -> Bool[Array, '...']:
        """True where j lies in the window of i."""
        # Numbers beyond the axis mean what its length does.
        size, dilation = min(self.sizes[axis], n), min(self.dilations[axis], n)
        same = (i - j) % dilation == 0
        if self.border == 'truncate':
            return same & (jnp.abs(i - j) <= min(size * dilation, n))
        return same & shifted_window(i, j, size, dilation, 0, n)

    def within(self, frame: Frame) -> SeparableGraph:
        """Shifted windows move inward from the border of the frame."""
        return self if self.border == 'truncate' else _Framed(self, frame)


@dataclasses.dataclass(frozen=True, eq=False)
class _Framed(SeparableGraph):
    """Shifted windows on a map that ends with a frame; equal to itself alone."""

    graph: Local
    frame: Frame

    @property
    def steps(self) -> tuple[int, int]:
        """Those of the windows."""
        return self.graph.steps

    def axis_edges(self, axis: int, i: Array, j: Array, n: int) -> Bool[Array, '...']:
        """True where j lies in the window of i."""
        size, dilation = min(self.graph.sizes[axis], n), min(self.graph.dilations[axis], n)
        ends = self.frame.first[axis], self.frame.end[axis]
        return ((i - j) % dilation == 0) & shifted_window(i, j, size, dilation, *ends)


def shifted_window(
    i: Array, j: Array, size: int, dilation: int, first: ArrayLike, end: ArrayLike
) -> Bool[Array, '...']:
    """Whether a position lies in the window of another, which is moved inward at the border.

    Args:
      i, j: integer arrays that broadcast, the query's and the key's positions on an axis, of one
        residue class.
      size: number of positions to each side.
      dilation: distance of the members of a residue class.
      first, end: where the axis begins and ends.

    Returns:
      Bool, of the broadcast shape. Of a query outside of [first, end) the window is moved by `size`
      towards it at most, as it is of those inside.
    """
    at, residue = i // dilation, i % dilation  # counted in members of the residue class
    lowest = -((residue - first) // dilation)
    last_start = (end - 1 - residue) // dilation - 2 * size
    start = jnp.maximum(lowest, jnp.minimum(at - size, last_start))
    after = j // dilation - jnp.clip(start, at - 2 * size, at)
    return (after >= 0) & (after <= 2 * size)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Grid(SeparableGraph):
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

    @property
    def steps(self) -> tuple[int, int]:
        """T of rows and of columns: a position bias counts neighbours."""
        return self.strides

    def axis_edges(self, axis: int, i: Array, j: Array, n: int) -> Bool[Array, '...']:
        """True where the offset is a multiple of the stride."""
        return (i - j) % min(self.strides[axis], n) == 0


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Row(SeparableGraph):
    """The row of the query: dy = 0, one half of axial attention."""

    def axis_edges(self, axis: int, i: Array, j: Array, n: int) -> Bool[Array, '...']:
        """True in the row of the query."""
        return (i == j) | (axis == 1)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Column(SeparableGraph):
    """The column of the query: dx = 0, the other half of axial attention."""

    def axis_edges(self, axis: int, i: Array, j: Array, n: int) -> Bool[Array, '...']:
        """True in the column of the query."""
        return (i == j) | (axis == 0)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Cross(OffsetGraph):
    """The row and the column of the query, which has h + w - 1 neighbours: criss-cross attention.

    CCNet (Huang et al., 2019, arXiv:1811.11721) applies it twice, so that every position reaches
    every other one. Each position is its own neighbour once, as in the authors' code
    (github.com/speedinghzl/CCNet, cc_attention/functions.py at 1fae6c6).
    """

    def edges(self, dy: Array, dx: Array) -> Bool[Array, '...']:
        """True in the row and in the column of the query."""
        return (dy == 0) | (dx == 0)

    def parts(self) -> tuple[Graph, ...]:
        """The row and the column."""
        return Row(), Column()

    def degrees(self, h: int, w: int) -> Int[np.ndarray, 'h w']:
        """Number of neighbours of each position of an h x w map."""
        return np.full((h, w), h + w - 1)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Block(SeparableGraph):
    """Non-overlapping windows: a position sees those of its own block.

    Blocks begin at shift + k * size for all integers k, and the border of the map cuts those that
    reach over it. With shift they are the shifted windows of Swin (Liu et al., 2021,
    arXiv:2103.14030), whose mask keeps apart what its cyclic shift brings together
    (github.com/microsoft/Swin-Transformer, models/swin_transformer.py at 055c506); without, the
    short range of interlaced sparse attention (Huang et al., 2019, arXiv:1907.12273), whose long
    range is a GRID.

    Args:
      size: height and width of a block in positions, at least 1; or one number for rows and one for
        columns.
      shift: row and column at which a block begins, at least 0, counted modulo the size; or one
        number for rows and one for columns.
    """

    size: int | tuple[int, int]
    shift: int | tuple[int, int] = dataclasses.field(default=0, metadata={'before': '+'})

    def __post_init__(self) -> None:
        size = _per_axis(self.size, 'the size of a block graph', least=1)
        object.__setattr__(self, 'size', size)
        shifts = self.shift if isinstance(self.shift, (tuple, list)) else (self.shift, self.shift)
        if len(shifts) != 2 or not all(_is_whole(n, least=0) for n in shifts):
            raise ValueError(
                'the shift of a block graph must be an integer of at least 0, or two, not '
                f'{self.shift!r}'
            )
        rows, columns = (int(n) % length for n, length in zip(shifts, self.sizes))
        object.__setattr__(self, 'shift', rows if rows == columns else (rows, columns))

    @property
    def sizes(self) -> tuple[int, int]:
        """Height and width of a block."""
        return _pair(self.size)

    @property
    def shifts(self) -> tuple[int, int]:
        """First row and first column at which a block begins."""
        return _pair(self.shift)

    def axis_edges(self, axis: int, i: Array, j: Array, n: int) -> Bool[Array, '...']:
        """True in the block of the query."""
        # Numbers beyond the axis mean what its length does.
        size, shift = min(self.sizes[axis], n), min(self.shifts[axis], n)
        return (i - shift) // size == (j - shift) // size


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
        return self.log_edges(*offsets_from(y, x, h, w))

    def degrees(self, h: int, w: int) -> Int[np.ndarray, 'h w']:
        """Number of neighbours of each position: all, whatever the parameters."""
        return np.full((h, w), h * w)

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


def _per_axis(value: object, what: str, *, least: int) -> int | tuple[int, int]:
    """One whole number of at least 1, or one for each axis of at least `least`, as Python integers.

    Two equal numbers are one, so that equal graphs compare equal.
    """
    if not isinstance(value, (tuple, list)):
        return _natural(value, what)
    if len(value) != 2 or not all(_is_whole(n, least=least) for n in value):
        raise ValueError(
            f'{what} must be an integer of at least 1, or two of at least {least}, not {value!r}'
        )
    rows, columns = map(int, value)
    return _natural(rows, what) if rows == columns else (rows, columns)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _natural(value: object, what: str) -> int:
    """A whole number of at least 1 as a Python integer: numpy's are taken as well."""
    if not isinstance(value, numbers.Integral) or not _is_whole(value, least=1):
        raise ValueError(f'{what} must be an integer of at least 1, not {value!r}')
    return int(value)


def _is_whole(value: object, *, least: int) -> bool:
    """Whether it is an integer of at least that."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        return False
    return int(value) >= least
