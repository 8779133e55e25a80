"""Graph attention with a dense mask: the reference that the engines are tested against.

It works for every graph and needs h*w x h*w scores per head: for small maps and for tests.
"""

import jax
import jax.numpy as jnp

from ggcf_jax.attention import position_bias, pruning, softmax
from ggcf_jax.attention.graph import Graph, of_images
from ggcf_jax.attention.layout import as_map, as_rows
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune


def attend(
    inputs: Inputs, graph: Graph, *, scale: float = 1.0, prune: Prune | None = None
) -> Partial:
    """Eq. 3 for one head after another, written as it stands.

    Args:
      inputs: the arrays of the attention.
      graph: graph of all heads.
      scale: factor of the affinities.
      prune: how many neighbours are kept and by what priority; None for all.

    Returns:
      Output and log-sum-exp. Differentiable also when pruned: the choice of the kept neighbours is
      a constant.
    """
    q, k, v, valid, bias, _ = inputs
    b, h, w, heads, _ = q.shape
    n = h * w

    q, k = as_rows(q), as_rows(k)
    v = jnp.broadcast_to(as_rows(v), (b, heads, n, v.shape[-1]))
    edges = of_images(graph, valid, lambda graph: jnp.asarray(graph.adjacency(h, w)))[:, None]
    mask = edges > 0
    if valid is not None:
        mask = mask & valid.reshape(b, 1, 1, n)
    dtype, accumulator = v.dtype, softmax.accumulator(q, k, v)
    s = scale * jnp.einsum(
        'bkid,bkjd->bkij', q, k, precision='highest', preferred_element_type=accumulator
    )
    kept = mask if prune is None else pruning.dense_mask(s, mask, prune)
    if bias is not None:
        s = s + position_bias.of_pairs(bias, graph, h, w)
    if edges.dtype != bool:
        s = s + jnp.log(jnp.where(edges > 0, edges, 1))
    s = jnp.where(kept, s, softmax.HIDDEN)
    seen = mask.any(-1, keepdims=True)
    s = jnp.where(seen, s, 0)  # no NaN, not even in a gradient
    p = jnp.where(seen, jax.nn.softmax(s, axis=-1), 0)
    lse = jnp.where(seen[..., 0], jax.nn.logsumexp(s, axis=-1), softmax.HIDDEN)
    o = jnp.einsum(
        'bkij,bkjd->bkid', p, v.astype(accumulator), precision='highest',
        preferred_element_type=accumulator,
    )  # fmt: skip
    return Partial(as_map(o, h, w).astype(dtype), jnp.moveaxis(lse, 1, 2).reshape(b, h, w, heads))


def attend_across(inputs: Inputs, scale: float) -> jax.Array:
    """Attention of each position to all positions of another map.

    Args:
      inputs: the arrays; keys, values and valid are those of the other map.
      scale: factor of the affinities.

    Returns:
      Output [b, h, w, heads, dv] in the dtype of v.
    """
    q, k, v, valid, _, _ = inputs
    b, h, w, heads, _ = q.shape
    scores = softmax.scores(as_rows(q), as_rows(k), scale)
    keys = as_rows(v)
    seen = None
    if valid is not None:
        seen = valid.reshape(b, 1, 1, -1)
        scores = jnp.where(seen, scores, softmax.HIDDEN)
        nobody = ~seen.any(-1, keepdims=True)
        scores = jnp.where(nobody, 0, scores)
    o, _ = softmax.normalise(scores, jnp.broadcast_to(keys, (b, heads, *keys.shape[2:])))
    if seen is not None:
        o = jnp.where(nobody, 0, o)
    return as_map(o.astype(v.dtype), h, w)
