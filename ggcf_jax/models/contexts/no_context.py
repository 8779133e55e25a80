"""No context module: the row "Baseline" of the paper's tables."""

import jax
from flax import nnx

from ggcf_jax.models.layers.conv import ConvNorm
from ggcf_jax.models.layers.norm import Activation, Norm


class NoContext(nnx.Module):
    """Only the 3x3 reduction that stands before GGCF, so that the two differ by the context.

    Attributes:
        features: channels of the output.
    """

    def __init__(
        self,
        in_features: int,
        *,
        channels: int,
        activation: Activation,
        norm: Norm = 'batch_norm',
        dtype,
        rngs: nnx.Rngs,
    ):
        self.features = channels
        self.reduce = ConvNorm(
            in_features, channels, 3, activation, norm=norm, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [b, h, w, in_features] -> [b, h, w, features]."""
        return self.reduce(x, train)


def build(model, in_features: int, *, dtype, rngs: nnx.Rngs) -> NoContext:
    """Builds the module from `config.model` (reads `activation`, `norm` and `ggcf.channels`)."""
    return NoContext(
        in_features,
        channels=model.ggcf.channels,
        activation=model.activation,
        norm=model.norm,
        dtype=dtype,
        rngs=rngs,
    )


CONTEXTS = {'none': build}
