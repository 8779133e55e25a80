"""Dilated residual networks (He et al., 2016; Chen et al., 2017) with output stride 8.

Stages 3 and 4 trade their stride for dilation 2 and 4. `width` scales every layer: 64 is the
published network, 32 a quarter of its parameters.
"""

import dataclasses

import jax
from flax import nnx

from ggcf_jax.models.conv import ConvNorm
from ggcf_jax.models.norm import ACTIVATIONS, Activation
from ggcf_jax.models.repeat import Repeated

STEMS = ('7x7', 'deep')


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions around a skip connection."""

    expansion = 1

    def __init__(self, in_features, width, activation, *, stride, dilation, dtype, rngs):
        shared = dict(dilation=dilation, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [
                ConvNorm(in_features, width, 3, activation, stride=stride, **shared),
                ConvNorm(width, width, 3, 'identity', scale_init=_ZEROS, **shared),
            ]
        )
        self.skip = _skip(in_features, width, stride, dtype, rngs)
        self.activation = activation

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return _residual(self, x, train)


class Bottleneck(nnx.Module):
    """1x1 reduce, 3x3, 1x1 expand around a skip connection; the stride is in the 3x3."""

    expansion = 4

    def __init__(self, in_features, width, activation, *, stride, dilation, dtype, rngs):
        shared = dict(dtype=dtype, rngs=rngs)
        out_features = width * self.expansion
        self.layers = nnx.List(
            [
                ConvNorm(in_features, width, 1, activation, **shared),
                ConvNorm(width, width, 3, activation, stride=stride, dilation=dilation, **shared),
                ConvNorm(width, out_features, 1, 'identity', scale_init=_ZEROS, **shared),
            ]
        )
        self.skip = _skip(in_features, out_features, stride, dtype, rngs)
        self.activation = activation

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return _residual(self, x, train)


# Residual branches start at zero, so that a network from scratch starts as a shallow one
# (Goyal et al., 2017); imported weights overwrite it.
_ZEROS = nnx.initializers.zeros_init()


def _skip(in_features, out_features, stride, dtype, rngs) -> ConvNorm | None:
    if stride == 1 and in_features == out_features:
        return None
    return ConvNorm(in_features, out_features, 1, 'identity', stride=stride, dtype=dtype, rngs=rngs)


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

    def __call__(self, **arguments) -> 'ResNet':
        return ResNet(self, **arguments)


def _stage(block, in_features, width, depth, activation, *, stride, dilation, dtype, rngs):
    """A list of the block that changes shape and, if there are more, the others as one."""
    arguments = dict(dilation=dilation, dtype=dtype)
    first = block(in_features, width, activation, stride=stride, rngs=rngs, **arguments)
    if depth == 1:
        return nnx.List([first])

    def make(rngs: nnx.Rngs):
        return block(width * block.expansion, width, activation, stride=1, rngs=rngs, **arguments)

    return nnx.List([first, Repeated(make, depth - 1, rngs=rngs)])


class ResNet(nnx.Module):
    """Residual network without classifier.

    Attributes:
        features: channels of the four stages.
        stride: output stride of stages 2 to 4.
    """

    stride = 8

    def __init__(
        self,
        architecture: Architecture,
        *,
        width: int,
        stem: str,
        activation: Activation,
        dtype,
        rngs: nnx.Rngs,
    ):
        block = architecture.block
        shared = dict(dtype=dtype, rngs=rngs)
        if stem == '7x7':
            layers = [ConvNorm(3, width, 7, activation, stride=2, **shared)]
            features = width
        elif stem == 'deep':
            layers = [
                ConvNorm(3, width, 3, activation, stride=2, **shared),
                ConvNorm(width, width, 3, activation, **shared),
                ConvNorm(width, 2 * width, 3, activation, **shared),
            ]
            features = 2 * width
        else:
            raise ValueError(f'stem {stem!r} is not one of {", ".join(STEMS)}')
        self.stem = nnx.List(layers)
        self.features = tuple(width * 2**i * block.expansion for i in range(4))
        stages = []
        for i, (depth, stride, dilation) in enumerate(
            zip(architecture.depths, (1, 2, 1, 1), (1, 1, 2, 4))
        ):
            arguments = dict(stride=stride, dilation=dilation, **shared)
            stages.append(_stage(block, features, width * 2**i, depth, activation, **arguments))
            features = self.features[i]
        self.stages = nnx.List(stages)

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """Features of the four stages of x [b, h, w, 3].

        Returns:
            [b, h/4, w/4, features[0]], then three of [b, h/8, w/8, features[i]]; sizes rounded up.
        """
        for layer in self.stem:
            x = layer(x, train)
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        outputs = []
        for stage in self.stages:
            for block in stage:
                x = block(x, train)
            outputs.append(x)
        return tuple(outputs)


BACKBONES = {
    'resnet10': Architecture(BasicBlock, (1, 1, 1, 1)),
    'resnet18': Architecture(BasicBlock, (2, 2, 2, 2)),
    'resnet34': Architecture(BasicBlock, (3, 4, 6, 3)),
    'resnet50': Architecture(Bottleneck, (3, 4, 6, 3)),
    'resnet101': Architecture(Bottleneck, (3, 4, 23, 3)),
}
