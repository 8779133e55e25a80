"""Atrous Spatial Pyramid Pooling of DeepLab v3 (Chen et al., 2017), a baseline of Table 1."""

import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float
from ml_collections import ConfigDict

from ggcf_jax.models.layers.conv import ConvNorm
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.norm import Activation, Norm
from ggcf_jax.models.layers.pool import mean


class ASPP(nnx.Module):
    """A 1x1, one dilated 3x3 per rate and image pooling, concatenated and projected.

    Attributes:
        features: number of channels of the output.
    """

    def __init__(
        self,
        in_features: int,
        *,
        channels: int,
        rates: tuple[int, ...],
        activation: Activation,
        norm: Norm = 'batch_norm',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the branches.

        Args:
            in_features: number of channels of the backbone's features.
            channels: number of channels of each branch and of the output.
            rates: dilation of each 3x3 branch; DeepLab v3 has (12, 24, 36) at output stride 8.
            activation: activation behind every convolution.
            norm: norm behind every convolution.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        layer = functools.partial(
            ConvNorm, activation=activation, norm=norm, dtype=dtype, rngs=rngs
        )
        self.features = channels
        self.point = layer(in_features, channels, 1)
        self.atrous = nnx.List([layer(in_features, channels, 3, dilation=rate) for rate in rates])
        self.pool = layer(in_features, channels, 1)
        self.project = layer((2 + len(rates)) * channels, channels, 1)

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b h w features']:
        """Applies the branches and projects them.

        Args:
            x: features of the backbone.
            train: whether batch statistics are used and updated.
            extent: extent of x; None where the maps are filled.
        """
        branches = [
            self.point(x, train=train),
            *(branch(x, train=train, extent=extent) for branch in self.atrous),
        ]
        pooled = self.pool(mean(x, extent), train=train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        return self.project(jnp.concatenate(branches, axis=-1), train=train)


def build(model: ConfigDict, in_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> ASPP:
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
