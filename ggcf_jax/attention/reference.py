"""Graph attention with a dense mask: the reference that the engines are tested against.

It works for every graph and needs h*w x h*w scores per head: for small maps and for tests.
"""

import jax
import jax.numpy as jnp

from ggcf_jax.attention import pruning, softmax
from ggcf_jax.attention.graphs import Graph
from ggcf_jax.attention.layout import as_map, as_rows
from ggcf_jax.attention.pruning import Prune


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    graph: Graph,
    *,
    scale: float = 1.0,
    prune: Prune | None = None,
) -> jax.Array:
    """Eq. 3 for one head after another, written as it stands.

    Args:
      q: queries [b, h, w, heads, dk].
      k: keys [b, h, w, heads, dk].
      v: values [b, h, w, heads or 1, dv].
      graph: graph of all heads.
      scale: factor of the affinities.
      prune: how many neighbours are kept and by what priority; None for all.

    Returns:
      [b, h, w, heads, dv] in the dtype of v. Differentiable also when pruned: the choice of the
      kept neighbours is a constant.
    """
    b, h, w, heads, _ = q.shape
    n = h * w

    q, k = as_rows(q), as_rows(k)
    v = jnp.broadcast_to(as_rows(v), (b, heads, n, v.shape[-1]))
    edges = jnp.asarray(graph.adjacency(h, w))
    mask = edges > 0
    dtype, accumulator = v.dtype, softmax.accumulator(q, k, v)
    s = scale * jnp.einsum(
        'bkid,bkjd->bkij', q, k, precision='highest', preferred_element_type=accumulator
    )
    kept = mask if prune is None else pruning.dense_mask(s, mask, prune)
    if edges.dtype != bool:
        s = s + jnp.log(jnp.where(mask, edges, 1))
    s = jnp.where(kept, s, -jnp.inf)
    p = jax.nn.softmax(s, axis=-1)
    o = jnp.einsum(
        'bkij,bkjd->bkid', p, v.astype(accumulator), precision='highest',
        preferred_element_type=accumulator,
    )  # fmt: skip
    return as_map(o, h, w).astype(dtype)
