"""Single rows of the attention matrix: where chosen queries look.

One query at a time, its scores against the whole map: h*w numbers a head, never h*w x h*w.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax import graphs
from ggcf_jax.attention import pruning, softmax


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
        mask, bias = _edges(graph, y, x, h, w)
        kept = mask
        if prune is not None:
            kept = pruning.select(s, mask, prune, b, (y * w + x)[None], every)
        p = jax.nn.softmax(jnp.where(kept, s + bias, -jnp.inf), axis=-1)
        return p.reshape(b, heads, h, w)

    return jnp.moveaxis(lax.map(row, jnp.asarray(positions, jnp.int32)), 0, 1)


def _edges(graph, y, x, h, w):
    """Which positions the query at (y, x) sees, bool [h*w], and log E of these, [h*w] or 0."""
    dy, dx = y - jnp.arange(h)[:, None], x - jnp.arange(w)[None]
    if isinstance(graph, graphs.Learned):
        return jnp.ones(h * w, bool), graph.log_edges(dy, dx).reshape(-1)
    if hasattr(graph, 'edges'):
        edges = graph.edges(dy, dx).reshape(-1)
    else:  # a graph with nothing but its definition, which has all pairs
        edges = jnp.asarray(graph.adjacency(h, w))[y * w + x]
    if edges.dtype == bool:
        return edges, 0.0
    return edges > 0, jnp.log(jnp.where(edges > 0, edges, 1))
