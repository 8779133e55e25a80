"""Residual networks (He et al., 2016), dilated to output stride 8 or 16 (Chen et al., 2017).

`width` scales every layer: 64 is the published network, 32 a quarter of its parameters.
"""

import dataclasses
import functools

import jax
from flax import nnx

from ggcf_jax import registry
from ggcf_jax.models.backbones import dilation as dilation_lib
from ggcf_jax.models.layers.conv import ConvNorm
from ggcf_jax.models.layers.norm import ACTIVATIONS, Activation, Norm
from ggcf_jax.models.layers.remat import Remat, run
from ggcf_jax.models.layers.repeat import Repeated

# Output channels of the stem's convolutions at width 64. '64-64-128': openseg, OCNet, CCNet;
# '32-32-64': ResNet v1c of mmseg and timm.
STEMS = {'7x7': (64,), '64-64-128': (64, 64, 128), '32-32-64': (32, 32, 64)}


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions around a skip connection."""

    expansion = 1

    def __init__(
        self, in_features, width, activation, *, stride, first, dilation, norm, dtype, rngs
    ):
        """Args: first: dilation of the convolution with the stride. dilation: of the other."""
        shared = dict(norm=norm, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [
                ConvNorm(
                    in_features, width, 3, activation, stride=stride, dilation=first, **shared
                ),
                ConvNorm(
                    width, width, 3, 'identity', dilation=dilation, scale_init=_ZEROS, **shared
                ),
            ]
        )
        self.skip = _skip(in_features, width, stride, **shared)
        self.activation = activation

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return _residual(self, x, train)


class Bottleneck(nnx.Module):
    """1x1 reduce, 3x3, 1x1 expand around a skip connection; the stride is in the 3x3."""

    expansion = 4

    def __init__(
        self, in_features, width, activation, *, stride, first, dilation, norm, dtype, rngs
    ):
        """Args: first: dilation of the 3x3, which has the stride. dilation: of no convolution."""
        del dilation
        shared = dict(norm=norm, dtype=dtype, rngs=rngs)
        out_features = width * self.expansion
        self.layers = nnx.List(
            [
                ConvNorm(in_features, width, 1, activation, **shared),
                ConvNorm(width, width, 3, activation, stride=stride, dilation=first, **shared),
                ConvNorm(width, out_features, 1, 'identity', scale_init=_ZEROS, **shared),
            ]
        )
        self.skip = _skip(in_features, out_features, stride, **shared)
        self.activation = activation

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return _residual(self, x, train)


# Residual branches start at zero, so that a network from scratch starts as a shallow one
# (Goyal et al., 2017); imported weights overwrite it.
_ZEROS = nnx.initializers.zeros_init()


def _skip(in_features, out_features, stride, *, norm, dtype, rngs) -> ConvNorm | None:
    if stride == 1 and in_features == out_features:
        return None
    shared = dict(norm=norm, dtype=dtype, rngs=rngs)
    return ConvNorm(in_features, out_features, 1, 'identity', stride=stride, **shared)


def _residual(block: BasicBlock | Bottleneck, x: jax.Array, train: bool) -> jax.Array:
    y = x
    for layer in block.layers:
        y = layer(y, train)
    skip = x if block.skip is None else block.skip(x, train)
    return ACTIVATIONS[block.activation](y + skip)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Block class and number of blocks in each of the four stages."""

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
    block, in_features, width, activation, plan: dilation_lib.Stage, *, norm, remat, dtype, rngs
):
    """A list of the block that changes shape and the others: as one where they are equal."""

    def make(in_features, stride, first, dilation, rngs):
        return block(
            in_features,
            width,
            activation,
            stride=stride,
            first=first,
            dilation=dilation,
            norm=norm,
            dtype=dtype,
            rngs=rngs,
        )

    head, *others = plan.dilations
    blocks = [make(in_features, plan.stride, plan.first, head, rngs)]
    features = width * block.expansion
    if len(set(others)) == 1:
        equal = functools.partial(make, features, 1, others[0], others[0])
        blocks.append(Repeated(equal, len(others), remat=remat, rngs=rngs))
    else:
        blocks += [make(features, 1, number, number, rngs) for number in others]
    return nnx.List(blocks)


class ResNet(nnx.Module):
    """Residual network without classifier.

    Attributes:
        features: channels of the four stages.
        stride: output stride.
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
        dtype,
        rngs: nnx.Rngs,
    ):
        """Args:
        stages: strides and dilations, see `dilation.plan`.
        width: channels of the first stage's 3x3 convolutions.
        stem: '7x7', or the channels of three 3x3 convolutions at width 64.
        remat: see `remat.run`.
        """
        self.remat = remat
        if stem not in STEMS:
            raise ValueError(f'stem {stem!r} is not one of {", ".join(STEMS)}')
        block = architecture.block
        shared = dict(norm=norm, dtype=dtype, rngs=rngs)
        channels = [max(1, width * number // 64) for number in STEMS[stem]]
        kernel = 7 if len(channels) == 1 else 3
        layers = [ConvNorm(3, channels[0], kernel, activation, stride=2, **shared)]
        layers += [ConvNorm(n, m, 3, activation, **shared) for n, m in zip(channels, channels[1:])]
        self.stem = nnx.List(layers)
        self.features = tuple(width * 2**i * block.expansion for i in range(4))
        self.stride = 4
        blocks = []
        for i, (n, stage) in enumerate(zip((channels[-1], *self.features), stages)):
            blocks.append(_stage(block, n, width * 2**i, activation, stage, remat=remat, **shared))
            self.stride *= stage.stride
        self.stages = nnx.List(blocks)

    def __call__(
        self, x: jax.Array, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """Features of the four stages of x [b, h, w, 3].

        Args:
            x: normalised images.
            train: whether batch statistics are used and updated.
            key: not needed, this network has no dropout.

        Returns:
            [b, h / 4, w / 4, features[0]], then one a stage at 1/8, 1/16 and 1/32 or, past the
            output stride, at the output stride; sizes rounded up.
        """
        del key
        for layer in self.stem:
            x = layer(x, train)
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        outputs = []
        for stage in self.stages:
            for block in stage:
                x = run(self.remat, block, x, train)
            outputs.append(x)
        return tuple(outputs)


def build(architecture: Architecture, model, *, remat: Remat, dtype, rngs: nnx.Rngs) -> ResNet:
    """Builds a network from `config.model` (reads `backbone`, `activation` and `norm`)."""
    registry.check(model.backbone.stem, STEMS, 'config.model.backbone.stem')
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
