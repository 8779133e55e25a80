"""Lovasz-softmax: a convex surrogate of the IoU."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Integer
from ml_collections import ConfigDict

from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.training.losses import Loss, LossBuilder


def lovasz_softmax(
    logits: Float[Array, '*pixels classes'],
    labels: Integer[Array, '*pixels'],
    class_weights: tuple[float, ...] = (),
) -> tuple[Float32[Array, ''], Float32[Array, '']]:
    """Computes the Lovasz extension of 1 - IoU of each class that occurs (Berman et al., 2018).

    As their lovasz_softmax_flat with classes='present', over the labelled pixels of the whole
    batch. For each class all of them are sorted: that takes long on a CPU, and devices gather the
    probabilities of the others, one class after the other.

    Args:
        logits: class logits.
        labels: train ids; pixels of `IGNORE` do not count.
        class_weights: weight of each class, or () for 1 each.

    Returns:
        (weighted sum over the classes that occur, sum of their weights).
    """
    classes = logits.shape[-1]
    probabilities = jax.nn.softmax(logits.astype(jnp.float32)).reshape(-1, classes).T
    flat = labels.reshape(-1)

    def of_class(each: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, probability = each
        truth = flat == number
        # Pixels that do not count have no error: they end behind all others and add nothing.
        errors = jnp.where(flat != IGNORE, jnp.abs(truth - probability), 0.0)
        order = jnp.argsort(-jax.lax.stop_gradient(errors))
        return jnp.vdot(errors[order], _slopes(truth[order])), truth.any()

    losses, present = jax.lax.map(of_class, (jnp.arange(classes), probabilities))
    weights = jnp.asarray(class_weights or (1.0,) * classes, jnp.float32) * present
    return (weights * losses).sum(), weights.sum()


def _slopes(truth: jax.Array) -> jax.Array:
    """By how much 1 - IoU grows as each pixel, the worst first, is wrong too; 0 without the class.

    With I pixels of the class that are right and a union U behind a pixel: 1 / U if it is of the
    class, I (1 / (U - 1) - 1 / U) if not. Unlike differences of the IoU it does not cancel.
    """
    total = truth.sum(dtype=jnp.int32)
    right = total - jnp.cumsum(truth, dtype=jnp.int32)
    union = jnp.maximum(total + jnp.cumsum(~truth, dtype=jnp.int32), 1).astype(jnp.float32)
    without = right / (union * jnp.maximum(union - 1, 1))
    return jnp.where(truth, 1 / union, without)


def build(train: ConfigDict, class_weights: tuple[float, ...]) -> Loss:
    """Reads nothing."""
    del train
    return functools.partial(lovasz_softmax, class_weights=class_weights)


LOSSES: dict[str, LossBuilder] = {'lovasz_softmax': build}
