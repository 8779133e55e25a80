"""Trained positions of a square grid of patches, interpolated to a map of any size."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ggcf_jax.models.layers.extent import Extent

_Length = int | jax.Array  # of one axis; of the image in a padded map it is a traced scalar

# Added to the number of patches when the scale is computed: what DINO began with, to keep the size
# from being rounded down, became part of what its weights were trained with
# (`interpolate_offset` of dinov2/models/vision_transformer.py in facebookresearch/dinov2).
_OFFSET = 0.1
_A = -0.75  # of the cubic kernel, PyTorch's


def interpolated(
    positions: Float[Array, 'grid grid c'], size: tuple[int, int], extent: Extent | None = None
) -> Float[Array, '#b {size[0]} {size[1]} c']:
    """Interpolates positions as DINOv2 does: PyTorch's bicubic `interpolate`, not antialiased.

    Position i of n reads (i + 1/2) grid / (n + 0.1) - 1/2; on a map of grid x grid it is the
    trained one.

    Args:
        positions: one vector for each patch of the grid.
        size: (height, width) of the map in patches.
        extent: extent of each map, over which the grid is stretched; None where they are filled.
    """
    if extent is None:
        return _of_size(positions, size, size)[None]
    each = jax.vmap(lambda height, width: _of_size(positions, size, (height, width)))
    return each(extent.heights, extent.widths)


def _of_size(
    positions: jax.Array, size: tuple[int, int], filled: tuple[_Length, _Length]
) -> jax.Array:
    """Positions over the filled part of a map of this size; further on anything."""
    grid = positions.shape[0]
    is_trained = (jnp.asarray(filled[0]) == grid) & (jnp.asarray(filled[1]) == grid)
    offset = jnp.where(is_trained, 0.0, _OFFSET)
    rows, columns = (
        _weights(padded, length + offset, grid) for padded, length in zip(size, filled)
    )
    y = jnp.einsum('hi,ijc->hjc', rows, positions, precision='highest')
    return jnp.einsum('wj,hjc->hwc', columns, y, precision='highest')


def _weights(padded: int, length: jax.Array, grid: int) -> Float[Array, 'padded grid']:
    """Weights of the grid at each position of an axis; beyond the border its last one counts."""
    at = (jnp.arange(padded) + 0.5) * grid / length - 0.5
    below = jnp.floor(at)
    taps = jnp.arange(-1, 3)
    shares = _cubic(jnp.abs(at[:, None] - (below[:, None] + taps)))
    index = jnp.clip(below.astype(jnp.int32)[:, None] + taps, 0, grid - 1)
    return (shares[..., None] * (index[..., None] == jnp.arange(grid))).sum(1)


def _cubic(x: jax.Array) -> jax.Array:
    """The cubic convolution kernel (Keys, 1981) at distances of up to 2."""
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    return jnp.where(x <= 1, near, far)
