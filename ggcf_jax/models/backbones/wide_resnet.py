"""WideResNet-38 in the form A2 of InPlace-ABN (Rota Bulo et al., 2018; Wu et al., 2019).

Six modules of residual blocks with the norm before the convolution; the first two start with max
pooling, the others with a stride or, to reach output stride 8, dilation 2 and 4. The layers are
those of `WiderResNetA2` in github.com/mapillary/inplace_abn, scripts/models/wider_resnet.py.
`width` scales every layer: 64 is the published network with 4096 channels of output.
"""

import functools

import jax
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray
from ml_collections import ConfigDict

from ggcf_jax.models.backbones import dilation as dilation_lib
from ggcf_jax.models.backbones import unsupported
from ggcf_jax.models.layers.conv import conv, convolve
from ggcf_jax.models.layers.extent import Extent, strided
from ggcf_jax.models.layers.norm import ActivatedNorm, Activation, Norm
from ggcf_jax.models.layers.pool import max_pool
from ggcf_jax.models.layers.remat import Remat, mark_convolution, run
from ggcf_jax.models.layers.repeat import Repeated

# Blocks of mod2 to mod7, and the output channels of each block's convolutions in units of `width`.
DEPTHS = (3, 3, 6, 3, 1, 1)
CHANNELS = ((2, 2), (4, 4), (8, 8), (8, 16), (8, 16, 32), (16, 32, 64))
DROPOUT = (0.0, 0.0, 0.0, 0.0, 0.3, 0.5)
# Blocks as stages of one resolution: mod2 and mod3, mod4, mod5, mod6 and mod7. Multi-grid, which
# nobody published for this network, takes two numbers: of mod6 and of mod7.
PLANNED = (6, 6, 3, 2)


class PreActivationBlock(nnx.Module):
    """Norm and convolution two (3x3, 3x3) or three times (1x1, 3x3, 1x1) around a skip.

    Where the shape changes, the skip is a 1x1 convolution of the first norm's output.

    Attributes:
        stride: stride of the first convolution.
    """

    def __init__(
        self,
        in_features: int,
        channels: tuple[int, ...],
        activation: Activation,
        *,
        stride: int = 1,
        dilation: int = 1,
        dropout: float = 0.0,
        norm: Norm,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the block.

        Args:
            in_features: number of channels of the input.
            channels: number of channels of each of the two or three convolutions.
            activation: activation behind every norm.
            stride: stride of the first convolution.
            dilation: dilation of all convolutions.
            dropout: rate at which whole channels are dropped before the last convolution.
            norm: form of the norms' scales, see `ActivatedNorm`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        layer = functools.partial(conv, dtype=dtype, rngs=rngs)
        kernels = (3, 3) if len(channels) == 2 else (1, 3, 1)
        inputs = (in_features, *channels[:-1])
        self.norms = nnx.List(
            [ActivatedNorm(n, activation, norm=norm, dtype=dtype, rngs=rngs) for n in inputs]
        )
        self.convs = nnx.List(
            [
                layer(n, m, kernel, stride=stride if i == 0 else 1, dilation=dilation)
                for i, (n, m, kernel) in enumerate(zip(inputs, channels, kernels))
            ]
        )
        self.stride = stride
        changes = stride != 1 or in_features != channels[-1]
        self.skip = layer(in_features, channels[-1], 1, stride=stride) if changes else None
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))

    def __call__(
        self,
        x: Float[Array, 'b h w in_features'],
        *,
        train: bool,
        key: PRNGKeyArray | None = None,
        extent: Extent | None = None,
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) channels[-1]']:
        """Adds the residual branch to the skip connection.

        Args:
            x: features.
            train: whether batch statistics are used and updated, and dropout is active.
            key: random key for dropout, needed when training with a dropout rate above 0.
            extent: extent of x; None where the maps are filled.
        """
        y = self.norms[0](x, train=train)
        skip = x if self.skip is None else self.skip(y)
        for layer, norm in zip(self.convs, self.norms[1:]):
            y = norm(mark_convolution(convolve(layer, y, extent)), train=train)
            extent = strided(extent, self.stride if layer is self.convs[0] else 1)
        if self.dropout.rate:
            y = self.dropout(y, deterministic=not train, rngs=key)
        return skip + convolve(self.convs[-1], y, extent)


class WideResNet(nnx.Module):
    """WideResNet-38 (A2) without classifier.

    Attributes:
        features: number of channels of each of the four stages, at width 64 (256, 512, 2048, 4096).
        stride: output stride in pixels.
    """

    def __init__(
        self,
        stages: tuple[dilation_lib.Stage, ...],
        *,
        width: int,
        activation: Activation,
        norm: Norm = 'batch_norm',
        remat: Remat = 'none',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the network.

        Args:
            stages: strides and dilations for `PLANNED`, see `dilation.plan`.
            width: number of channels of the first convolution.
            activation: activation behind every norm.
            norm: form of the norms' scales, see `ActivatedNorm`.
            remat: what the backward pass keeps in memory, see `remat.run`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.remat: Remat = remat
        self.stem = conv(3, width, 3, dtype=dtype, rngs=rngs)
        strides = (1, 1, *(stage.stride for stage in stages[1:]), 1)
        *others, (mod6, mod7) = (stage.dilations for stage in stages)
        dilations = (1, *(numbers[0] for numbers in others), mod6, mod7)
        self.stride = 4
        features = width
        modules = []
        for i, depth in enumerate(DEPTHS):
            channels = tuple(width * number for number in CHANNELS[i])
            make = functools.partial(
                PreActivationBlock,
                channels=channels,
                activation=activation,
                dilation=dilations[i],
                dropout=DROPOUT[i],
                norm=norm,
                dtype=dtype,
            )
            blocks: list[PreActivationBlock | Repeated] = [
                make(features, stride=strides[i], rngs=rngs)
            ]
            features = channels[-1]
            if depth > 1:
                equal = functools.partial(make, features)
                repeated = lambda rngs, equal=equal: equal(rngs=rngs)  # noqa: E731
                blocks.append(Repeated(repeated, depth - 1, remat=remat, rngs=rngs))
            modules.append(nnx.List(blocks))
            self.stride *= strides[i]
        self.mods = nnx.List(modules)
        self.norm = ActivatedNorm(features, activation, norm=norm, dtype=dtype, rngs=rngs)
        self.features = tuple(width * CHANNELS[i][-1] for i in (1, 2, 4, 5))

    def __call__(
        self,
        x: Float[Array, 'b h w 3'],
        *,
        train: bool,
        key: PRNGKeyArray | None = None,
        extent: Extent | None = None,
    ) -> tuple[Float[Array, 'b _ _ _'], ...]:
        """Computes the features of four stages, of which only the last one is normalised.

        Args:
            x: normalised images.
            train: whether batch statistics are used and updated, and dropout is active.
            key: random key for dropout, needed when training.
            extent: extent of the images; None where they are filled.

        Returns:
            Outputs of mod3 (at 1/4 of the image), mod4 (1/8), mod6 and mod7 (at the output stride);
            heights and widths are rounded up.

        Raises:
            ValueError: training without a key.
        """
        if train and key is None:
            raise ValueError('wide_resnet38 has dropout: training needs a key')
        x = convolve(self.stem, x, extent)
        outputs = []
        for i, blocks in enumerate(self.mods):
            if i < 2:
                x = max_pool(x, extent)
                extent = strided(extent, 2)
            for block in blocks:
                own = None
                if DROPOUT[i] and train and key is not None:
                    key, own = jax.random.split(key)
                x = run(block, x, remat=self.remat, train=train, key=own, extent=extent)
                extent = strided(extent, block.stride)
            outputs.append(x)
        _, mod3, mod4, _, mod6, mod7 = outputs
        return mod3, mod4, mod6, self.norm(mod7, train=train)


def build(model: ConfigDict, *, remat: Remat, dtype: DTypeLike, rngs: nnx.Rngs) -> WideResNet:
    """Builds the network from `config.model` (reads `backbone`, `activation` and `norm`).

    Of `backbone` there is no `stem`, and `first_dilation` is that of the published network.
    """
    unsupported.check(model.backbone, 'first_dilation', 'drop_path')
    return WideResNet(
        dilation_lib.from_config(model.backbone, PLANNED),
        width=model.backbone.width,
        activation=model.activation,
        norm=model.norm,
        remat=remat,
        dtype=dtype,
        rngs=rngs,
    )


BACKBONES = {'wide_resnet38': build}
