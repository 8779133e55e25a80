"""Pooling that sees only the image: maxima of neighbourhoods, and the mean of a map."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ggcf_jax.models.layers.extent import Extent, replace_outside, strided, zero_outside


def max_pool(
    x: Float[Array, 'b h w c'], extent: Extent | None = None
) -> Float[Array, 'b ceil(h/2) ceil(w/2) c']:
    """3x3 max pooling of stride 2 whose output i is centred on input 2i, as PyTorch pads it.

    Args:
        x: features.
        extent: extent of x; None where the maps are filled.
    """
    x = replace_outside(x, extent, -jnp.inf)
    x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return zero_outside(x, strided(extent, 2))  # not the infinity of what saw nothing else


def mean(x: Float[Array, 'b h w c'], extent: Extent | None = None) -> Float[Array, 'b 1 1 c']:
    """Mean over the positions of each map.

    Args:
        x: features.
        extent: extent of x; None where the maps are filled.
    """
    if extent is None:
        return x.mean((1, 2), keepdims=True)
    mask = extent.mask(x.shape[1], x.shape[2])[..., None]
    return x.mean((1, 2), keepdims=True, where=mask)
