"""What losses of single pixels share: weights, cross entropy of a pixel, the mean."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Integer

from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.models.layers.forms import for_cpu

# What a mean is taken over: the weights of the labelled pixels, or all pixels, ignored ones too.
Average = Literal['labelled', 'all']
AVERAGES = ('labelled', 'all')


def label_weights(
    labels: Integer[Array, '*pixels'], class_weights: tuple[float, ...]
) -> Float32[Array, '*pixels']:
    """Returns the weight of each pixel: that of its label, 0 where it is not labelled.

    Args:
        labels: train ids.
        class_weights: weight of each class, or () for 1 for every label but `IGNORE`.
    """
    if not class_weights:
        return (labels != IGNORE).astype(jnp.float32)
    # Comparisons instead of gathers: their gradients need no scatter.
    classes = jnp.arange(len(class_weights))
    chosen = jnp.where(labels[..., None] == classes, jnp.asarray(class_weights, jnp.float32), 0.0)
    return chosen.sum(-1)


def losses_and_weights(
    logits: Float[Array, '*pixels classes'],
    labels: Integer[Array, '*pixels'],
    class_weights: tuple[float, ...],
) -> tuple[Float32[Array, '*pixels'], Float32[Array, '*pixels']]:
    """Computes the weighted cross entropy and the weight of each pixel, 0 where it has no label.

    Args:
        logits: class logits.
        labels: train ids; pixels of `IGNORE` do not count.
        class_weights: weight of each class, or () for 1 each.
    """
    logits = logits.astype(jnp.float32)
    weights = jnp.asarray(class_weights or (1.0,) * logits.shape[-1], jnp.float32)
    if for_cpu() and labels.ndim:
        return _losses_and_weights_for_cpu(logits, labels, weights)
    truth = jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), weights, 0.0)
    log_probabilities = jax.nn.log_softmax(logits)
    return -(truth * log_probabilities).sum(-1), truth.sum(-1)


def _losses_and_weights_for_cpu(
    logits: Float32[Array, '*pixels classes'],
    labels: Integer[Array, '*pixels'],
    weights: Float32[Array, ' classes'],
) -> tuple[Float32[Array, '*pixels'], Float32[Array, '*pixels']]:
    """The same, with sums over classes that lie before the columns, as `upsample` writes them.

    Without the logarithms of all probabilities: those of the other classes are multiplied by zero.
    """
    logits = jnp.swapaxes(logits, -1, -2)
    is_label = labels[..., None, :] == jnp.arange(logits.shape[-2])[:, None]
    weight = jnp.where(is_label, weights[:, None], 0.0).sum(-2)
    logits -= jax.lax.stop_gradient(logits.max(-2, keepdims=True))
    logit = jnp.where(is_label, logits, 0.0).sum(-2)
    return weight * (jnp.log(jnp.exp(logits).sum(-2)) - logit), weight


def total(
    losses: Float32[Array, '*pixels'], weights: Float32[Array, '*pixels'], average: Average
) -> tuple[Float32[Array, ''], Float32[Array, '']]:
    """Returns the sum of the losses of pixels and what it is divided by.

    Args:
        losses: loss of each pixel, 0 where it does not count.
        weights: weight of each pixel, likewise.
        average: 'labelled': the sum of the weights, as torch.nn.CrossEntropyLoss; 'all': the number
            of pixels, as mmseg with avg_non_ignore=False (models/losses/cross_entropy_loss.py).
    """
    if average == 'all':
        return losses.sum(), jnp.float32(losses.size)
    return losses.sum(), weights.sum()
