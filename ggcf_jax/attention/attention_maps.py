"""Attention maps: where single queries look.

One query at a time, its scores against the whole map: h*w numbers per head, never h*w x h*w, except
by the definition of a graph that has nothing but `adjacency`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import block_sizes, position_bias, pruning, softmax
from ggcf_jax.attention.graph import Graph, of_images
from ggcf_jax.attention.layout import as_rows
from ggcf_jax.attention.pruning import Prune


def attention_weights(
    q: jax.Array,
    k: jax.Array,
    graph: Graph,
    positions: jax.Array,
    *,
    valid: jax.Array | None,
    bias: jax.Array | None,
    scale: float,
    prune: Prune | None,
) -> jax.Array:
    """The weights with which `attend` sums v for the queries at `positions`.

    Args:
      q: queries [b, h, w, heads, dk].
      k: keys [b, h, w, heads, dk].
      graph: graph of all heads.
      positions: row and column of each query, integers [m, 2]; clamped to the map.
      valid: which positions may be attended to, bool [b, h, w]; None for all.
      bias: bias of the scores by offset, [heads or 1, 2 R + 1, 2 C + 1]; or None.
      scale: factor of the affinities.
      prune: how many neighbours are kept and by what priority; None for all.

    Returns:
      float32 [b, m, heads, h, w], zero where a position is no neighbour or was dropped; the sum
      over the map is one, or zero for a query without neighbours.
    """
    b, h, w, heads, dk = q.shape
    keys, every = as_rows(k), jnp.arange(h * w)
    few_steps = block_sizes.current(b).few_steps

    def weights_of(position: jax.Array) -> jax.Array:
        y, x = jnp.clip(position, 0, jnp.array([h - 1, w - 1]))
        query = lax.dynamic_slice(q, (0, y, x, 0, 0), (b, 1, 1, heads, dk))
        s = softmax.scores(query.reshape(b, heads, 1, dk), keys, scale)
        mask = of_images(graph, valid, lambda graph: graph.mask_of(y, x, h, w))
        mask = mask.reshape(-1, 1, 1, h * w)
        if valid is not None:
            mask = mask & valid.reshape(b, 1, 1, -1)
        kept = mask
        if prune is not None:
            kept = pruning.select(s, mask, prune, (y * w + x)[None], every, few_steps=few_steps)
        if bias is not None:
            own = position_bias.of_query(bias, graph, y, x, h, w)
            s = s + own.reshape(own.shape[0], 1, h * w)
        weights = of_images(graph, valid, lambda g: jnp.asarray(g.log_edges_of(y, x, h, w)))
        s = s + weights.reshape(len(weights), 1, 1, -1)
        p = jax.nn.softmax(jnp.where(kept, s, softmax.HIDDEN), axis=-1)
        p = jnp.where(mask.any(-1, keepdims=True), p, 0)
        return p.reshape(b, heads, h, w)

    return jnp.moveaxis(lax.map(weights_of, jnp.asarray(positions, jnp.int32)), 0, 1)


def neighbor_mask(graph: Graph, positions: jax.Array, h: int, w: int) -> jax.Array:
    """Which positions the queries at `positions` [m, 2] see on an h x w map: bool [m, h, w]."""

    def mask_of(position: jax.Array) -> jax.Array:
        return graph.mask_of(position[0], position[1], h, w)

    return lax.map(mask_of, jnp.asarray(positions, jnp.int32))
