"""MobileNetV2 (Sandler et al., 2018): the backbone for laptops and edge devices.

The 1x1 convolution to 1280 channels belongs to the classifier and is left out, as in CSAIL's and
mmseg's segmentation networks. `width` is the number of channels of the first convolution: 32 is the
published network of width multiplier 1.0.
"""

import functools

from flax import nnx
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray
from ml_collections import ConfigDict

from ggcf_jax.models.backbones import dilation as dilation_lib
from ggcf_jax.models.backbones import unsupported
from ggcf_jax.models.layers.conv import ConvNorm
from ggcf_jax.models.layers.depthwise import Depthwise
from ggcf_jax.models.layers.extent import Extent, strided
from ggcf_jax.models.layers.norm import ActivatedNorm, Norm
from ggcf_jax.models.layers.remat import Remat, mark_convolution, run
from ggcf_jax.models.layers.repeat import Repeated

# Groups of equal blocks: (expansion, output channels at width 32, blocks). One row per stage, at
# 1/4, 1/8, 1/16 and 1/32 of the image before dilation; the first block of a row has its stride.
STAGES = (
    ((1, 16, 1), (6, 24, 2)),
    ((6, 32, 3),),
    ((6, 64, 4), (6, 96, 3)),
    ((6, 160, 3), (6, 320, 1)),
)
DEPTHS = (3, 3, 7, 4)


class DepthwiseNorm(nnx.Module):
    """Depthwise convolution -> batch norm -> ReLU6.

    Attributes:
        stride: stride of the convolution.
    """

    def __init__(
        self,
        features: int,
        *,
        stride: int,
        dilation: int,
        norm: Norm,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            features: number of channels.
            stride: stride of the convolution.
            dilation: dilation of the convolution.
            norm: form of the norm's scale, see `ActivatedNorm`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.stride = stride
        self.conv = Depthwise(features, stride=stride, dilation=dilation, dtype=dtype, rngs=rngs)
        self.norm = ActivatedNorm(features, 'relu6', norm=norm, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, 'b h w features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) features']:
        """Applies convolution, norm and activation.

        Args:
            x: features.
            train: whether batch statistics are used and updated.
            extent: extent of x; None where the maps are filled.
        """
        return self.norm(mark_convolution(self.conv(x, extent=extent)), train=train)


class InvertedResidual(nnx.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1; a skip where the shape stays.

    Attributes:
        stride: stride of the depthwise convolution.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        expansion: int,
        stride: int,
        dilation: int,
        norm: Norm,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the block.

        Args:
            in_features: number of channels of the input.
            out_features: number of channels of the output.
            expansion: factor of channels inside the block; with 1 there is no expansion.
            stride: stride of the depthwise convolution.
            dilation: dilation of the depthwise convolution.
            norm: norm behind every convolution.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        pointwise = functools.partial(ConvNorm, kernel=1, norm=norm, dtype=dtype, rngs=rngs)
        hidden = in_features * expansion
        layers: list[ConvNorm | DepthwiseNorm] = []
        if expansion != 1:
            layers.append(pointwise(in_features, hidden, activation='relu6'))
        layers.append(
            DepthwiseNorm(
                hidden, stride=stride, dilation=dilation, norm=norm, dtype=dtype, rngs=rngs
            )
        )
        layers.append(pointwise(hidden, out_features, activation='identity'))
        self.layers = nnx.List(layers)
        self.stride = stride
        self.skip = stride == 1 and in_features == out_features

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) out_features']:
        """Applies the layers, and adds x where the shape stays.

        Args:
            x: features.
            train: whether batch statistics are used and updated.
            extent: extent of x; None where the maps are filled.
        """
        y = x
        for layer in self.layers:
            y = layer(y, train=train, extent=extent)
            extent = strided(extent, layer.stride)
        return x + y if self.skip else y


class MobileNetV2(nnx.Module):
    """MobileNetV2 up to its last inverted residual; the activation is always ReLU6.

    Attributes:
        features: number of channels of each of the four stages, at width 32 (24, 32, 96, 320).
        stride: output stride in pixels.
        strides: pixels per position of each stage.
    """

    def __init__(
        self,
        stages: tuple[dilation_lib.Stage, ...],
        *,
        width: int,
        norm: Norm = 'batch_norm',
        remat: Remat = 'none',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the network.

        Args:
            stages: strides and dilations for `DEPTHS`, see `dilation.plan`.
            width: number of channels of the first convolution, rounded to a multiple of 8.
            norm: norm behind every convolution.
            remat: what the backward pass keeps in memory, see `remat.run`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.remat: Remat = remat
        features = _divisible(width)
        self.stem = ConvNorm(3, features, 3, 'relu6', stride=2, norm=norm, dtype=dtype, rngs=rngs)
        self.features = tuple(_divisible(width * row[-1][1] / 32) for row in STAGES)
        rows = []
        for i, (row, stage) in enumerate(zip(STAGES, stages)):
            blocks: list[InvertedResidual | Repeated] = []
            for j, (expansion, number, count) in enumerate(row):
                # Stage 1 has its stride in its second group, the others in their first.
                stride, first = (2, 1) if (i, j) == (0, 1) else (1, stage.dilations[0])
                if j == 0 and i > 0:
                    stride, first = stage.stride, stage.first
                channels = _divisible(width * number / 32)
                make = functools.partial(
                    InvertedResidual,
                    out_features=channels,
                    expansion=expansion,
                    norm=norm,
                    dtype=dtype,
                )
                blocks.append(make(features, stride=stride, dilation=first, rngs=rngs))
                if count > 1:
                    equal = functools.partial(make, channels, stride=1, dilation=stage.dilations[0])
                    repeated = lambda rngs, equal=equal: equal(rngs=rngs)  # noqa: E731
                    blocks.append(Repeated(repeated, count - 1, remat=remat, rngs=rngs))
                features = channels
            rows.append(nnx.List(blocks))
        self.stages = nnx.List(rows)
        self.strides = dilation_lib.strides(stages)
        self.stride = self.strides[-1]

    def __call__(
        self,
        x: Float[Array, 'b h w 3'],
        *,
        train: bool,
        key: PRNGKeyArray | None = None,
        extent: Extent | None = None,
    ) -> tuple[Float[Array, 'b _ _ _'], ...]:
        """Computes the features of the four stages.

        Args:
            x: normalised images.
            train: whether batch statistics are used and updated.
            key: not used, this network has no dropout.
            extent: extent of the images; None where they are filled.

        Returns:
            Features at 1/4, 1/8, 1/16 and 1/32 of the image or, past the output stride, at the
            output stride; heights and widths are rounded up.
        """
        del key
        x = self.stem(x, train=train, extent=extent)
        extent = strided(extent, self.stem.stride)
        outputs = []
        for stage in self.stages:
            for block in stage:
                x = run(block, x, remat=self.remat, train=train, extent=extent)
                extent = strided(extent, block.stride)
            outputs.append(x)
        return tuple(outputs)


def _divisible(channels: float) -> int:
    """Rounds to a multiple of 8, never down by more than a tenth, as the published networks do."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def build(model: ConfigDict, *, remat: Remat, dtype: DTypeLike, rngs: nnx.Rngs) -> MobileNetV2:
    """Builds the network from `config.model` (reads `backbone` and `norm`).

    Of `backbone` there is no `stem` and no multi-grid.
    """
    unsupported.check(model.backbone, 'multi_grid', 'drop_path')
    return MobileNetV2(
        dilation_lib.from_config(model.backbone, DEPTHS),
        width=model.backbone.width,
        norm=model.norm,
        remat=remat,
        dtype=dtype,
        rngs=rngs,
    )


BACKBONES = {'mobilenet_v2': build}
