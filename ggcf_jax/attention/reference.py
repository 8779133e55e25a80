"""Graph attention with a dense mask: the twin against which the engine is tested.

It works for every graph, a new one with nothing but `adjacency` included, and needs h*w x h*w
scores a head: for small maps and for tests.
"""

import jax
import jax.numpy as jnp

from ggcf_jax.attention import pruning


def attend(q, k, v, graph, *, scale=1.0, prune=None):
    """Eq. 3 for one head after another, written as it stands.

    Args:
      q, k: [b, h, w, heads, dk]; v: [b, h, w, heads or 1, dv].
      graph: anything with adjacency(h, w) -> [h*w, h*w], bool or non-negative float weights.
      scale: factor of the affinities.
      prune: None or a `pruning.Prune`.

    Returns:
      [b, h, w, heads, dv] in the dtype of v. Differentiable also when pruned: the choice of the
      kept neighbours is a constant.
    """
    b, h, w, heads, _ = q.shape
    n = h * w

    def rows(x):
        return jnp.swapaxes(x.reshape(b, n, x.shape[3], x.shape[4]), 1, 2)

    q, k = rows(q), rows(k)
    dtype, v = v.dtype, jnp.broadcast_to(rows(v), (b, heads, n, v.shape[-1]))
    edges = jnp.asarray(graph.adjacency(h, w))
    mask = edges > 0
    s = scale * jnp.einsum(
        'bkid,bkjd->bkij', q, k, precision='highest', preferred_element_type=jnp.float32
    )
    kept = mask if prune is None else pruning.dense_mask(s, mask, prune)
    if edges.dtype != bool:
        s = s + jnp.log(jnp.where(mask, edges, 1))
    s = jnp.where(kept, s, -jnp.inf)
    p = jax.nn.softmax(s, axis=-1)
    o = jnp.einsum(
        'bkij,bkjd->bkid', p, v.astype(jnp.float32), precision='highest',
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    return jnp.swapaxes(o, 1, 2).reshape(b, h, w, heads, -1).astype(dtype)
