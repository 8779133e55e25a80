"""Cross entropy with more weight on the pixels near boundaries."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Integer
from ml_collections import ConfigDict

from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.training.losses import Loss, LossBuilder, pixels
from ggcf_jax.training.losses.pixels import Average


def boundary_cross_entropy(
    logits: Float[Array, 'b h w classes'],
    labels: Integer[Array, 'b h w'],
    class_weights: tuple[float, ...] = (),
    *,
    radius: int,
    weight: float,
    average: Average = 'labelled',
) -> tuple[Float32[Array, ''], Float32[Array, '']]:
    """Computes the cross entropy; pixels near another class count `weight` times.

    A plain form of the weight map of U-Net (Ronneberger et al., 2015), which falls with the
    distance to the two nearest cells.

    Args:
        logits: class logits.
        labels: train ids; pixels of `IGNORE` do not count and make no boundary.
        class_weights: weight of each class, or () for 1 each.
        radius: distance in pixels, down and across, within which another label makes a pixel one
            of the boundary.
        weight: factor on the losses and weights of these pixels.
        average: what the mean is taken over, see `pixels.total`.

    Returns:
        (weighted sum over the labelled pixels, normaliser).
    """
    losses, weights = pixels.losses_and_weights(logits, labels, class_weights)
    factors = jnp.where(near_boundary(labels, radius), jnp.float32(weight), 1.0)
    return pixels.total(factors * losses, factors * weights, average)


def near_boundary(labels: Integer[Array, 'b h w'], radius: int) -> Bool[Array, 'b h w']:
    """Whether two labels, `IGNORE` left out, lie within a square around each pixel.

    Args:
        labels: train ids.
        radius: half of the side of the square, in pixels.
    """
    x = labels.astype(jnp.int32)
    labeled = labels != IGNORE
    largest = _window(jnp.where(labeled, x, -1), jax.lax.max, -1, radius)
    smallest = _window(jnp.where(labeled, x, IGNORE + 1), jax.lax.min, IGNORE + 1, radius)
    return (largest > smallest) & labeled


def _window(x: jax.Array, reduce: Callable[..., Any], outside: int, radius: int) -> jax.Array:
    """Maximum or minimum over squares, one axis after the other."""
    for axis in (1, 2):
        window = [1, 1, 1]
        window[axis] = 2 * radius + 1
        x = jax.lax.reduce_window(x, jnp.int32(outside), reduce, window, (1, 1, 1), 'SAME')
    return x


def build(train: ConfigDict, class_weights: tuple[float, ...]) -> Loss:
    """Reads `boundary` and `loss_average`."""
    return functools.partial(
        boundary_cross_entropy,
        class_weights=class_weights,
        radius=train.boundary.radius,
        weight=train.boundary.weight,
        average=train.loss_average,
    )


LOSSES: dict[str, LossBuilder] = {'boundary_cross_entropy': build}
