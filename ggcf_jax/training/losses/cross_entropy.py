"""Cross entropy."""

import functools

from jaxtyping import Array, Float, Float32, Integer
from ml_collections import ConfigDict

from ggcf_jax.training.losses import Loss, LossBuilder, pixels
from ggcf_jax.training.losses.pixels import Average


def cross_entropy(
    logits: Float[Array, '*pixels classes'],
    labels: Integer[Array, '*pixels'],
    class_weights: tuple[float, ...] = (),
    *,
    average: Average = 'labelled',
) -> tuple[Float32[Array, ''], Float32[Array, '']]:
    """Computes the weighted cross entropy.

    Args:
        logits: class logits.
        labels: train ids; pixels of `IGNORE` do not count.
        class_weights: weight of each class, or () for 1 each; a pixel has the weight of its label,
            as in torch.nn.CrossEntropyLoss.
        average: what the mean is taken over, see `pixels.total`.

    Returns:
        (sum over the labelled pixels, normaliser).
    """
    return pixels.total(*pixels.losses_and_weights(logits, labels, class_weights), average)


def build(train: ConfigDict, class_weights: tuple[float, ...]) -> Loss:
    """Reads `loss_average`."""
    return functools.partial(cross_entropy, class_weights=class_weights, average=train.loss_average)


LOSSES: dict[str, LossBuilder] = {'cross_entropy': build}
