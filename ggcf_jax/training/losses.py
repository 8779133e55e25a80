"""Losses, in float32 whatever the precision of the network.

`LOSSES` holds a builder for each name of `config.train.loss`; one of another package is named
`my_package.my_module:builder`. `Loss` and `LossBuilder` say what such code must do.
"""

import functools
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Integer
from ml_collections import ConfigDict

from ggcf_jax import registry
from ggcf_jax.data.records.codec import IGNORE


class Loss(Protocol):
    """A function of logits and labels that JAX can differentiate with respect to the logits."""

    def __call__(
        self, logits: Float[Array, '*pixels classes'], labels: Integer[Array, '*pixels']
    ) -> tuple[Float32[Array, ''], Float32[Array, '']]:
        """Computes a sum and its normaliser.

        The two are returned apart, so that a mean over devices, processes or accumulated batches
        with different numbers of ignored pixels divides one global sum by the other.

        Args:
            logits: main logits at the resolution of the labels.
            labels: train ids; pixels of `IGNORE` (255) must not count.

        Returns:
            (sum over the pixels that count, sum of their weights); (0, 0), with zero gradients, if
            every pixel is ignored.
        """
        ...


class LossBuilder(Protocol):
    """Builds a loss from the configuration."""

    def __call__(self, train: ConfigDict, class_weights: tuple[float, ...]) -> Loss:
        """Builds the loss of the main logits.

        Args:
            train: `config.train`; the loss is called on `batch_size / accumulate` images.
            class_weights: weight of each class, or () for 1 each.

        Raises:
            InputError: a field has a value that this loss does not support.
        """
        ...


def cross_entropy(
    logits: Float[Array, '*pixels classes'],
    labels: Integer[Array, '*pixels'],
    class_weights: tuple[float, ...] = (),
) -> tuple[Float32[Array, ''], Float32[Array, '']]:
    """Computes the weighted cross entropy.

    Args:
        logits: class logits.
        labels: train ids; pixels of `IGNORE` do not count.
        class_weights: weight of each class, or () for 1 each; a pixel has the weight of its label,
            as in torch.nn.CrossEntropyLoss.

    Returns:
        (sum over the labelled pixels, sum of their weights).
    """
    losses, weights = _pixels(logits, labels, class_weights)
    return losses.sum(), weights.sum()


def ohem(
    logits: Float[Array, '*pixels classes'],
    labels: Integer[Array, '*pixels'],
    class_weights: tuple[float, ...] = (),
    *,
    threshold: float,
    min_kept: int,
) -> tuple[Float32[Array, ''], Float32[Array, '']]:
    """Computes the cross entropy of the hard pixels only (Shrivastava et al., 2016).

    As in OCNet and openseg, a pixel is kept if the probability of its class is at most `threshold`,
    or at most the `min_kept`-th smallest of all labelled pixels where that is larger; so at least
    `min_kept` are kept (all, if there are fewer), and pixels that tie with the last one too. The
    pixels are those of the whole batch, over all devices and processes: the search for the value
    sums counts and never gathers the pixels. With accumulation the batch is the microbatch, and the
    builder divides `min_kept` by the number of microbatches.

    Args:
        logits: class logits.
        labels: train ids; pixels of `IGNORE` do not count.
        class_weights: weight of each class, or () for 1 each.
        threshold: probability of the true class, in (0, 1], up to which a pixel counts as hard.
        min_kept: number of pixels of the batch to keep at least.

    Returns:
        (sum over the kept pixels, sum of their weights).
    """
    losses, weights = _pixels(logits, labels, class_weights)
    labeled = labels != IGNORE
    # Probabilities fall as unweighted losses rise; in losses nothing rounds to equal.
    plain = jax.lax.stop_gradient(_pixels(logits, labels, ())[0])
    least = jnp.minimum(-jnp.log(jnp.float32(threshold)), _kth_largest(plain, labeled, min_kept))
    kept = labeled & (plain >= least)
    return jnp.where(kept, losses, 0.0).sum(), jnp.where(kept, weights, 0.0).sum()


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


def _pixels(
    logits: jax.Array, labels: jax.Array, class_weights: tuple[float, ...]
) -> tuple[jax.Array, jax.Array]:
    """Weighted loss and weight of each pixel, zero where it is not labelled."""
    weights = jnp.asarray(class_weights or (1.0,) * logits.shape[-1], jnp.float32)
    truth = jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), weights, 0.0)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -(truth * log_probabilities).sum(-1), truth.sum(-1)


def _kth_largest(x: jax.Array, mask: jax.Array, k: int) -> jax.Array:
    """The k-th largest of x >= 0 where mask; 0 if there are fewer.

    The bits of floats that are not negative are ordered like the floats: the result is built bit
    by bit, by counting how many reach the candidate.
    """
    bits = jax.lax.bitcast_convert_type(jnp.maximum(x, 0.0), jnp.int32)

    def add_bit(i: jax.Array, found: jax.Array) -> jax.Array:
        candidate = found | (jnp.int32(1) << (30 - i))
        count = (mask & (bits >= candidate)).sum(dtype=jnp.int32)
        return jnp.where(count >= k, candidate, found)

    found = jax.lax.fori_loop(0, 31, add_bit, jnp.int32(0))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def _build_cross_entropy(train: ConfigDict, class_weights: tuple[float, ...]) -> Loss:
    del train
    return functools.partial(cross_entropy, class_weights=class_weights)


def _build_ohem(train: ConfigDict, class_weights: tuple[float, ...]) -> Loss:
    """Reads `ohem` and `accumulate`."""
    return functools.partial(
        ohem,
        class_weights=class_weights,
        threshold=train.ohem.threshold,
        min_kept=-(-train.ohem.min_kept // train.accumulate),
    )


LOSSES: dict[str, LossBuilder] = {'cross_entropy': _build_cross_entropy, 'ohem': _build_ohem}


def build(train: ConfigDict, class_weights: tuple[float, ...]) -> Loss:
    """Builds the loss of the main logits.

    Args:
        train: `config.train`; `loss` is its name.
        class_weights: weight of each class, or () for 1 each.

    Raises:
        InputError: an unknown loss.
    """
    return registry.pick(LOSSES, train.loss, 'config.train.loss')(train, class_weights)
