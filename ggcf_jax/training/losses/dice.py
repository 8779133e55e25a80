"""Dice loss: overlap of classes instead of pixels."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Integer
from ml_collections import ConfigDict

from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.training.losses import Loss, LossBuilder


def dice(
    logits: Float[Array, '*pixels classes'],
    labels: Integer[Array, '*pixels'],
    class_weights: tuple[float, ...] = (),
) -> tuple[Float32[Array, ''], Float32[Array, '']]:
    """Computes 1 - 2 |p t| / (|p| + |t|) of each class that occurs in the batch.

    p are the probabilities of the class, t is 1 at its pixels, and sums are over the labelled
    pixels of the whole batch, on all devices (Milletari et al., 2016, without their squares; that
    of optax.losses.dice_loss with smooth=0, which cannot leave pixels out).

    Args:
        logits: class logits.
        labels: train ids; pixels of `IGNORE` do not count.
        class_weights: weight of each class, or () for 1 each.

    Returns:
        (weighted sum over the classes that occur, sum of their weights).
    """
    classes = logits.shape[-1]
    labeled = (labels != IGNORE)[..., None]
    probabilities = jnp.where(labeled, jax.nn.softmax(logits.astype(jnp.float32)), 0.0)
    truth = (labels[..., None] == jnp.arange(classes)).astype(jnp.float32)
    pixels = tuple(range(labels.ndim))
    both, predicted, occurring = (
        x.sum(pixels) for x in (probabilities * truth, probabilities, truth)
    )
    present = occurring > 0
    weights = jnp.asarray(class_weights or (1.0,) * classes, jnp.float32) * present
    losses = 1 - 2 * both / jnp.where(present, predicted + occurring, 1.0)
    return (weights * losses).sum(), weights.sum()


def build(train: ConfigDict, class_weights: tuple[float, ...]) -> Loss:
    """Reads nothing."""
    del train
    return functools.partial(dice, class_weights=class_weights)


LOSSES: dict[str, LossBuilder] = {'dice': build}
