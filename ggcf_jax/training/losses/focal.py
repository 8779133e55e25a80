"""Focal loss: cross entropy with less weight on what is known already."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Integer
from ml_collections import ConfigDict

from ggcf_jax.training.losses import Loss, LossBuilder, pixels
from ggcf_jax.training.losses.pixels import Average


def focal(
    logits: Float[Array, '*pixels classes'],
    labels: Integer[Array, '*pixels'],
    class_weights: tuple[float, ...] = (),
    *,
    gamma: float,
    average: Average = 'labelled',
) -> tuple[Float32[Array, ''], Float32[Array, '']]:
    """Computes (1 - p) ** gamma * cross entropy, p the probability of the label (Lin et al., 2017).

    With the softmax over the classes, of which their sigmoid is the case of two.

    Args:
        logits: class logits.
        labels: train ids; pixels of `IGNORE` do not count.
        class_weights: weight of each class (their alpha), or () for 1 each.
        gamma: how much known pixels lose weight, at least 0; 0: cross entropy.
        average: what the mean is taken over, see `pixels.total`; weights are those of the classes.

    Returns:
        (sum over the labelled pixels, normaliser).
    """
    losses, weights = pixels.losses_and_weights(logits, labels, class_weights)
    plain, _ = pixels.losses_and_weights(logits, labels, ())
    # 1 - p without cancellation; the floor keeps the gradient of a power below 1 finite.
    unknown = jnp.maximum(-jnp.expm1(-plain), 1e-12)
    return pixels.total(unknown**gamma * losses, weights, average)


def build(train: ConfigDict, class_weights: tuple[float, ...]) -> Loss:
    """Reads `focal` and `loss_average`."""
    return functools.partial(
        focal, class_weights=class_weights, gamma=train.focal.gamma, average=train.loss_average
    )


LOSSES: dict[str, LossBuilder] = {'focal': build}
