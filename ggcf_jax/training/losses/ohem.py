"""Online hard example mining: cross entropy of the hard pixels only."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Integer
from ml_collections import ConfigDict

from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.training.losses import Loss, LossBuilder, pixels
from ggcf_jax.training.losses.pixels import Average


def ohem(
    logits: Float[Array, '*pixels classes'],
    labels: Integer[Array, '*pixels'],
    class_weights: tuple[float, ...] = (),
    *,
    threshold: float,
    min_kept: int,
    average: Average = 'labelled',
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
        average: what the mean is taken over, see `pixels.total`; of the labelled pixels only the
            kept ones.

    Returns:
        (sum over the kept pixels, normaliser).
    """
    losses, weights = pixels.losses_and_weights(logits, labels, class_weights)
    labeled = labels != IGNORE
    # Probabilities fall as unweighted losses rise; in losses nothing rounds to equal.
    plain = jax.lax.stop_gradient(pixels.losses_and_weights(logits, labels, ())[0])
    least = jnp.minimum(-jnp.log(jnp.float32(threshold)), _kth_largest(plain, labeled, min_kept))
    kept = labeled & (plain >= least)
    return pixels.total(jnp.where(kept, losses, 0.0), jnp.where(kept, weights, 0.0), average)


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


def build(train: ConfigDict, class_weights: tuple[float, ...]) -> Loss:
    """Reads `ohem`, `accumulate` and `loss_average`."""
    return functools.partial(
        ohem,
        class_weights=class_weights,
        threshold=train.ohem.threshold,
        min_kept=-(-train.ohem.min_kept // train.accumulate),
        average=train.loss_average,
    )


LOSSES: dict[str, LossBuilder] = {'ohem': build}
