"""The whole network: backbone -> context module -> class logits, with an auxiliary head."""

import dataclasses
import functools
from typing import Literal, cast, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Float32, Int, PRNGKeyArray, UInt8

from ggcf_jax.models.backbones import Backbone, lattice
from ggcf_jax.models.contexts import AttentionContext, Context
from ggcf_jax.models.layers.conv import TORCH_UNIFORM, ConvNorm, conv
from ggcf_jax.models.layers.extent import Extent, strided
from ggcf_jax.models.layers.norm import Activation, Norm
from ggcf_jax.models.layers.resize import upsample


@dataclasses.dataclass(frozen=True)
class Normalization:
    """How an 8-bit RGB image becomes the input of the backbone: (channels - mean) / std.

    Attributes:
        channels: order of the channels that the backbone expects.
        mean: value subtracted from each channel, in that order.
        std: divisor of each channel, in that order.
    """

    channels: Literal['rgb', 'bgr']
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: UInt8[Array, 'b h w 3']) -> Float32[Array, 'b h w 3']:
        """Normalises RGB images."""
        x = images.astype(jnp.float32)
        if self.channels == 'bgr':
            x = x[..., ::-1]
        return (x - jnp.array(self.mean)) / jnp.array(self.std)


# What published backbones were trained with (docs/pretrained.md).
INPUTS = {
    'imagenet': Normalization('rgb', (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    'caffe': Normalization('bgr', (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)),
    'ocnet': Normalization('rgb', (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)),
    'ccnet': Normalization('bgr', (104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0)),
    'vistas': Normalization('rgb', (106.43368, 116.61709, 119.55953), (65.497, 67.60039, 74.12339)),
}


# What dropout sets to zero together -> the axes along which it does.
DROPOUTS = {'value': (), 'channel': (1, 2)}


class Segmenter(nnx.Module):
    """Fig. 2: a 1x1 convolution classifies the output of the context module, concat(y, x).

    During training an auxiliary head (3x3 convolution, norm, 1x1 convolution) reads stage 3.

    Differentiable in reverse mode (`jax.grad`, `jax.vjp`). JAX refuses forward mode (`jax.jvp`)
    through what has a backward pass of its own: attention, batch norm in training, and on CPUs some
    convolutions.

    Attributes:
        backbone: images -> features of four stages.
        context: features of the last stage -> features that are classified.
        num_classes: number of classes.
        normalization: how images are normalised.
        dtype: dtype of the computation.
    """

    def __init__(
        self,
        backbone: Backbone,
        context: Context,
        num_classes: int,
        *,
        aux_channels: int,
        dropout: float,
        dropout_of: str = 'value',
        normalization: Normalization,
        activation: Activation,
        norm: Norm = 'batch_norm',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the heads.

        Args:
            backbone: network that fulfils `backbones.Backbone`.
            context: module that fulfils `contexts.Context`.
            num_classes: number of classes.
            aux_channels: number of channels inside the auxiliary head.
            dropout: dropout rate before both classifiers.
            dropout_of: what is dropped, a key of `DROPOUTS`.
            normalization: how images are normalised.
            activation: activation of the auxiliary head.
            norm: norm of the auxiliary head.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        classifier = functools.partial(
            conv, kernel=1, use_bias=True, kernel_init=TORCH_UNIFORM, dtype=dtype, rngs=rngs
        )
        self.backbone = backbone
        self.context = context
        self.num_classes = num_classes
        self.dropout = nnx.Dropout(dropout, broadcast_dims=DROPOUTS[dropout_of])
        self.classifier = classifier(context.features, num_classes)
        self.aux_reduce = ConvNorm(
            backbone.features[2], aux_channels, 3, activation, norm=norm, dtype=dtype, rngs=rngs
        )
        self.aux_classifier = classifier(aux_channels, num_classes)
        self.normalization = normalization
        self.dtype = dtype

    @property
    def stride(self) -> int:
        """Number of pixels per position of the logits, down and across."""
        return self.backbone.stride

    @property
    def first(self) -> float:
        """Pixel, down and across, that the first position of the logits is centred on."""
        return lattice(self.backbone, 3).first

    @property
    def heads(self) -> tuple:
        """The graphs of the context module's heads; () where it has none."""
        return getattr(self.context, 'heads', ())

    @overload
    def __call__(
        self,
        images: Array,
        *,
        train: Literal[False] = ...,
        key: PRNGKeyArray | None = ...,
        extent: Extent | None = ...,
    ) -> tuple[Array, None]: ...

    @overload
    def __call__(
        self, images: Array, *, train: Literal[True], key: PRNGKeyArray | None
    ) -> tuple[Array, Array]: ...

    def __call__(
        self,
        images: UInt8[Array, 'b h w 3'],
        *,
        train: bool = False,
        key: PRNGKeyArray | None = None,
        extent: Extent | None = None,
    ) -> tuple[Float32[Array, 'b _ _ classes'], Float32[Array, 'b _ _ classes'] | None]:
        """Computes class logits.

        Args:
            images: RGB images; normalised here, on the device.
            train: whether batch statistics are used and updated and dropout is active.
            key: random key for dropout, needed when training.
            extent: how far the images of a padded batch reach; inside `strided(extent, stride)` the
                logits are those of each image alone, outside they are arbitrary. None where the
                images are filled, as they are when training.

        Returns:
            (logits, auxiliary logits when training or else None) on maps of
            ceil(h / stride) x ceil(w / stride) positions; the auxiliary ones on that of stage 3.
            `upsample` and `upsample_aux` give those of every pixel.

        Raises:
            ValueError: an extent when training.
        """
        if train and extent is not None:
            raise ValueError('padded images are for inference: batch statistics would see padding')
        main_key, aux_key, trunk_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = self.normalization(images).astype(self.dtype)
        *_, stage3, stage4 = self.backbone(x, train=train, key=trunk_key, extent=extent)
        features = self.context(stage4, train=train, extent=strided(extent, self.stride))
        if not train:
            return self.classifier(features).astype(jnp.float32), None
        logits = self.classifier(self.dropout(features, rngs=main_key))
        aux = self.aux_reduce(stage3, train=train)
        aux_logits = self.aux_classifier(self.dropout(aux, rngs=aux_key))
        return logits.astype(jnp.float32), aux_logits.astype(jnp.float32)

    def upsample(
        self,
        logits: Float[Array, 'b _ _ classes'],
        size: tuple[int, int],
        extent: Extent | None = None,
    ) -> Float[Array, 'b {size[0]} {size[1]} classes']:
        """Upsamples logits to every pixel.

        Args:
            logits: class logits.
            size: (height, width) of the images in pixels.
            extent: extent of the images; None where they are filled.
        """
        own = strided(extent, self.stride)
        return upsample(logits, self.stride, size, own, first=self.first)

    def upsample_aux(
        self, logits: Float[Array, 'b _ _ classes'], size: tuple[int, int]
    ) -> Float[Array, 'b {size[0]} {size[1]} classes']:
        """Upsamples auxiliary logits to every pixel.

        Args:
            logits: auxiliary logits.
            size: (height, width) of the images in pixels.
        """
        stride, first = lattice(self.backbone, 2)
        return upsample(logits, stride, size, first=first)

    def attention(
        self,
        images: UInt8[Array, 'b h w 3'],
        positions: Int[Array, 'm 2'],
        *,
        extent: Extent | None = None,
    ) -> Float[Array, 'b m heads _ _']:
        """Computes where the heads attend to from chosen positions; needs an `AttentionContext`.

        Args:
            images: RGB images.
            positions: row and column of each query in the map of logits.
            extent: how far the images of a padded batch reach, outside of which nothing is attended
                to; None where they are filled.

        Returns:
            float32 attention weights over the map of ceil(h / stride) x ceil(w / stride)
            positions; those of a query and head sum to one.
        """
        x = self.normalization(images).astype(self.dtype)
        context = cast(AttentionContext, self.context)
        features = self.backbone(x, train=False, key=None, extent=extent)[-1]
        return context.attention(features, positions, extent=strided(extent, self.stride))
