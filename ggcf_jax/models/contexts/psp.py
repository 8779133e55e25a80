"""Pyramid pooling of PSPNet (Zhao et al., 2017), a baseline of the paper's Table 4."""

import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float
from ml_collections import ConfigDict

from ggcf_jax.errors import InputError
from ggcf_jax.models.layers import bins
from ggcf_jax.models.layers.conv import ConvNorm
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.norm import Activation, Norm


class PSP(nnx.Module):
    """The features, and their averages over grids of bins, concatenated and fused by a 3x3.

    model/pspnet.py of hszhao/semseg and decode_heads/psp_head.py of mmsegmentation, which differ in
    how the bins are stretched over the map.

    Attributes:
        features: number of channels of the output.
    """

    def __init__(
        self,
        in_features: int,
        *,
        channels: int,
        pool_scales: tuple[int, ...],
        align_corners: bool,
        activation: Activation,
        norm: Norm = 'batch_norm',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the branches.

        Args:
            in_features: number of channels of the backbone's features.
            channels: number of channels of each branch and of the output.
            pool_scales: number of bins of each branch, down and across.
            align_corners: how the bins are stretched over the map, see `bins.stretch`.
            activation: activation behind every convolution.
            norm: norm behind every convolution.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        layer = functools.partial(
            ConvNorm, activation=activation, norm=norm, dtype=dtype, rngs=rngs
        )
        self.features = channels
        self.pool_scales = pool_scales
        self.align_corners = align_corners
        self.branches = nnx.List([layer(in_features, channels, 1) for _ in pool_scales])
        self.bottleneck = layer(in_features + len(pool_scales) * channels, channels, 3)

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b h w features']:
        """Pools the features and fuses them with their averages.

        Args:
            x: features of the backbone.
            train: whether batch statistics are used and updated.
            extent: extent of x; None where the maps are filled.
        """
        maps, (_, h, w, _) = [x], x.shape
        for scale, branch in zip(self.pool_scales, self.branches):
            averages = branch(bins.adaptive_average(x, scale, extent), train=train)
            maps.append(bins.stretch(averages, (h, w), extent, align_corners=self.align_corners))
        return self.bottleneck(jnp.concatenate(maps, axis=-1), train=train, extent=extent)


def build(model: ConfigDict, in_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> PSP:
    """Builds the module from `config.model` (reads `activation`, `norm` and `psp`)."""
    pool_scales = tuple(model.psp.pool_scales)
    if not pool_scales or min(pool_scales) < 1:
        raise InputError(
            f'config.model.psp.pool_scales={pool_scales} must be numbers of bins of at least 1, '
            'such as (1, 2, 3, 6)'
        )
    return PSP(
        in_features,
        channels=model.psp.channels,
        pool_scales=pool_scales,
        align_corners=model.psp.align_corners,
        activation=model.activation,
        norm=model.norm,
        dtype=dtype,
        rngs=rngs,
    )


CONTEXTS = {'psp': build}
