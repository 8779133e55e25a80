"""Swin Transformer (Liu et al., 2021, arXiv:2103.14030), as its authors use it for segmentation.

Windows are the graph BLOCK of the attention library, every other one shifted by half a window. As
in mmsegmentation (mmseg/models/backbones/swin.py of github.com/open-mmlab/mmsegmentation at
0b50600), which the authors' code for dense tasks became:

- a norm stands behind each stage;
- maps are completed to whole windows by zeros, behind the norm, and these positions are keys as any
  other: their keys and values are the biases of the layer;
- windows are shifted on maps of one window, too, which the authors' classifier leaves alone.

What a cyclic shift brings together is kept apart by -100 on the scores there, which leaves a weight
of at most 4e-44 times the exponential of a difference of scores, and altogether here.

Below output stride 32 stages are dilated: what merges patches keeps its taps but not its stride,
and windows are those of every second or fourth position, so that weights keep their meaning. (mmseg
can leave out the stride alone, with windows of half the reach.)

`width` scales every layer: 64 is the published network.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, PRNGKeyArray
from ml_collections import ConfigDict

from ggcf_jax.attention import Block, attend
from ggcf_jax.errors import InputError
from ggcf_jax.models.backbones import dilation as dilation_lib
from ggcf_jax.models.backbones import unsupported
from ggcf_jax.models.layers.drop_path import Drop, drop_path, rates
from ggcf_jax.models.layers.extent import Extent, strided, zero_outside
from ggcf_jax.models.layers.layer_norm import layer_norm
from ggcf_jax.models.layers.linear import NORMAL, linear
from ggcf_jax.models.layers.norm import gelu
from ggcf_jax.models.layers.patch import PatchEmbedding
from ggcf_jax.models.layers.remat import Remat, mark_convolution, run
from ggcf_jax.models.layers.repeat import Repeated

WINDOW = 7
EPSILON = 1e-5
_OFFSETS = 2 * WINDOW - 1  # between positions of a window, along one axis


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network of the family.

    Attributes:
        depths: number of blocks of each stage, even.
        channels: number of channels of the first stage, which double from stage to stage.
        heads: number of heads of the first stage, which double, too.
    """

    depths: tuple[int, int, int, int]
    channels: int
    heads: int


ARCHITECTURES = {
    'swin_tiny': Architecture((2, 2, 6, 2), 96, 3),
    'swin_small': Architecture((2, 2, 18, 2), 96, 3),
}


class WindowAttention(nnx.Module):
    """Self-attention inside of windows, with a bias by relative position."""

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        shift: int,
        dilation: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            features: number of channels.
            heads: number of heads, which share them.
            shift: row and column at which windows begin.
            dilation: distance between neighbouring positions of a window.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.qkv = linear(features, 3 * features, dtype=dtype, rngs=rngs)
        self.project = linear(features, features, dtype=dtype, rngs=rngs)
        self.table = nnx.Param(NORMAL(rngs.params(), (_OFFSETS**2, heads), jnp.float32))
        self.heads = heads
        self.shift = shift
        self.dilation = dilation

    def __call__(
        self, x: Float[Array, 'b h w c'], *, extent: Extent | None = None
    ) -> Float[Array, 'b h w c']:
        """Attends.

        Args:
            x: features, behind their norm.
            extent: extent of x; None where the maps are filled.
        """
        b, h, w, c = x.shape
        d = self.dilation
        rows, columns = _windows(h, d, _sharing()), _windows(w, d)
        x = zero_outside(x, extent)
        x = jnp.pad(x, ((0, 0), (0, rows * d - h), (0, columns * d - w), (0, 0)))
        # One map for each residue class of rows and columns.
        x = x.reshape(b, rows, d, columns, d, c).transpose(0, 2, 4, 1, 3, 5)
        x = x.reshape(b * d * d, rows, columns, c)
        q, k, v = jnp.split(mark_convolution(self.qkv(x)), 3, axis=-1)
        q, k, v = (y.reshape(*y.shape[:3], self.heads, c // self.heads) for y in (q, k, v))
        y = attend(
            q,
            k,
            v,
            Block(WINDOW, self.shift),
            bias=self.table[...].T.reshape(self.heads, _OFFSETS, _OFFSETS),
            valid=self._valid(b, (h, w), (rows, columns), extent),
            scale=(c // self.heads) ** -0.5,
        )
        y = mark_convolution(self.project(y.reshape(-1, rows, columns, c)))
        y = y.reshape(b, d, d, rows, columns, c).transpose(0, 3, 1, 4, 2, 5)
        return y.reshape(b, rows * d, columns * d, c)[:, :h, :w]

    def _valid(
        self, b: int, size: tuple[int, int], padded: tuple[int, int], extent: Extent | None
    ) -> Bool[Array, 'maps rows columns'] | None:
        """The positions of whole windows of each map: a window that is shifted reaches further.

        Args:
            b: number of images.
            size: height and width of their maps.
            padded: height and width of the map of a residue class.
            extent: extent of the maps; None where they are filled.
        """
        if not self.shift:
            return None  # windows that no image reaches into have no influence
        d, lengths = self.dilation, size if extent is None else (extent.heights, extent.widths)
        inside = []
        for length, most in zip(lengths, padded):
            # Of each map and residue class: [b or 1, d].
            own = -(-(jnp.asarray(length).reshape(-1, 1) - jnp.arange(d)) // d)
            whole = -(-own // WINDOW) * WINDOW
            inside.append(jnp.arange(most) < whole[..., None])
        if extent is None and size == (padded[0] * d, padded[1] * d):
            return None
        rows, columns = inside
        found = rows[:, :, None, :, None] & columns[:, None, :, None, :]
        return jnp.broadcast_to(found, (b, d, d, *padded)).reshape(b * d * d, *padded)


def _windows(length: int, dilation: int, devices: int = 1) -> int:
    """Number of positions of each residue class of an axis, completed to whole windows.

    Args:
        length: number of positions of the axis.
        dilation: number of classes.
        devices: number of devices that share them: each has whole windows.
    """
    unit = WINDOW * devices
    return -(-length // (dilation * unit)) * unit


def _sharing() -> int:
    """Number of devices that share the rows of a map."""
    return jax.sharding.get_abstract_mesh().shape.get('space', 1)


class Layer(nnx.Module):
    """Attention and two linear layers with a GELU between, each behind a norm and around a skip."""

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        shift: int,
        dilation: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers; arguments as of `WindowAttention`."""
        norm = functools.partial(layer_norm, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.norm1 = norm(features)
        self.attention = WindowAttention(
            features, heads, shift=shift, dilation=dilation, dtype=dtype, rngs=rngs
        )
        self.norm2 = norm(features)
        self.expand = linear(features, 4 * features, dtype=dtype, rngs=rngs)
        self.reduce = linear(4 * features, features, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, 'b h w c'], *, drop: Drop | None, extent: Extent | None
    ) -> Float[Array, 'b h w c']:
        """Adds both branches to the skip connections.

        Args:
            x: features.
            drop: how often a branch is left out; None: never.
            extent: extent of x; None where the maps are filled.
        """
        first, second = (None, None) if drop is None else drop.branches(2)
        x += drop_path(self.attention(self.norm1(x), extent=extent), first)
        y = gelu(mark_convolution(self.expand(self.norm2(x))))
        return x + drop_path(mark_convolution(self.reduce(y)), second)


class Pair(nnx.Module):
    """A layer whose windows begin at the corner, and one whose windows are shifted by half of them.

    The block of `Repeated`: the others of a stage are the same.
    """

    def __init__(
        self, features: int, heads: int, *, dilation: int, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        """Initialises the layers; arguments as of `WindowAttention`."""
        layer = functools.partial(Layer, features, heads, dilation=dilation, dtype=dtype, rngs=rngs)
        self.regular = layer(shift=0)
        self.shifted = layer(shift=WINDOW // 2)

    def __call__(
        self,
        x: Float[Array, 'b h w c'],
        *,
        train: bool,
        drop: Drop | None = None,
        extent: Extent | None = None,
    ) -> Float[Array, 'b h w c']:
        """Applies both layers.

        Args:
            x: features.
            train: not used: norms have no statistics.
            drop: how often the branches of each of the two are left out; None: never.
            extent: extent of x; None where the maps are filled.
        """
        del train
        first, second = (None, None) if drop is None else drop.split()
        x = self.regular(x, drop=first, extent=extent)
        return self.shifted(x, drop=second, extent=extent)


class PatchMerging(nnx.Module):
    """Joins 2x2 positions, their norm, and a linear layer to twice the channels.

    Attributes:
        stride: 2, or 1 where the positions are those of a dilated window.
        centre: position that output 0 is centred on, of those of the input.
    """

    def __init__(self, features: int, *, dilation: int | None, dtype: DTypeLike, rngs: nnx.Rngs):
        """Initialises the layers.

        Args:
            features: number of channels of the input.
            dilation: None: the resolution is halved. A number: the distance of the positions that
                are joined; zeros are added as by `layers.patch`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.norm = layer_norm(4 * features, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.reduction = linear(4 * features, 2 * features, use_bias=False, dtype=dtype, rngs=rngs)
        self.dilation = dilation
        self.stride = 2 if dilation is None else 1
        self.before = 0 if dilation is None else dilation // 2
        self.centre = (dilation or 1) / 2 - self.before

    def __call__(
        self, x: Float[Array, 'b h w c'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) 2*c']:
        """Joins positions.

        Args:
            x: features.
            train: not used: the norm has no statistics.
            extent: extent of x; None where the maps are filled.
        """
        del train
        apart, step = self.dilation or 1, self.stride
        x = zero_outside(x, extent)
        sizes = [-(-length // step) * step for length in x.shape[1:3]]
        after = [
            size - length + (0 if self.dilation is None else apart - self.before)
            for size, length in zip(sizes, x.shape[1:3])
        ]
        x = jnp.pad(x, ((0, 0), (self.before, after[0]), (self.before, after[1]), (0, 0)))
        # As the authors do, rows before columns.
        places = itertools.product((0, apart), (0, apart))
        parts = [x[:, i : i + sizes[0] : step, j : j + sizes[1] : step] for j, i in places]
        return mark_convolution(self.reduction(self.norm(jnp.concatenate(parts, axis=-1))))


class Swin(nnx.Module):
    """Swin Transformer without classifier.

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
        heads: int,
        drop_rate: float = 0.0,
        remat: Remat = 'none',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the network.

        Args:
            stages: strides and dilations, see `dilation.plan` with first_dilation='half'; an even
                number of layers each.
            channels: number of channels of the first stage.
            heads: number of heads of the first stage.
            drop_rate: how often the last layer leaves out a branch while training.
            remat: what the backward pass keeps in memory, see `remat.run`; a block is two layers.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.remat: Remat = remat
        self.features = tuple(channels * 2**i for i in range(4))
        self.stem = PatchEmbedding(channels, 4, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        drop_rates = rates(drop_rate, [len(stage.dilations) for stage in stages])
        self.strides = dilation_lib.strides(stages)
        centre = self.stem.conv.centre
        lists, first = [], []
        for i, stage in enumerate(stages):
            blocks: list[PatchMerging | Repeated] = []
            if i > 0:
                merging = PatchMerging(
                    self.features[i - 1],
                    dilation=stage.first if stage.stride == 1 else None,
                    dtype=dtype,
                    rngs=rngs,
                )
                centre += merging.centre * self.strides[i - 1]
                blocks.append(merging)
            first.append(centre)
            pair = functools.partial(
                Pair, self.features[i], heads * 2**i, dilation=stage.dilations[0], dtype=dtype
            )
            equal = lambda rngs, pair=pair: pair(rngs=rngs)  # noqa: E731
            own = [*zip(drop_rates[i][::2], drop_rates[i][1::2], strict=True)]
            repeated = functools.partial(Repeated, remat=remat, drop_rates=own, rngs=rngs)
            blocks.append(repeated(equal, len(own)))
            lists.append(nnx.List(blocks))
        self.stages = nnx.List(lists)
        norm = functools.partial(layer_norm, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.norms = nnx.List([norm(n) for n in self.features])
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
) -> Swin:
    """Builds a network from `config.model` (reads `backbone`).

    There is no multi-grid, dilation is as above, and the activation is always GELU.

    Raises:
        InputError: as `dilation.from_config`, or a width whose channels the heads cannot share.
    """
    backbone = model.backbone
    unsupported.check(backbone, 'multi_grid', 'first_dilation', activation='gelu')
    channels = architecture.channels * backbone.width // 64
    if not channels or channels % architecture.heads:
        raise InputError(
            f'config.model.backbone.width={backbone.width} gives {backbone.name} {channels} '
            f'channels, which its {architecture.heads} heads cannot share; choose a multiple of 2'
        )
    return Swin(
        dilation_lib.from_config(backbone, architecture.depths, first_dilation='half'),
        channels=channels,
        heads=architecture.heads,
        drop_rate=backbone.drop_path,
        remat=remat,
        dtype=dtype,
        rngs=rngs,
    )


BACKBONES = {name: functools.partial(build, value) for name, value in ARCHITECTURES.items()}
