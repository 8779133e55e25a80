"""Neighbourhood graphs over the positions of a map: the definition of each, and the grammar.

A graph says which positions j a position i may fuse context from, E(i, j) of Eq. 3. It is
anything with `adjacency(h, w)`; every graph here is a value object that includes self, depends on
the offset i - j only, and is defined for every map size. Since it depends on the offset only, a
graph here also has `edges(dy, dx)`, by which one query's neighbours cost no pairs of others.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

OFFSET_UNIT = 32.0  # positions; the unit in which Learned sees offsets, the same for every map


def _offsets(h, w):
    """Offsets i - j of all pairs of positions in row-major order: dy, dx, int32 [h*w, h*w] each."""
    y, x = jnp.divmod(jnp.arange(h * w, dtype=jnp.int32), w)
    return y[:, None] - y[None], x[:, None] - x[None]


def _natural(value, what):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f'{what} must be an integer of at least 1, not {value!r}')


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Full:
    """Every position sees every position: E = 1, single-head self-attention (non-local)."""

    def edges(self, dy, dx):
        """Bool, shaped like the integer arrays dy and dx of offsets i - j: all true."""
        return jnp.ones(jnp.broadcast_shapes(dy.shape, dx.shape), bool)

    def adjacency(self, h, w):
        """Bool [h*w, h*w], all true."""
        return jnp.ones((h * w, h * w), bool)

    def pairs(self, h, w):
        """Number of pairs (i, j) with j a neighbour of i on an h x w map."""
        return (h * w) ** 2

    def neighbours(self, h, w):
        """Neighbours of the position that has most."""
        return h * w

    def __str__(self):
        return 'full'


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Local:
    """The window of Eq. 4: max(|dy|, |dx|) <= size, truncated at the border of the map.

    Args:
      size: S, positions to each side; an interior position has (2 S + 1)^2 neighbours.
    """

    size: int

    def __post_init__(self):
        _natural(self.size, 'the size of a local graph')

    def edges(self, dy, dx):
        """Bool, true where the offsets i - j, integer arrays, lie in the window."""
        return (jnp.abs(dy) <= self.size) & (jnp.abs(dx) <= self.size)

    def adjacency(self, h, w):
        """Bool [h*w, h*w], true where j lies in the window around i."""
        return self.edges(*_offsets(h, w))

    def pairs(self, h, w):
        """Number of pairs (i, j) with j a neighbour of i on an h x w map."""

        def axis(n):
            s = min(self.size, n - 1)
            return n * (2 * s + 1) - s * (s + 1)

        return axis(h) * axis(w)

    def neighbours(self, h, w):
        """Neighbours of the position that has most."""
        reach = 2 * self.size + 1
        return min(reach, h) * min(reach, w)

    def __str__(self):
        return f'local:{self.size}'


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid of Eq. 5: dy and dx both multiples of the stride; any map size, divisible or not.

    Args:
      stride: T, positions between neighbours along each axis.
    """

    stride: int

    def __post_init__(self):
        _natural(self.stride, 'the stride of a grid graph')

    def edges(self, dy, dx):
        """Bool, true where the offsets i - j, integer arrays, are multiples of the stride."""
        return (dy % self.stride == 0) & (dx % self.stride == 0)

    def adjacency(self, h, w):
        """Bool [h*w, h*w], true where i and j have equal residues modulo the stride."""
        return self.edges(*_offsets(h, w))

    def pairs(self, h, w):
        """Number of pairs (i, j) with j a neighbour of i on an h x w map."""

        def axis(n):
            members, longer = divmod(n, self.stride)
            return longer * (members + 1) ** 2 + (self.stride - longer) * members**2

        return axis(h) * axis(w)

    def neighbours(self, h, w):
        """Neighbours of the position that has most."""
        return -(-h // self.stride) * -(-w // self.stride)

    def __str__(self):
        return f'grid:{self.stride}'


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Learned:
    """Trainable guidance (section 4.2): E(i, j) = softplus(MLP(dy, dx, sqrt(dy^2 + dx^2))) > 0.

    The MLP has two fully connected layers, 3 -> hidden -> 1 with a ReLU between. Its inputs are
    offsets in units of 32 positions whatever the size of the map, so that the same parameters mean
    the same graph on every map (dividing by h and w would not). The paper leaves open how E stays
    positive; softplus is our choice. A new MLP gives E close to 1, the FULL graph.

    Without `params` this is a specification, hashable; `bind(params)` gives a graph that can
    attend. It is a pytree whose leaves are the parameters: gradients flow through `attend`.

    Args:
      hidden: units of the first layer.
      params: None, or float arrays w1 [3, hidden], b1 [hidden], w2 [hidden], b2 [].
    """

    hidden: int = dataclasses.field(default=16, metadata={'static': True})
    params: dict | None = None

    def __post_init__(self):
        _natural(self.hidden, 'the hidden units of a learned graph')

    def init(self, key):
        """New float32 parameters from a PRNG key, for `bind`."""
        k1, k2, k3 = jax.random.split(key, 3)
        return {
            'w1': jax.random.normal(k1, (3, self.hidden)) * math.sqrt(2 / 3),
            # Spread over +-1: with zero biases every unit would bend at offset zero only.
            'b1': jax.random.uniform(k2, (self.hidden,), minval=-1.0, maxval=1.0),
            'w2': jax.random.normal(k3, (self.hidden,)) * (0.1 / math.sqrt(self.hidden)),
            'b2': jnp.asarray(math.log(math.e - 1.0)),  # softplus gives 1
        }

    def bind(self, params):
        """This graph with its parameters."""
        return Learned(self.hidden, params)

    def _logits(self, dy, dx):
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

    def log_edges(self, dy, dx):
        """log E of the offsets i - j, number arrays that broadcast: float32."""
        dy, dx = (x.astype(jnp.float32) for x in jnp.broadcast_arrays(dy, dx))
        x = self._logits(dy, dx)
        # softplus(x) -> e^x far below zero, where the logarithm would underflow.
        return jnp.where(x < -20, x, jnp.log(jax.nn.softplus(jnp.maximum(x, -20))))

    def edges(self, dy, dx):
        """Positive float32 weights E of the offsets i - j, number arrays that broadcast."""
        return jnp.exp(self.log_edges(dy, dx))

    def log_table(self, h, w):
        """log E of all offsets: float32 [2h-1, 2w-1], entry (dy + h - 1, dx + w - 1)."""
        return self.log_edges(jnp.arange(1 - h, h)[:, None], jnp.arange(1 - w, w)[None])

    def adjacency(self, h, w):
        """Positive float32 weights E [h*w, h*w]."""
        dy, dx = _offsets(h, w)
        return jnp.exp(self.log_table(h, w))[dy + h - 1, dx + w - 1]

    def pairs(self, h, w):
        """Number of pairs (i, j) with j a neighbour of i on an h x w map."""
        return (h * w) ** 2

    def neighbours(self, h, w):
        """Neighbours of the position that has most."""
        return h * w

    def __str__(self):
        return 'learned' if self.hidden == 16 else f'learned:{self.hidden}'


def _head(kind, number, head):
    if kind == 'full' and number is None:
        return Full()
    if kind == 'local' and number is not None:
        return Local(number)
    if kind == 'grid' and number is not None:
        return Grid(number)
    if kind == 'learned':
        return Learned() if number is None else Learned(number)
    raise ValueError(
        f'head {head!r} is not one of full, local:S, grid:T, learned (or learned:HIDDEN)'
    )


def parse(text):
    """The graphs of a head list such as 'local:8,16,24,grid:8,16,24', 'full' or 'learned'.

    Args:
      text: heads separated by commas; a bare number repeats the kind of the head before it.

    Returns:
      A tuple of graphs, one a head, in order.

    Raises:
      ValueError: an unknown kind, a missing or superfluous number, a number below 1, or no head.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'heads are written like local:8,16,24,grid:8,16,24; got {text!r}')
    graphs, kind = [], None
    for head in (part.strip() for part in text.split(',')):
        name, colon, number = head.partition(':')
        if head.isdecimal():
            if kind is None:
                raise ValueError(f'head {head!r} is a bare number with no kind before it: {text!r}')
            name, number = kind, head
        elif colon and not number.isdecimal():
            raise ValueError(f'head {head!r} needs a whole number of at least 1 after the colon')
        graphs.append(_head(name, int(number) if number else None, head))
        kind = name
    return tuple(graphs)
