"""Batch normalisation in two passes over its input, one forward and one backward.

Derived automatically, the gradient of `nnx.BatchNorm` sums over the positions five times, and with
rematerialisation its statistics are summed again. Here the backward pass is written out: two sums,
which share a pass, as the two sums of the statistics do (Ioffe & Szegedy, 2015, section 3).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from ggcf_jax.attention import target
from ggcf_jax.models.layers.forms import for_cpu
from ggcf_jax.models.layers.remat import mark_statistics
from ggcf_jax.models.layers.shares import of_own_images


class Normalized(NamedTuple):
    """A normalised batch and what it was normalised with.

    Attributes:
        y: normalised, scaled and shifted features.
        mean: mean of each channel, in float32 at least.
        var: variance of each channel, not corrected for the number of positions.
    """

    y: Float[Array, '*positions c']
    mean: Float[Array, ' c']
    var: Float[Array, ' c']


class _Kept(NamedTuple):
    """What the backward pass needs."""

    x: jax.Array
    mean: jax.Array
    inverse: jax.Array  # of the standard deviation
    scale: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x: Float[Array, '*positions c'],
    scale: Float[Array, ' c'],
    bias: Float[Array, ' c'],
    epsilon: float,
    dtype: DTypeLike,
) -> Normalized:
    """Normalises each channel by its own mean and variance over all positions.

    Computes what `nnx.BatchNorm` does with batch statistics: in float32 at least, the variance as
    E x^2 - (E x)^2, clipped at 0.

    Args:
        x: features.
        scale: factor of each normalised channel.
        bias: summand of each channel.
        epsilon: added to the variance.
        dtype: dtype of `y`.
    """
    return _forward(x, scale, bias, epsilon, dtype)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: DTypeLike
) -> tuple[Normalized, _Kept]:
    n = x.size // x.shape[-1]
    wide = widened(x)
    total, squares = _sums(wide, lax.square(wide))
    mean = total / n
    var = jnp.maximum(0.0, squares / n - lax.square(mean))
    # Not the variance: a square root would be a kernel of its own in the backward pass.
    mean, inverse = mark_statistics(mean), mark_statistics(lax.rsqrt(var + epsilon))
    y = (wide - mean) * (inverse * scale) + bias
    return Normalized(y.astype(dtype), mean, var), _Kept(x, mean, inverse, scale)


def _backward(
    epsilon: float, dtype: DTypeLike, kept: _Kept, cotangents: Normalized
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del dtype
    n = kept.x.size // kept.x.shape[-1]
    centred = widened(kept.x) - kept.mean
    dy = cotangents.y.astype(centred.dtype)
    dbias, product = _sums(dy, dy * centred)
    inverse = kept.inverse
    factor = inverse * kept.scale
    # Of the statistics: y depends on them, and so may other things.
    dvar = cotangents.var - 0.5 * factor * lax.square(inverse) * product
    is_clipped = inverse >= lax.rsqrt(jnp.asarray(epsilon, inverse.dtype))
    dvar = jnp.where(is_clipped, 0, dvar)
    dmean = cotangents.mean - factor * dbias
    dx = factor * dy + (2 / n * dvar) * centred + dmean / n
    dscale = product * inverse
    return (
        dx.astype(kept.x.dtype),
        dscale.astype(kept.scale.dtype),
        dbias.astype(kept.scale.dtype),
    )


normalize.defvjp(_forward, _backward)


def widened(x: jax.Array) -> jax.Array:
    """Returns x in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _sums(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of two arrays over all axes but the last."""
    axes = tuple(range(a.ndim - 1))
    if for_cpu():
        return of_own_images(lambda a, b: (a.sum(axes), b.sum(axes)), a, b)
    if target.current() != 'gpu' or a.ndim < 3:
        return a.sum(axes), b.sum(axes)
    # XLA:GPU reduces many rows in two kernels. As one reduction of pairs both sums share what is
    # computed before them, and as one array the second kernel and the all-reduce of devices.
    zero = jnp.zeros((), a.dtype)

    def add(x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
        return x[0] + y[0], x[1] + y[1]

    rows = jnp.concatenate(lax.reduce((a, b), (zero, zero), add, (a.ndim - 2,)), -1)
    first, second = jnp.split(rows.sum(axes[:-1]), 2)
    return first, second
