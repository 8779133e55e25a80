"""Single rows of the attention matrix: where chosen queries look.

One query at a time, its scores against the whole map: h*w numbers a head, never h*w x h*w.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import graphs, pruning, softmax


def probabilities(q, k, graph, positions, *, scale, prune):
    """The weights with which `attend` sums v for the queries at `positions`.

    Args:
      q, k: [b, h, w, heads, dk].
      graph: as for `attend`.
      positions: integers [m, 2], row and column of each query; outside the map they are clamped.
      scale: factor of the affinities.
      prune: None or a `pruning.Prune`.

    Returns:
      float32 [b, m, heads, h, w], zero where a position is no neighbour or was dropped; the sum
      over the map is one.
    """
    b, h, w, heads, dk = q.shape
    keys = jnp.swapaxes(k.reshape(b, h * w, heads, dk), 1, 2)
    every = jnp.arange(h * w)

    def row(position):
        y, x = jnp.clip(position, 0, jnp.array([h - 1, w - 1]))
        query = lax.dynamic_slice(q, (0, y, x, 0, 0), (b, 1, 1, heads, dk))
        s = softmax.scores(query.reshape(b, heads, 1, dk), keys, scale)
        kept = _mask(graph, y, x, h, w)
        if prune is not None:
            kept = pruning.select(s, kept, prune, b, (y * w + x)[None], every)
        s = s + _bias(graph, y, x, h, w)
        p = jax.nn.softmax(jnp.where(kept, s, -jnp.inf), axis=-1)
        return p.reshape(b, heads, h, w)

    return jnp.moveaxis(lax.map(row, jnp.asarray(positions, jnp.int32)), 0, 1)


def neighbours(graph, positions, h, w):
    """Which positions the queries at `positions` [m, 2] see on an h x w map: bool [m, h, w]."""

    def row(position):
        return _mask(graph, *position, h, w).reshape(h, w)

    return lax.map(row, jnp.asarray(positions, jnp.int32))


def _mask(graph, y, x, h, w):
    """Bool [h*w], which positions the query at (y, x) sees."""
    if isinstance(graph, graphs.Learned):  # its weights are positive, whatever its parameters
        return jnp.ones(h * w, bool)
    return _edges(graph, y, x, h, w) > 0


def _bias(graph, y, x, h, w):
    """log E of the positions that the query at (y, x) sees, float32 [h*w]; 0.0 where E is 1."""
    if isinstance(graph, graphs.Learned):
        return graph.log_edges(*_offsets(y, x, h, w)).reshape(-1)
    edges = _edges(graph, y, x, h, w)
    return 0.0 if edges.dtype == bool else jnp.log(jnp.where(edges > 0, edges, 1))


def _edges(graph, y, x, h, w):
    if hasattr(graph, 'edges'):
        return graph.edges(*_offsets(y, x, h, w)).reshape(-1)
    # A graph with nothing but its definition, which is of all pairs.
    return jnp.asarray(graph.adjacency(h, w))[y * w + x]


def _offsets(y, x, h, w):
    return y - jnp.arange(h)[:, None], x - jnp.arange(w)[None]
