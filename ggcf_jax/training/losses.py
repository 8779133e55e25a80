"""Losses, in float32 whatever the precision of the network.

A loss is a function of (logits, labels) that returns a sum over the pixels that count and the sum
of their weights. Sums apart, so that a mean over devices, processes or accumulated batches with
different numbers of ignored pixels divides one global sum by the other. Both are (0, 0), with zero
gradients, if everything is ignored.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.errors import InputError

Loss = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

LOSSES = ('cross_entropy', 'ohem')


def build(train, class_weights: tuple[float, ...]) -> Loss:
    """The loss of the main logits, from `config.train` (reads `loss`, `ohem`, `accumulate`).

    Raises:
        InputError: an unknown loss.
    """
    if train.loss not in LOSSES:
        raise InputError(f'config.train.loss={train.loss!r} is not one of {", ".join(LOSSES)}')
    if train.loss == 'cross_entropy':
        return functools.partial(cross_entropy, class_weights=class_weights)
    return functools.partial(
        ohem,
        class_weights=class_weights,
        threshold=train.ohem.threshold,
        min_kept=-(-train.ohem.min_kept // train.accumulate),
    )


def cross_entropy(
    logits: jax.Array, labels: jax.Array, class_weights: tuple[float, ...] = ()
) -> tuple[jax.Array, jax.Array]:
    """Weighted cross entropy.

    Args:
        logits: float [..., num_classes].
        labels: integer [...] of train ids; `IGNORE` does not count.
        class_weights: one a class, or () for 1 each; a pixel weighs what its label does, as in
            torch.nn.CrossEntropyLoss.

    Returns:
        (sum, sum of weights), float32 scalars.
    """
    losses, weights = _pixels(logits, labels, class_weights)
    return losses.sum(), weights.sum()


def ohem(
    logits: jax.Array,
    labels: jax.Array,
    class_weights: tuple[float, ...] = (),
    *,
    threshold: float,
    min_kept: int,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of the hard pixels only (Shrivastava et al., 2016; as in OCNet and openseg).

    A pixel is kept if the probability of its class is at most `threshold`, or at most the
    `min_kept`-th smallest of all labelled pixels where that is larger; so at least `min_kept` are
    kept (all, if there are fewer), and pixels that tie with the last one too. The pixels are those
    of the whole batch, over all devices and processes: the search for the value sums counts and
    never gathers the pixels. With accumulation it is the microbatch; `build` divides the number.

    Args:
        logits, labels, class_weights: as of `cross_entropy`.
        threshold: probability in (0, 1].
        min_kept: number of pixels of the batch.

    Returns:
        (sum, sum of weights) over the kept pixels, float32 scalars.
    """
    losses, weights = _pixels(logits, labels, class_weights)
    labeled = labels != IGNORE
    # Probabilities fall as unweighted losses rise; in losses nothing rounds to equal.
    plain = jax.lax.stop_gradient(_pixels(logits, labels, ())[0])
    least = jnp.minimum(-jnp.log(jnp.float32(threshold)), _kth_largest(plain, labeled, min_kept))
    kept = labeled & (plain >= least)
    return jnp.where(kept, losses, 0.0).sum(), jnp.where(kept, weights, 0.0).sum()


def label_weights(labels: jax.Array, class_weights: tuple[float, ...]) -> jax.Array:
    """Weight of each pixel, float32 [...]: that of its label, 0 where it is not labelled.

    Without `class_weights` every value but `IGNORE` weighs 1.
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

    def add_bit(i, found):
        candidate = found | (jnp.int32(1) << (30 - i))
        count = (mask & (bits >= candidate)).sum(dtype=jnp.int32)
        return jnp.where(count >= k, candidate, found)

    found = jax.lax.fori_loop(0, 31, add_bit, jnp.int32(0))
    return jax.lax.bitcast_convert_type(found, jnp.float32)
