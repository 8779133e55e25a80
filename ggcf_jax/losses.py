"""Losses, in float32 whatever the precision of the network."""

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, labels: jax.Array, class_weights: tuple[float, ...] = ()
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of the cross entropy over the pixels that count, and the sum of the weights.

    Sums apart, so that a mean over devices, processes or accumulated batches with different
    numbers of ignored pixels divides one global sum by the other.

    Args:
        logits: float [..., num_classes].
        labels: integer [...] of train ids; `IGNORE` does not count.
        class_weights: one a class, or () for 1 each; a pixel weighs what its label does, as in
            torch.nn.CrossEntropyLoss.

    Returns:
        (sum, sum of weights), float32 scalars; (0, 0) with zero gradients if all is ignored.
    """
    weights = jnp.asarray(class_weights or (1.0,) * logits.shape[-1], jnp.float32)
    # Comparisons instead of gathers: their gradients need no scatter.
    truth = jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), weights, 0.0)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -(truth * log_probabilities).sum(), truth.sum()
