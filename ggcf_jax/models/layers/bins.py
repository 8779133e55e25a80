"""Adaptive average pooling, and stretching its bins over the map again, both as matrix products."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from ggcf_jax.models.layers.extent import Extent, zero_outside

_Length = int | jax.Array  # of one axis; of the image in a padded map it is a traced scalar


def adaptive_average(
    x: Float[Array, 'b h w c'], bins: int, extent: Extent | None = None
) -> Float[Array, 'b {bins} {bins} c']:
    """Averages a map over bins x bins rectangles, PyTorch's `AdaptiveAvgPool2d`.

    Bin i covers the rows from floor(i h / bins) to ceil((i + 1) h / bins), that one left out, and
    likewise columns: neighbouring bins overlap where h is no multiple of `bins`.

    Args:
        x: features.
        bins: number of bins along each axis; a map may be smaller.
        extent: extent of x, over which the bins are laid; None where the maps are filled.

    Returns:
        Averages in the dtype of x, computed in float32 at least.
    """
    if extent is None:
        return _average(x, bins, (x.shape[1], x.shape[2]))
    x = zero_outside(x, extent)
    each = jax.vmap(lambda x, height, width: _average(x[None], bins, (height, width))[0])
    return each(x, extent.heights, extent.widths)


def _average(x: jax.Array, bins: int, size: tuple[_Length, _Length]) -> jax.Array:
    """Averages of maps that are zero where they reach beyond this size."""
    rows, columns = (_members(bins, n, padded) for n, padded in zip(size, x.shape[1:3]))
    # Zeros and ones are exact in bfloat16: only the averages are rounded.
    sums = _product('ih,bhwc->biwc', rows.astype(x.dtype), x)
    sums = _product('jw,biwc->bijc', columns.astype(sums.dtype), sums)
    counts = rows.sum(1)[:, None] * columns.sum(1)
    return (sums / counts[..., None]).astype(x.dtype)


def stretch(
    x: Float[Array, 'b i j c'],
    size: tuple[int, int],
    extent: Extent | None = None,
    *,
    align_corners: bool,
) -> Float[Array, 'b {size[0]} {size[1]} c']:
    """Interpolates a few bins bilinearly to a map, PyTorch's `interpolate`.

    Args:
        x: values of the bins.
        size: (height, width) of the map.
        extent: extent of the map, over which the bins are stretched; None where it is filled.
        align_corners: whether the outermost bins lie on the outermost positions of the map, or the
            edges of the bins on the edges of the map.

    Returns:
        Map in the dtype of x, computed in float32 at least.
    """
    if extent is None:
        return _stretch(x, size, size, align_corners)

    def each(x: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
        return _stretch(x[None], size, (height, width), align_corners)[0]

    return jax.vmap(each)(x, extent.heights, extent.widths)


def _stretch(
    x: jax.Array, size: tuple[int, int], filled: tuple[_Length, _Length], align_corners: bool
) -> jax.Array:
    """Bins over the filled part of maps of this size; further on the last value is repeated."""
    rows, columns = (
        _hats(padded, length, bins, align_corners).astype(_at_least_float32(x.dtype))
        for padded, length, bins in zip(size, filled, x.shape[1:3])
    )
    y = _product('wj,bijc->biwc', columns, x.astype(columns.dtype))
    return _product('hi,biwc->bhwc', rows, y).astype(x.dtype)


def _members(bins: int, length: _Length, padded: int) -> Bool[Array, 'bins padded']:
    """Which positions of an axis each bin averages."""
    i, position = jnp.arange(bins)[:, None], jnp.arange(padded)
    return (i * length // bins <= position) & (position < -(-(i + 1) * length // bins))


def _hats(
    padded: int, length: _Length, bins: int, align_corners: bool
) -> Float[Array, 'padded bins']:
    """Weights of the bins at each position of an axis."""
    position = jnp.arange(padded, dtype=float)  # float64 where that is enabled
    if align_corners:
        at = position * (bins - 1) / jnp.maximum(length - 1, 1)
    else:
        at = (position + 0.5) * bins / length - 0.5
    return jax.nn.relu(1 - jnp.abs(at.clip(0, bins - 1)[:, None] - jnp.arange(bins)))


def _at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> Float[Array, '...']:
    return jnp.einsum(
        subscripts,
        a,
        b,
        precision='highest',
        preferred_element_type=_at_least_float32(b.dtype),
    )
