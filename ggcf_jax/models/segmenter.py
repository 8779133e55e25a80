"""The whole network: backbone -> context module -> class logits, with an auxiliary head."""

import jax
import jax.numpy as jnp
from flax import nnx

from ggcf_jax.models.conv import TORCH_UNIFORM, ConvNorm, conv
from ggcf_jax.models.norm import Activation

# ImageNet statistics in 8-bit RGB: what published backbones were trained with.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


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
        activation: Activation,
        dtype,
        rngs: nnx.Rngs,
    ):
        """Args:
        backbone: images [b, h, w, 3] -> features of four stages; has `features` and `stride`.
        context: features [b, h, w, c] -> [b, h, w, context.features].
        aux_channels: channels inside the auxiliary head.
        dropout: rate before both classifiers.
        """
        shared = dict(dtype=dtype, rngs=rngs)
        self.backbone = backbone
        self.context = context
        self.dropout = nnx.Dropout(dropout)
        classify = dict(use_bias=True, kernel_init=TORCH_UNIFORM, **shared)
        self.classifier = conv(context.features, num_classes, 1, **classify)
        self.aux_reduce = ConvNorm(backbone.features[2], aux_channels, 3, activation, **shared)
        self.aux_classifier = conv(aux_channels, num_classes, 1, **classify)
        self.dtype = dtype

    @property
    def stride(self) -> int:
        """Pixels per position of the logits."""
        return self.backbone.stride

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
        x = (images.astype(jnp.float32) - jnp.array(MEAN)) / jnp.array(STD)
        *_, stage3, stage4 = self.backbone(x.astype(self.dtype), train)
        features = self.context(stage4, train)
        if not train:
            return self.classifier(features).astype(jnp.float32), None
        main_key, aux_key = jax.random.split(key)
        logits = self.classifier(self.dropout(features, rngs=main_key))
        aux = self.aux_reduce(stage3, train)
        aux_logits = self.aux_classifier(self.dropout(aux, rngs=aux_key))
        return logits.astype(jnp.float32), aux_logits.astype(jnp.float32)
