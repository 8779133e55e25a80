"""MiT, SegFormer's encoder (Xie et al., 2021, arXiv:2105.15203): B0 to B5.

As mmseg/models/backbones/mix_transformer.py of NVlabs/SegFormer: four stages at 1/4, 1/8, 1/16 and
1/32 of the image, each of an overlapping patch embedding, blocks, and a norm. Keys and values of
the first three stages come from a map that is 8, 4 and 2 times smaller; rows and columns that do
not fill a patch of it are left out, as there. The feed-forward network has a 3x3 depthwise
convolution, which tells positions apart.

SegFormer's decoder reads all four stages, the context modules here the last one.

`width` scales every layer: 64 is the published network.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray
from ml_collections import ConfigDict

from ggcf_jax.attention import attend_across
from ggcf_jax.attention.implementations import Implementation
from ggcf_jax.models.backbones import unsupported
from ggcf_jax.models.layers.conv import conv, convolve
from ggcf_jax.models.layers.depthwise import Depthwise
from ggcf_jax.models.layers.drop_path import Drop, drop_path, rates
from ggcf_jax.models.layers.extent import Extent, strided
from ggcf_jax.models.layers.layer_norm import layer_norm
from ggcf_jax.models.layers.linear import linear
from ggcf_jax.models.layers.norm import gelu
from ggcf_jax.models.layers.patch import PatchConv
from ggcf_jax.models.layers.remat import Remat, mark_convolution, run
from ggcf_jax.models.layers.repeat import Repeated

HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
SIDES = (7, 3, 3, 3)  # of patches
STEPS = (4, 2, 2, 2)  # between neighbouring ones
STRIDES = (4, 8, 16, 32)
_EPSILON = 1e-5  # of the norms of patches: PyTorch's; that of the others is 1e-6


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network of the family.

    Attributes:
        depths: number of blocks of each stage.
        head_channels: number of channels of each head.
    """

    depths: tuple[int, int, int, int]
    head_channels: int = 64


ARCHITECTURES = {
    'mit_b0': Architecture((2, 2, 2, 2), 32),
    'mit_b1': Architecture((2, 2, 2, 2)),
    'mit_b2': Architecture((3, 4, 6, 3)),
    'mit_b3': Architecture((3, 4, 18, 3)),
    'mit_b4': Architecture((3, 8, 27, 3)),
    'mit_b5': Architecture((3, 6, 40, 3)),
}


class Embedding(nnx.Module):
    """Overlapping patches: a convolution with a stride, and a norm."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        side: int,
        stride: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            in_features: number of channels of the input.
            out_features: number of channels of the output.
            side: height and width of a patch.
            stride: distance between neighbouring patches.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.conv = conv(
            in_features, out_features, side, stride=stride, use_bias=True, dtype=dtype, rngs=rngs
        )
        self.norm = layer_norm(out_features, epsilon=_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) out_features']:
        """Applies convolution and norm.

        Args:
            x: features.
            train: not used: the norm has no statistics.
            extent: extent of x; None where the maps are filled.
        """
        del train
        return self.norm(mark_convolution(convolve(self.conv, x, extent)))


class Attention(nnx.Module):
    """Attention of all positions to a smaller map, in several heads."""

    def __init__(
        self,
        features: int,
        *,
        heads: int,
        reduction: int,
        implementation: Implementation,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            features: number of channels, a multiple of `heads`.
            heads: number of heads.
            reduction: how many times smaller the map of keys and values is, down and across.
            implementation: what computes the attention, see `attend_across`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.heads = heads
        self.scale = (features // heads) ** -0.5
        self.implementation: Implementation = implementation
        self.q = linear(features, features, dtype=dtype, rngs=rngs)
        self.kv = linear(features, 2 * features, dtype=dtype, rngs=rngs)
        self.proj = linear(features, features, dtype=dtype, rngs=rngs)
        self.reduction = reduction
        if reduction > 1:
            self.sr = PatchConv(features, features, reduction, dtype=dtype, rngs=rngs)
            self.norm = layer_norm(features, epsilon=_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, 'b h w c'], *, extent: Extent | None = None
    ) -> Float[Array, 'b h w c']:
        """Attends.

        Args:
            x: features.
            extent: extent of x; None where the maps are filled.
        """
        q = mark_convolution(self.q(x)).reshape(*x.shape[:3], self.heads, -1)
        y = x
        if self.reduction > 1:
            # A map smaller than one patch, which the authors' code refuses, is filled with zeros.
            rows, columns = (_whole(length, self.reduction) for length in x.shape[1:3])
            y = self.norm(mark_convolution(self.sr(x[:, :rows, :columns], extent=extent)))
            if extent is not None:
                sides = (extent.heights, extent.widths)
                extent = Extent(*(jnp.maximum(side // self.reduction, 1) for side in sides))
        kv = mark_convolution(self.kv(y)).reshape(*y.shape[:3], 2, self.heads, -1)
        found = attend_across(
            q,
            kv[:, :, :, 0],
            kv[:, :, :, 1],
            valid=None if extent is None else extent.mask(y.shape[1], y.shape[2]),
            scale=self.scale,
            implementation=self.implementation,
        )
        return mark_convolution(self.proj(found.reshape(x.shape)))


def _whole(length: int, side: int) -> int:
    """Positions of an axis in whole patches; all where there is none."""
    return max(length // side * side, min(length, side))


class Block(nnx.Module):
    """Attention, then a network with a convolution: each behind a norm, with a skip."""

    def __init__(
        self,
        features: int,
        *,
        heads: int,
        reduction: int,
        implementation: Implementation,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            features: number of channels, a multiple of `heads`.
            heads: number of heads.
            reduction: how many times smaller the map of keys and values is, down and across.
            implementation: what computes the attention, see `attend_across`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.norm1 = layer_norm(features, dtype=dtype, rngs=rngs)
        self.attn = Attention(
            features,
            heads=heads,
            reduction=reduction,
            implementation=implementation,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = layer_norm(features, dtype=dtype, rngs=rngs)
        self.fc1 = linear(features, 4 * features, dtype=dtype, rngs=rngs)
        self.dwconv = Depthwise(4 * features, use_bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = linear(4 * features, features, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, 'b h w c'],
        *,
        train: bool,
        drop: Drop | None = None,
        extent: Extent | None = None,
    ) -> Float[Array, 'b h w c']:
        """Adds both branches to the skip connection.

        Args:
            x: features.
            train: not used: the norms have no statistics.
            drop: how often each branch is left out; None: never.
            extent: extent of x; None where the maps are filled.
        """
        del train
        first, second = (None, None) if drop is None else drop.branches(2)
        x = x + drop_path(self.attn(self.norm1(x), extent=extent), first)
        y = mark_convolution(self.fc1(self.norm2(x)))
        y = gelu(mark_convolution(self.dwconv(y, extent=extent)))
        return x + drop_path(mark_convolution(self.fc2(y)), second)


class MiT(nnx.Module):
    """SegFormer's encoder.

    Attributes:
        features: number of channels of each of the four stages.
        stride: output stride in pixels, 32.
        strides: pixels per position of each stage.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        drop_rate: float = 0.0,
        implementation: Implementation = 'auto',
        remat: Remat = 'none',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the network.

        Args:
            architecture: depths and channels.
            drop_rate: how often the last block leaves out each of its branches while training.
            implementation: what computes the attention, see `attend_across`.
            remat: what the backward pass keeps in memory, see `remat.run`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.remat: Remat = remat
        self.features = tuple(heads * architecture.head_channels for heads in HEADS)
        self.stride, self.strides = STRIDES[-1], STRIDES
        sources = (3, *self.features)

        def stage(i: int, drop_rates: tuple[float, ...]) -> nnx.List:
            embedding = Embedding(
                sources[i],
                self.features[i],
                side=SIDES[i],
                stride=STEPS[i],
                dtype=dtype,
                rngs=rngs,
            )
            make = functools.partial(
                Block,
                self.features[i],
                heads=HEADS[i],
                reduction=REDUCTIONS[i],
                implementation=implementation,
                dtype=dtype,
            )
            blocks = Repeated(
                lambda rngs: make(rngs=rngs),
                len(drop_rates),
                remat=remat,
                drop_rates=drop_rates,
                rngs=rngs,
            )
            return nnx.List([embedding, blocks])

        every = rates(drop_rate, architecture.depths)
        self.stages = nnx.List([stage(i, own) for i, own in enumerate(every)])
        self.norms = nnx.List([layer_norm(n, dtype=dtype, rngs=rngs) for n in self.features])

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
            Features at 1/4, 1/8, 1/16 and 1/32 of the image; heights and widths are rounded up.
        """
        keys = [None] * 4 if key is None else [*jax.random.split(key, 4)]
        outputs = []
        for (embedding, blocks), step, norm, own in zip(self.stages, STEPS, self.norms, keys):
            x = run(embedding, x, remat=self.remat, train=train, extent=extent)
            extent = strided(extent, step)
            x = norm(run(blocks, x, remat=self.remat, train=train, key=own, extent=extent))
            outputs.append(x)
        return tuple(outputs)


def build(
    architecture: Architecture,
    model: ConfigDict,
    *,
    remat: Remat,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> MiT:
    """Builds a network from `config.model` (reads `backbone` and `attention`).

    Of `backbone` the stride is 32, and there is no dilation; the activation is always GELU.

    Raises:
        InputError: another stride, or a field that there is not.
    """
    backbone = model.backbone
    unsupported.check(backbone, 'multi_grid', 'first_dilation', activation='gelu')
    unsupported.check_stride(backbone, STRIDES[-1])
    channels = max(1, architecture.head_channels * backbone.width // 64)
    return MiT(
        dataclasses.replace(architecture, head_channels=channels),
        drop_rate=backbone.drop_path,
        implementation=model.attention,
        remat=remat,
        dtype=dtype,
        rngs=rngs,
    )


BACKBONES = {name: functools.partial(build, value) for name, value in ARCHITECTURES.items()}
