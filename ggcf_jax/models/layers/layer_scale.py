"""A trained factor for each channel of a residual branch (Touvron et al., 2021)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerScale(nnx.Module):
    """Multiplies the channels of a residual branch."""

    def __init__(self, features: int, initial: float):
        """Initialises the factors.

        Args:
            features: number of channels.
            initial: value of all factors, small in deep networks that are trained from scratch.
        """
        self.gamma = nnx.Param(jnp.full((features,), initial, jnp.float32))

    def __call__(self, x: Float[Array, '*b features']) -> Float[Array, '*b features']:
        """Multiplies in float32 and returns the dtype of x."""
        return (x * self.gamma[...]).astype(x.dtype)
