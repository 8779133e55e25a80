"""Residual networks (He et al., 2016), dilated to output stride 8 or 16 (Chen et al., 2017).

`width` scales every layer: 64 is the published network, 32 a quarter of its parameters.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray
from ml_collections import ConfigDict

from ggcf_jax import registry
from ggcf_jax.models.backbones import dilation as dilation_lib
from ggcf_jax.models.backbones import unsupported
from ggcf_jax.models.layers.conv import ConvNorm
from ggcf_jax.models.layers.extent import Extent, strided
from ggcf_jax.models.layers.norm import ACTIVATIONS, Activation, Norm
from ggcf_jax.models.layers.pool import max_pool
from ggcf_jax.models.layers.remat import Remat, run
from ggcf_jax.models.layers.repeat import Repeated

# Output channels of the stem's convolutions at width 64. '64-64-128': openseg, OCNet, CCNet;
# '32-32-64': ResNet v1c of mmseg and timm.
STEMS = {'7x7': (64,), '64-64-128': (64, 64, 128), '32-32-64': (32, 32, 64)}


# Residual branches start at zero, so that a network from scratch starts as a shallow one
# (Goyal et al., 2017); imported weights overwrite it.
_ZEROS = nnx.initializers.zeros_init()


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions around a skip connection.

    Attributes:
        stride: stride of the first convolution.
    """

    expansion = 1

    def __init__(
        self,
        in_features: int,
        width: int,
        activation: Activation,
        *,
        stride: int,
        first: int,
        dilation: int,
        norm: Norm,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the block.

        Args:
            in_features: number of channels of the input.
            width: number of channels of both convolutions.
            activation: activation behind the first convolution and behind the sum.
            stride: stride of the first convolution.
            first: dilation of the first convolution.
            dilation: dilation of the second convolution.
            norm: norm behind every convolution.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        layer = functools.partial(ConvNorm, norm=norm, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [
                layer(in_features, width, 3, activation, stride=stride, dilation=first),
                layer(width, width, 3, 'identity', dilation=dilation, scale_init=_ZEROS),
            ]
        )
        self.stride = stride
        self.skip = _skip(layer, in_features, width, stride)
        self.activation = activation

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) width*expansion']:
        """Adds the residual branch to the skip connection.

        Args:
            x: features.
            train: whether batch statistics are used and updated.
            extent: extent of x; None where the maps are filled.
        """
        return _residual(self, x, train=train, extent=extent)


class Bottleneck(nnx.Module):
    """1x1 reduce, 3x3, 1x1 expand around a skip connection; the stride is in the 3x3.

    Attributes:
        stride: stride of the 3x3 convolution.
    """

    expansion = 4

    def __init__(
        self,
        in_features: int,
        width: int,
        activation: Activation,
        *,
        stride: int,
        first: int,
        dilation: int,
        norm: Norm,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the block.

        Args:
            in_features: number of channels of the input.
            width: number of channels of the 3x3 convolution; the output has four times as many.
            activation: activation behind the first two convolutions and behind the sum.
            stride: stride of the 3x3 convolution.
            first: dilation of the 3x3 convolution.
            dilation: not used: no other convolution is larger than 1x1.
            norm: norm behind every convolution.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        del dilation
        layer = functools.partial(ConvNorm, norm=norm, dtype=dtype, rngs=rngs)
        out_features = width * self.expansion
        self.layers = nnx.List(
            [
                layer(in_features, width, 1, activation),
                layer(width, width, 3, activation, stride=stride, dilation=first),
                layer(width, out_features, 1, 'identity', scale_init=_ZEROS),
            ]
        )
        self.stride = stride
        self.skip = _skip(layer, in_features, out_features, stride)
        self.activation = activation

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) width*expansion']:
        """Adds the residual branch to the skip connection.

        Args:
            x: features.
            train: whether batch statistics are used and updated.
            extent: extent of x; None where the maps are filled.
        """
        return _residual(self, x, train=train, extent=extent)


def _skip(
    layer: Callable[..., ConvNorm], in_features: int, out_features: int, stride: int
) -> ConvNorm | None:
    """The convolution on the skip connection; None where the shape stays."""
    if stride == 1 and in_features == out_features:
        return None
    return layer(in_features, out_features, 1, 'identity', stride=stride)


def _residual(
    block: BasicBlock | Bottleneck, x: jax.Array, *, train: bool, extent: Extent | None
) -> jax.Array:
    y = x
    for layer in block.layers:
        y = layer(y, train=train, extent=extent)
        extent = strided(extent, layer.stride)
    skip = x if block.skip is None else block.skip(x, train=train)
    return ACTIVATIONS[block.activation](y + skip)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One of the published networks.

    Attributes:
        block: class of the residual blocks.
        depths: number of blocks of each of the four stages.
    """

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]


ARCHITECTURES = {
    'resnet10': Architecture(BasicBlock, (1, 1, 1, 1)),
    'resnet18': Architecture(BasicBlock, (2, 2, 2, 2)),
    'resnet34': Architecture(BasicBlock, (3, 4, 6, 3)),
    'resnet50': Architecture(Bottleneck, (3, 4, 6, 3)),
    'resnet101': Architecture(Bottleneck, (3, 4, 23, 3)),
    'resnet152': Architecture(Bottleneck, (3, 8, 36, 3)),
}


def _stage(
    make: Callable[..., nnx.Module],
    in_features: int,
    features: int,
    plan: dilation_lib.Stage,
    *,
    remat: Remat,
    rngs: nnx.Rngs,
) -> nnx.List:
    """The block that changes the shape and the others, which are one `Repeated` where equal.

    Args:
        make: builds a block from (in_features, *, stride, first, dilation, rngs).
        in_features: number of channels of the input.
        features: number of channels of the output.
        plan: stride and dilations.
        remat: see `remat.run`.
        rngs: source of the initial parameters.
    """
    head, *others = plan.dilations
    blocks = [make(in_features, stride=plan.stride, first=plan.first, dilation=head, rngs=rngs)]

    def equal(number: int, rngs: nnx.Rngs) -> nnx.Module:
        return make(features, stride=1, first=number, dilation=number, rngs=rngs)

    if len(set(others)) == 1:
        same = functools.partial(equal, others[0])
        blocks.append(Repeated(same, len(others), remat=remat, rngs=rngs))
    else:
        blocks += [equal(number, rngs) for number in others]
    return nnx.List(blocks)


class ResNet(nnx.Module):
    """Residual network without classifier.

    Attributes:
        features: number of channels of each of the four stages.
        stride: output stride in pixels.
        strides: pixels per position of each stage.
    """

    def __init__(
        self,
        architecture: Architecture,
        stages: tuple[dilation_lib.Stage, ...],
        *,
        width: int,
        stem: str,
        activation: Activation,
        norm: Norm = 'batch_norm',
        remat: Remat = 'none',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the network.

        Args:
            architecture: class and number of the blocks.
            stages: strides and dilations, see `dilation.plan`.
            width: number of channels of the first stage's 3x3 convolutions.
            stem: '7x7', or the numbers of channels of three 3x3 convolutions at width 64.
            activation: activation of all layers.
            norm: norm behind every convolution.
            remat: what the backward pass keeps in memory, see `remat.run`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.

        Raises:
            ValueError: no such stem.
        """
        self.remat: Remat = remat
        if stem not in STEMS:
            raise ValueError(f'stem {stem!r} is not one of {", ".join(STEMS)}')
        block = architecture.block
        layer = functools.partial(
            ConvNorm, activation=activation, norm=norm, dtype=dtype, rngs=rngs
        )
        channels = [max(1, width * number // 64) for number in STEMS[stem]]
        kernel = 7 if len(channels) == 1 else 3
        layers = [layer(3, channels[0], kernel, stride=2)]
        layers += [layer(n, m, 3) for n, m in zip(channels, channels[1:])]
        self.stem = nnx.List(layers)
        self.features = tuple(width * 2**i * block.expansion for i in range(4))
        blocks = []
        for i, (n, stage) in enumerate(zip((channels[-1], *self.features), stages)):
            make = functools.partial(
                block, width=width * 2**i, activation=activation, norm=norm, dtype=dtype
            )
            blocks.append(_stage(make, n, self.features[i], stage, remat=remat, rngs=rngs))
        self.stages = nnx.List(blocks)
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
        for layer in self.stem:
            x = layer(x, train=train, extent=extent)
            extent = strided(extent, layer.stride)
        x = max_pool(x, extent)
        extent = strided(extent, 2)
        outputs = []
        for stage in self.stages:
            for block in stage:
                x = run(block, x, remat=self.remat, train=train, extent=extent)
                extent = strided(extent, block.stride)
            outputs.append(x)
        return tuple(outputs)


def build(
    architecture: Architecture,
    model: ConfigDict,
    *,
    remat: Remat,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> ResNet:
    """Builds a network from `config.model` (reads `backbone`, `activation` and `norm`)."""
    registry.check(model.backbone.stem, STEMS, 'config.model.backbone.stem')
    unsupported.check(model.backbone, 'drop_path')
    return ResNet(
        architecture,
        dilation_lib.from_config(model.backbone, architecture.depths),
        width=model.backbone.width,
        stem=model.backbone.stem,
        activation=model.activation,
        norm=model.norm,
        remat=remat,
        dtype=dtype,
        rngs=rngs,
    )


BACKBONES = {name: functools.partial(build, value) for name, value in ARCHITECTURES.items()}
