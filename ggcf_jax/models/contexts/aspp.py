"""Atrous Spatial Pyramid Pooling of DeepLab v3 (Chen et al., 2017), a baseline of Table 1."""

import jax
import jax.numpy as jnp
from flax import nnx

from ggcf_jax.models.layers.conv import ConvNorm
from ggcf_jax.models.layers.norm import Activation, Norm


class ASPP(nnx.Module):
    """A 1x1, one dilated 3x3 a rate and image pooling, concatenated and projected.

    Attributes:
        features: channels of the output.
    """

    def __init__(
        self,
        in_features: int,
        *,
        channels: int,
        rates: tuple[int, ...],
        activation: Activation,
        norm: Norm = 'batch_norm',
        dtype,
        rngs: nnx.Rngs,
    ):
        """Args:
        channels: of each branch and of the output.
        rates: dilations; DeepLab v3 takes (12, 24, 36) at output stride 8.
        """
        shared = dict(norm=norm, dtype=dtype, rngs=rngs)
        self.features = channels
        self.point = ConvNorm(in_features, channels, 1, activation, **shared)
        self.atrous = nnx.List(
            [ConvNorm(in_features, channels, 3, activation, dilation=r, **shared) for r in rates]
        )
        self.pool = ConvNorm(in_features, channels, 1, activation, **shared)
        self.project = ConvNorm((2 + len(rates)) * channels, channels, 1, activation, **shared)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [b, h, w, in_features] -> [b, h, w, features]."""
        branches = [self.point(x, train), *(branch(x, train) for branch in self.atrous)]
        pooled = self.pool(x.mean((1, 2), keepdims=True), train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        return self.project(jnp.concatenate(branches, axis=-1), train)


def build(model, in_features: int, *, dtype, rngs: nnx.Rngs) -> ASPP:
    """Builds the module from `config.model` (reads `activation`, `norm` and `aspp`)."""
    return ASPP(
        in_features,
        channels=model.aspp.channels,
        rates=tuple(model.aspp.rates),
        activation=model.activation,
        norm=model.norm,
        dtype=dtype,
        rngs=rngs,
    )


CONTEXTS = {'aspp': build}
