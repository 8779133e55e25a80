"""Adaptive average pooling, and stretching its bins over the map again, both as matrix products."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float


def adaptive_average(x: Float[Array, 'b h w c'], bins: int) -> Float[Array, 'b {bins} {bins} c']:
    """Averages a map over bins x bins rectangles, PyTorch's `AdaptiveAvgPool2d`.

    Bin i covers the rows from floor(i h / bins) to ceil((i + 1) h / bins), that one left out, and
    likewise columns: neighbouring bins overlap where h is no multiple of `bins`.

    Args:
        x: features.
        bins: number of bins along each axis; a map may be smaller.

    Returns:
        Averages in the dtype of x, computed in float32 at least.
    """
    rows, columns = (_members(bins, length) for length in x.shape[1:3])
    # Zeros and ones are exact in bfloat16: only the averages are rounded.
    sums = _product('ih,bhwc->biwc', rows.astype(x.dtype), x)
    sums = _product('jw,biwc->bijc', columns.astype(sums.dtype), sums)
    counts = rows.sum(1)[:, None] * columns.sum(1)
    return (sums / counts[..., None]).astype(x.dtype)


def stretch(
    x: Float[Array, 'b i j c'], size: tuple[int, int], *, align_corners: bool
) -> Float[Array, 'b {size[0]} {size[1]} c']:
    """Interpolates a few bins bilinearly to a map, PyTorch's `interpolate`.

    Args:
        x: values of the bins.
        size: (height, width) of the map.
        align_corners: whether the outermost bins lie on the outermost positions of the map, or the
            edges of the bins on the edges of the map.

    Returns:
        Map in the dtype of x, computed in float32 at least.
    """
    rows, columns = (
        _hats(length, bins, align_corners).astype(_at_least_float32(x.dtype))
        for length, bins in zip(size, x.shape[1:3])
    )
    y = _product('wj,bijc->biwc', columns, x.astype(columns.dtype))
    return _product('hi,biwc->bhwc', rows, y).astype(x.dtype)


def _members(bins: int, length: int) -> Bool[Array, 'bins length']:
    """Which positions of an axis each bin averages."""
    i, position = jnp.arange(bins)[:, None], jnp.arange(length)
    return (i * length // bins <= position) & (position < -(-(i + 1) * length // bins))


def _hats(length: int, bins: int, align_corners: bool) -> Float[Array, 'length bins']:
    """Weights of the bins at each position of an axis."""
    position = jnp.arange(length, dtype=float)  # float64 where that is enabled
    if align_corners:
        at = position * ((bins - 1) / max(length - 1, 1))
    else:
        at = (position + 0.5) * (bins / length) - 0.5
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
