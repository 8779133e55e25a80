"""ConvNeXt (Liu et al., 2022, arXiv:2201.03545), as its authors use it for segmentation.

A norm stands behind each stage (github.com/facebookresearch/ConvNeXt,
semantic_segmentation/backbone/convnext.py at 516276f). Below output stride 32 stages are dilated as
in timm (timm/models/convnext.py of github.com/huggingface/pytorch-image-models at 03fa149): the 2x2
convolution that loses its stride keeps the dilation of the stage before, the 7x7 ones get that of
their own, so that weights keep their meaning.

`width` scales every layer: 64 is the published network.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray
from ml_collections import ConfigDict

from ggcf_jax.models.backbones import dilation as dilation_lib
from ggcf_jax.models.backbones import unsupported
from ggcf_jax.models.layers.depthwise import Depthwise
from ggcf_jax.models.layers.drop_path import Drop, drop_path, rates
from ggcf_jax.models.layers.extent import Extent, strided
from ggcf_jax.models.layers.layer_norm import layer_norm
from ggcf_jax.models.layers.layer_scale import LayerScale
from ggcf_jax.models.layers.linear import NORMAL, linear
from ggcf_jax.models.layers.norm import gelu
from ggcf_jax.models.layers.patch import PatchConv, PatchEmbedding
from ggcf_jax.models.layers.remat import Remat, mark_convolution, run
from ggcf_jax.models.layers.repeat import Repeated


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network of the family.

    Attributes:
        depths: number of blocks of each stage.
        channels: number of channels of the first stage, which double from stage to stage.
    """

    depths: tuple[int, int, int, int]
    channels: int


ARCHITECTURES = {
    'convnext_tiny': Architecture((3, 3, 9, 3), 96),
    'convnext_small': Architecture((3, 3, 27, 3), 96),
    'convnext_base': Architecture((3, 3, 27, 3), 128),
}


class Block(nnx.Module):
    """7x7 depthwise convolution, norm, and two linear layers with a GELU between, around a skip."""

    def __init__(self, features: int, *, dilation: int, dtype: DTypeLike, rngs: nnx.Rngs):
        """Initialises the layers.

        Args:
            features: number of channels.
            dilation: dilation of the depthwise convolution.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.depthwise = Depthwise(
            features,
            7,
            dilation=dilation,
            use_bias=True,
            kernel_init=NORMAL,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(features, dtype=dtype, rngs=rngs)
        self.expand = linear(features, 4 * features, dtype=dtype, rngs=rngs)
        self.reduce = linear(4 * features, features, dtype=dtype, rngs=rngs)
        self.layer_scale = LayerScale(features, 1e-6)

    def __call__(
        self,
        x: Float[Array, 'b h w c'],
        *,
        train: bool,
        drop: Drop | None = None,
        extent: Extent | None = None,
    ) -> Float[Array, 'b h w c']:
        """Adds the branch to the skip connection.

        Args:
            x: features.
            train: not used: the norm has no statistics.
            drop: how often the branch is left out; None: never.
            extent: extent of x; None where the maps are filled.
        """
        del train
        y = self.norm(mark_convolution(self.depthwise(x, extent=extent)))
        y = gelu(mark_convolution(self.expand(y)))
        y = mark_convolution(self.reduce(y))
        return x + drop_path(self.layer_scale(y), drop)


class Downsampling(nnx.Module):
    """Norm and 2x2 convolution.

    Attributes:
        stride: stride of the convolution.
        centre: position that output 0 is centred on, of those of the input.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dilation: int | None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            in_features: number of channels of the input.
            out_features: number of channels of the output.
            dilation: None: the convolution halves the resolution. A number: it has this dilation
                instead.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.norm = layer_norm(in_features, dtype=dtype, rngs=rngs)
        self.conv = PatchConv(
            in_features, out_features, 2, dilation=dilation, dtype=dtype, rngs=rngs
        )
        self.stride, self.centre = self.conv.stride, self.conv.centre

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) out_features']:
        """Applies norm and convolution.

        Args:
            x: features.
            train: not used: the norm has no statistics.
            extent: extent of x; None where the maps are filled.
        """
        del train
        return mark_convolution(self.conv(self.norm(x), extent=extent))


class ConvNeXt(nnx.Module):
    """ConvNeXt without classifier.

    Attributes:
        features: number of channels of each of the four stages.
        stride: output stride in pixels.
        strides: pixels per position of each stage.
        first: pixel that the first feature of each stage is centred on.
    """

    def __init__(
        self,
        stages: Sequence[dilation_lib.Stage],
        *,
        channels: int,
        drop_rate: float = 0.0,
        remat: Remat = 'none',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the network.

        Args:
            stages: strides and dilations, see `dilation.plan` with first_dilation='half'.
            channels: number of channels of the first stage.
            drop_rate: how often the last block leaves out its branch while training.
            remat: what the backward pass keeps in memory, see `remat.run`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.remat: Remat = remat
        self.features = tuple(channels * 2**i for i in range(4))
        self.stem = PatchEmbedding(channels, 4, epsilon=1e-6, dtype=dtype, rngs=rngs)
        drop_rates = rates(drop_rate, [len(stage.dilations) for stage in stages])
        centre = self.stem.conv.centre
        lists, first = [], []
        self.strides = dilation_lib.strides(stages)
        for i, stage in enumerate(stages):
            blocks: list[Downsampling | Repeated] = []
            if i > 0:
                down = Downsampling(
                    *self.features[i - 1 : i + 1],
                    dilation=stage.first if stage.stride == 1 else None,
                    dtype=dtype,
                    rngs=rngs,
                )
                centre += down.centre * self.strides[i - 1]
                blocks.append(down)
            first.append(centre)
            block = functools.partial(
                Block, self.features[i], dilation=stage.dilations[0], dtype=dtype
            )
            equal = lambda rngs, block=block: block(rngs=rngs)  # noqa: E731
            repeated = functools.partial(Repeated, remat=remat, drop_rates=drop_rates[i], rngs=rngs)
            blocks.append(repeated(equal, len(stage.dilations)))
            lists.append(nnx.List(blocks))
        self.stages = nnx.List(lists)
        self.norms = nnx.List([layer_norm(n, dtype=dtype, rngs=rngs) for n in self.features])
        self.stride, self.first = self.strides[-1], tuple(first)

    def __call__(
        self,
        x: Float[Array, 'b h w 3'],
        *,
        train: bool,
        key: PRNGKeyArray | None = None,
        extent: Extent | None = None,
    ) -> tuple[Float[Array, 'b _ _ _'], ...]:
        """Computes the features of the four stages, each behind its norm.

        Args:
            x: normalised images.
            train: whether branches are left out.
            key: random key of the branches that are left out, needed when training with a rate
                above 0.
            extent: extent of the images; None where they are filled.

        Returns:
            Features at 1/4, 1/8, 1/16 and 1/32 of the image or, past the output stride, at the
            output stride; heights and widths are rounded up.
        """
        keys = [None] * 4 if key is None else [*jax.random.split(key, 4)]
        x = self.stem(x, extent=extent)
        extent = strided(extent, 4)
        outputs = []
        for stage, norm, own in zip(self.stages, self.norms, keys):
            for block in stage:
                given = own if isinstance(block, Repeated) else None
                x = run(block, x, remat=self.remat, train=train, key=given, extent=extent)
                extent = strided(extent, block.stride)
            outputs.append(norm(x))
        return tuple(outputs)


def build(
    architecture: Architecture,
    model: ConfigDict,
    *,
    remat: Remat,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> ConvNeXt:
    """Builds a network from `config.model` (reads `backbone`).

    There is no multi-grid, dilation is as above, and the activation is always GELU.
    """
    backbone = model.backbone
    unsupported.check(backbone, 'multi_grid', 'first_dilation', activation='gelu')
    return ConvNeXt(
        dilation_lib.from_config(backbone, architecture.depths, first_dilation='half'),
        channels=max(1, architecture.channels * backbone.width // 64),
        drop_rate=backbone.drop_path,
        remat=remat,
        dtype=dtype,
        rngs=rngs,
    )


BACKBONES = {name: functools.partial(build, value) for name, value in ARCHITECTURES.items()}
