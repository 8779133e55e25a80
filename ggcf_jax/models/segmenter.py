"""The whole network: backbone -> context module -> class logits, with an auxiliary head."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ggcf_jax.models.layers.conv import TORCH_UNIFORM, ConvNorm, conv
from ggcf_jax.models.layers.norm import Activation, Norm


@dataclasses.dataclass(frozen=True)
class Normalization:
    """How an 8-bit RGB image becomes the input of the backbone: (channels - mean) / std.

    Attributes:
        channels: order that the backbone sees. mean, std: in that order.
    """

    channels: Literal['rgb', 'bgr']
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 [b, h, w, 3] -> float32 [b, h, w, 3]."""
        x = images.astype(jnp.float32)
        if self.channels == 'bgr':
            x = x[..., ::-1]
        return (x - jnp.array(self.mean)) / jnp.array(self.std)


# What published backbones were trained with (docs/pretrained.md).
INPUTS = {
    'imagenet': Normalization('rgb', (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    'caffe': Normalization('bgr', (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)),
    'vistas': Normalization('rgb', (106.43368, 116.61709, 119.55953), (65.497, 67.60039, 74.12339)),
}


class Segmenter(nnx.Module):
    """Fig. 2: the context module's concat(y, x) goes through a last 1x1 convolution.

    During training an auxiliary head (3x3 convolution, norm, 1x1 convolution) reads stage 3.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        context: nnx.Module,
        num_classes: int,
        *,
        aux_channels: int,
        dropout: float,
        normalization: Normalization,
        activation: Activation,
        norm: Norm = 'batch_norm',
        dtype,
        rngs: nnx.Rngs,
    ):
        """Args:
        backbone: images [b, h, w, 3] -> features of four stages; has `features` and `stride`.
        context: features [b, h, w, c] -> [b, h, w, context.features].
        aux_channels: channels inside the auxiliary head.
        dropout: rate before both classifiers.
        normalization: of the images.
        """
        shared = dict(dtype=dtype, rngs=rngs)
        self.backbone = backbone
        self.context = context
        self.num_classes = num_classes
        self.dropout = nnx.Dropout(dropout)
        classify = dict(use_bias=True, kernel_init=TORCH_UNIFORM, **shared)
        self.classifier = conv(context.features, num_classes, 1, **classify)
        self.aux_reduce = ConvNorm(
            backbone.features[2], aux_channels, 3, activation, norm=norm, **shared
        )
        self.aux_classifier = conv(aux_channels, num_classes, 1, **classify)
        self.normalization = normalization
        self.dtype = dtype

    @property
    def stride(self) -> int:
        """Pixels per position of the logits."""
        return self.backbone.stride

    @property
    def heads(self) -> tuple:
        """The graphs of the context module's heads; () where it has none."""
        return getattr(self.context, 'heads', ())

    def __call__(
        self, images: jax.Array, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Computes class logits.

        Args:
            images: uint8 [b, h, w, 3] RGB; normalised here, on the device.
            train: whether batch statistics are used and updated and dropout is active.
            key: for dropout, needed when training.

        Returns:
            (logits, auxiliary logits or None unless training), float32
            [b, ceil(h / stride), ceil(w / stride), num_classes].
        """
        main_key, aux_key, trunk_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = self.normalization(images).astype(self.dtype)
        *_, stage3, stage4 = self.backbone(x, train=train, key=trunk_key)
        features = self.context(stage4, train=train)
        if not train:
            return self.classifier(features).astype(jnp.float32), None
        logits = self.classifier(self.dropout(features, rngs=main_key))
        aux = self.aux_reduce(stage3, train)
        aux_logits = self.aux_classifier(self.dropout(aux, rngs=aux_key))
        return logits.astype(jnp.float32), aux_logits.astype(jnp.float32)

    def attention(self, images: jax.Array, positions: jax.Array) -> jax.Array:
        """Where the heads of the context module look from chosen positions; needs `heads`.

        Args:
            images: uint8 [b, h, w, 3] RGB.
            positions: integers [m, 2], row and column in the map of logits (pixel / stride).

        Returns:
            float32 [b, m, heads, ceil(h / stride), ceil(w / stride)], one in sum over the map.
        """
        x = self.normalization(images).astype(self.dtype)
        return self.context.attention(self.backbone(x, train=False, key=None)[-1], positions)
