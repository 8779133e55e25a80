"""DINOv2: vision transformers on patches of 14 x 14 pixels (Oquab et al., 2023, arXiv:2304.07193).

As dinov2/models/vision_transformer.py and dinov2/hub/backbones.py of facebookresearch/dinov2 at
b8931f7, without registers: a class token, absolute positions of 37 x 37 patches that are
interpolated to the map, layer scale. The four stages are the last four blocks, each behind the norm
of the network, which the authors' segmentation heads read: the linear head the last one, the
multi-scale head all four.

Images whose sides are no multiples of 14 get zeros at the bottom and on the right, so that feature
(i, j) is that of the pixels from (14 i, 14 j) on whatever the size. The authors' notebook
(notebooks/semantic_segmentation.ipynb) pads them on all sides.

`width` is the number of channels of each head: 64 is the published network.
"""

import dataclasses
import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, PRNGKeyArray
from ml_collections import ConfigDict

from ggcf_jax.attention import Full, Registers, attend
from ggcf_jax.attention.implementations import Implementation
from ggcf_jax.models.backbones import unsupported
from ggcf_jax.models.layers.drop_path import Drop, drop_path, rates
from ggcf_jax.models.layers.extent import Extent, strided
from ggcf_jax.models.layers.forms import for_cpu
from ggcf_jax.models.layers.layer_norm import layer_norm
from ggcf_jax.models.layers.layer_scale import LayerScale
from ggcf_jax.models.layers.linear import NORMAL, linear
from ggcf_jax.models.layers.norm import gelu
from ggcf_jax.models.layers.patch import PatchConv
from ggcf_jax.models.layers.positions import interpolated
from ggcf_jax.models.layers.remat import Remat, mark_convolution, run
from ggcf_jax.models.layers.repeat import Repeated

PATCH = 14  # pixels


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network of the family.

    Attributes:
        depth: number of blocks, at least 4.
        heads: number of heads of each block.
        grid: rows, and columns, of patches that there are trained positions for.
    """

    depth: int
    heads: int
    grid: int = 37

    @property
    def depths(self) -> tuple[int, int, int, int]:
        """Number of blocks of each stage."""
        return self.depth - 3, 1, 1, 1


ARCHITECTURES = {
    'dinov2_small': Architecture(12, 6),
    'dinov2_base': Architecture(12, 12),
    'dinov2_large': Architecture(24, 16),
}


class Tokens(NamedTuple):
    """What a block reads and returns.

    Attributes:
        patches: features of the patches.
        image: features of the class token, a map of one position.
    """

    patches: Float[Array, 'b h w c']
    image: Float[Array, 'b 1 1 c']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
    """The same in one array, for CPUs: each layer is one product, and attention one of all tokens.

    Attributes:
        values: features of the patches, row by row, and of the class token behind them.
        size: (height, width) of the map of patches.
    """

    values: Float[Array, 'b 1 n c']
    size: tuple[int, int] = dataclasses.field(metadata={'static': True})

    @classmethod
    def of(cls, tokens: Tokens) -> 'Row':
        """Puts the tokens of each image into a row."""
        b, h, w, c = tokens.patches.shape
        patches = tokens.patches.reshape(b, 1, h * w, c)
        return cls(jnp.concatenate([patches, tokens.image], 2), (h, w))

    @property
    def patches(self) -> Float[Array, 'b h w c']:
        """Features of the patches."""
        b, _, _, c = self.values.shape
        return self.values[:, :, :-1].reshape(b, *self.size, c)

    def mask(self, extent: Extent) -> Bool[Array, 'b 1 n']:
        """Which tokens there are: the patches in the extent, and the class token."""
        patches = extent.mask(*self.size)
        patches = patches.reshape(len(patches), 1, -1)
        return jnp.pad(patches, ((0, 0), (0, 0), (0, 1)), constant_values=True)


_Form = TypeVar('_Form', Tokens, Row)


def _applied(layer: nnx.Linear, x: _Form) -> _Form:
    """Applies a linear layer to all tokens."""
    return jax.tree.map(lambda part: mark_convolution(layer(part)), x)


class Stem(nnx.Module):
    """Patches and class token with their positions."""

    def __init__(self, features: int, *, grid: int, dtype: DTypeLike, rngs: nnx.Rngs):
        """Initialises the parameters.

        Args:
            features: number of channels.
            grid: rows, and columns, of patches that there are positions for.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.conv = PatchConv(3, features, PATCH, dtype=dtype, rngs=rngs)
        tiny = nnx.initializers.normal(1e-6)
        self.cls_token = nnx.Param(tiny(rngs.params(), (1, 1, features), jnp.float32))
        shape = (1, 1 + grid * grid, features)  # the class token's first
        self.pos_embed = nnx.Param(NORMAL(rngs.params(), shape, jnp.float32))
        self.grid = grid

    def __call__(self, x: Float[Array, 'b h w 3'], *, extent: Extent | None = None) -> Tokens:
        """Computes the tokens of the first block.

        Args:
            x: normalised images.
            extent: extent of the images; None where they are filled.
        """
        patches = self.conv(x, extent=extent)
        table = self.pos_embed[...][0]
        positions = interpolated(
            table[1:].reshape(self.grid, self.grid, -1),
            (patches.shape[1], patches.shape[2]),
            strided(extent, PATCH),
        )
        image = self.cls_token[...][:, None] + table[0]
        return Tokens(
            patches + positions.astype(patches.dtype),
            jnp.broadcast_to(image, (x.shape[0], *image.shape[1:])).astype(patches.dtype),
        )


class Attention(nnx.Module):
    """Attention among all tokens, in several heads, scaled by 1 / sqrt(channels of a head)."""

    def __init__(
        self,
        features: int,
        *,
        heads: int,
        implementation: Implementation,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            features: number of channels, a multiple of `heads`.
            heads: number of heads.
            implementation: what computes the attention among patches, see `attend`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.heads = heads
        self.scale = (features // heads) ** -0.5
        self.implementation: Implementation = implementation
        self.qkv = linear(features, 3 * features, dtype=dtype, rngs=rngs)
        self.proj = linear(features, features, dtype=dtype, rngs=rngs)

    def __call__(self, x: _Form, *, extent: Extent | None = None) -> _Form:
        """Attends.

        Args:
            x: tokens; patches outside of the extent are attended to by nobody.
            extent: extent of the patches; None where the maps are filled.
        """
        qkv = jax.tree.map(self._of_heads, _applied(self.qkv, x))
        if isinstance(x, Row):
            valid = None if extent is None else x.mask(extent)
            y = self._attend(*qkv.values, valid=valid)
            return _applied(self.proj, Row(y.reshape(x.values.shape), x.size))
        (q, k, v), (own_q, own_k, own_v) = qkv
        valid = None if extent is None else extent.mask(q.shape[1], q.shape[2])
        # The class token has no place in the map: it is a register to the patches.
        registers = Registers(own_k[:, 0], own_v[:, 0])
        patches = self._attend(q, k, v, valid=valid, registers=registers)
        if valid is not None:  # a weight of zero does not hide what is not finite
            v = jnp.where(valid[..., None, None], v, 0)
        image = self._of_image(Tokens(q, own_q).image, Tokens(k, own_k), Tokens(v, own_v), valid)
        y = Tokens(patches.reshape(x.patches.shape), image.reshape(x.image.shape))
        return _applied(self.proj, y)

    def _of_heads(self, x: jax.Array) -> Float[Array, '3 b h w heads c']:
        """Queries, keys and values."""
        return jnp.moveaxis(x.reshape(*x.shape[:3], 3, self.heads, -1), 3, 0)

    def _attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *,
        valid: jax.Array | None,
        registers: Registers | None = None,
    ) -> jax.Array:
        return attend(
            q,
            k,
            v,
            Full(),
            valid=valid,
            registers=registers,
            scale=self.scale,
            implementation=self.implementation,
        )

    def _of_image(
        self, q: jax.Array, k: Tokens, v: Tokens, valid: jax.Array | None
    ) -> Float[Array, 'b 1 1 heads c']:
        """Attention of the class token to all tokens."""
        wide = jnp.promote_types(q.dtype, jnp.float32)
        q, own = q[:, 0, 0], jnp.einsum('bijnc,bijnc->bn', q, k.image, preferred_element_type=wide)
        scores = jnp.einsum('bnc,bhwnc->bnhw', q, k.patches, preferred_element_type=wide)
        if valid is not None:
            scores = jnp.where(valid[:, None], scores, -jnp.inf)
        top = jax.lax.stop_gradient(jnp.maximum(scores.max((2, 3)), own))
        weights = jnp.exp((scores - top[..., None, None]) * self.scale)
        own = jnp.exp((own - top) * self.scale)
        total = weights.sum((2, 3)) + own
        y = jnp.einsum(
            'bnhw,bhwnc->bnc', weights.astype(q.dtype), v.patches, preferred_element_type=wide
        )
        y = (y + own[..., None] * v.image[:, 0, 0]) / total[..., None]
        return y[:, None, None].astype(q.dtype)


class Block(nnx.Module):
    """Attention, then two linear layers with a GELU between: each behind a norm, with a skip."""

    def __init__(
        self,
        features: int,
        *,
        heads: int,
        implementation: Implementation = 'auto',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            features: number of channels, a multiple of `heads`.
            heads: number of heads.
            implementation: what computes the attention among patches, see `attend`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        norm = functools.partial(layer_norm, features, dtype=dtype, rngs=rngs)
        self.norm1 = norm()
        self.attn = Attention(
            features, heads=heads, implementation=implementation, dtype=dtype, rngs=rngs
        )
        self.ls1 = LayerScale(features, 1.0)
        self.norm2 = norm()
        self.fc1 = linear(features, 4 * features, dtype=dtype, rngs=rngs)
        self.fc2 = linear(4 * features, features, dtype=dtype, rngs=rngs)
        self.ls2 = LayerScale(features, 1.0)

    def __call__(
        self, x: _Form, *, train: bool, drop: Drop | None = None, extent: Extent | None = None
    ) -> _Form:
        """Adds both branches to the skip connection.

        Args:
            x: tokens.
            train: not used: the norms have no statistics.
            drop: how often each branch is left out; None: never.
            extent: extent of the patches; None where the maps are filled.
        """
        del train
        first, second = (None, None) if drop is None else drop.branches(2)
        y = self.attn(jax.tree.map(self.norm1, x), extent=extent)
        x = _added(x, jax.tree.map(self.ls1, y), first)
        y = _applied(self.fc1, jax.tree.map(self.norm2, x))
        y = _applied(self.fc2, jax.tree.map(gelu, y))
        return _added(x, jax.tree.map(self.ls2, y), second)


def _added(x: _Form, y: _Form, drop: Drop | None) -> _Form:
    """Adds the output of a branch, unless it is left out."""
    return jax.tree.map(lambda x, y: x + drop_path(y, drop), x, y)


class DINOv2(nnx.Module):
    """DINOv2's vision transformer.

    Attributes:
        features: number of channels of each of the four stages, all equal.
        stride: output stride in pixels, 14.
        strides: pixels per position of each stage, 14.
        first: pixel that the first feature of each stage is centred on, 6.5.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        width: int,
        drop_rate: float = 0.0,
        implementation: Implementation = 'auto',
        remat: Remat = 'none',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the network.

        Args:
            architecture: depth, heads and positions.
            width: number of channels of each head.
            drop_rate: how often the last block leaves out each of its branches while training.
            implementation: what computes the attention among patches, see `attend`.
            remat: what the backward pass keeps in memory, see `remat.run`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        channels = architecture.heads * width
        self.remat: Remat = remat
        self.features = (channels,) * 4
        self.stem = Stem(channels, grid=architecture.grid, dtype=dtype, rngs=rngs)
        self.stride, self.strides = PATCH, (PATCH,) * 4
        self.first = (self.stem.conv.centre,) * 4
        make = functools.partial(
            Block,
            channels,
            heads=architecture.heads,
            implementation=implementation,
            dtype=dtype,
        )
        depths = architecture.depths
        # One list, in which blocks are counted as in published files, whatever the depth.
        blocks = [
            Repeated(
                lambda rngs: make(rngs=rngs), depth, remat=remat, drop_rates=drop_rates, rngs=rngs
            )
            for depth, drop_rates in zip(depths, rates(drop_rate, depths))
        ]
        self.stages = nnx.List([nnx.List(blocks)])
        self.norm = layer_norm(channels, dtype=dtype, rngs=rngs)

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
            train: whether branches are left out.
            key: random key of the branches that are left out, needed when training with a rate
                above 0.
            extent: extent of the images; None where they are filled.

        Returns:
            Features of the patches behind the last four blocks, at 1/14 of the image; heights and
            widths are rounded up.
        """
        keys = [None] * 4 if key is None else [*jax.random.split(key, 4)]
        separate = self.stem(x, extent=extent)
        tokens = Row.of(separate) if for_cpu() else separate
        extent = strided(extent, PATCH)
        outputs = []
        for blocks, own in zip(self.stages[0], keys):
            tokens = run(blocks, tokens, remat=self.remat, train=train, key=own, extent=extent)
            outputs.append(self.norm(tokens.patches))
        return tuple(outputs)


def build(
    architecture: Architecture,
    model: ConfigDict,
    *,
    remat: Remat,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> DINOv2:
    """Builds a network from `config.model` (reads `backbone` and `attention`).

    Of `backbone` the stride is 14, and there is no dilation; the activation is always GELU.

    Raises:
        InputError: another stride, or a field that there is not.
    """
    backbone = model.backbone
    unsupported.check(backbone, 'multi_grid', 'first_dilation', activation='gelu')
    unsupported.check_stride(backbone, PATCH)
    return DINOv2(
        architecture,
        width=backbone.width,
        drop_rate=backbone.drop_path,
        implementation=model.attention,
        remat=remat,
        dtype=dtype,
        rngs=rngs,
    )


BACKBONES = {name: functools.partial(build, value) for name, value in ARCHITECTURES.items()}
