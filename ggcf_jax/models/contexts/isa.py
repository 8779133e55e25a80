"""Interlaced Sparse Self-Attention (Huang et al., 2019, arXiv:1907.12273): GRID, then BLOCK."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int
from ml_collections import ConfigDict

from ggcf_jax.attention import Block, Graph, Grid, attend, attention_weights
from ggcf_jax.attention.implementations import Implementation
from ggcf_jax.errors import InputError
from ggcf_jax.models.contexts import implementation as implementations
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.layers.conv import TORCH_UNIFORM, ConvNorm, conv
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.norm import Activation, Norm


class SelfAttention(nnx.Module):
    """Attention on one graph, scaled by 1 / sqrt(key channels), then a 1x1 convolution with norm.

    Attributes:
        graph: graph of the attention.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        channels: int,
        key_channels: int,
        activation: Activation,
        norm: Norm,
        implementation: Implementation = 'auto',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            graph: graph of the attention.
            channels: number of channels of input, values and output.
            key_channels: number of channels of queries and keys.
            activation: activation behind every convolution but that of the values.
            norm: norm behind the same ones.
            implementation: what computes the attention, see `attend`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        layer = functools.partial(
            ConvNorm, activation=activation, norm=norm, dtype=dtype, rngs=rngs
        )
        self.graph = graph
        self.implementation = implementation
        self.scale = key_channels**-0.5
        self.query, self.key = (
            nnx.List([layer(channels, key_channels, 1), layer(key_channels, key_channels, 1)])
            for _ in range(2)
        )
        # Without a bias: weights that sum to one would pass it on, for the norm to take away.
        self.value = conv(channels, channels, 1, kernel_init=TORCH_UNIFORM, dtype=dtype, rngs=rngs)
        self.project = layer(channels, channels, 1)

    def __call__(
        self, x: Float[Array, 'b h w c'], options: dict[str, Any], *, train: bool
    ) -> Float[Array, 'b h w c']:
        """Attends.

        Args:
            x: features.
            options: further named arguments of `attend`.
            train: whether batch statistics are used and updated.
        """
        q, k = self._queries_and_keys(x, train=train)
        v = self.value(x)[:, :, :, None]
        y = attend(
            q, k, v, self.graph, scale=self.scale, implementation=self.implementation, **options
        )
        return self.project(y[:, :, :, 0], train=train)

    def weights(
        self, x: Float[Array, 'b h w c'], positions: Int[Array, 'm 2'], options: dict[str, Any]
    ) -> Float[Array, 'b m 1 h w']:
        """Computes where single queries look.

        Args:
            x: features.
            positions: row and column of each query.
            options: further named arguments of `attention_weights`.
        """
        q, k = self._queries_and_keys(x, train=False)
        return attention_weights(q, k, self.graph, positions, scale=self.scale, **options)

    def _queries_and_keys(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Queries and keys, [b, h, w, 1, key_channels] each."""
        found = []
        for layers in (self.query, self.key):
            y = x
            for layer in layers:
                y = layer(y, train=train)
            found.append(y[:, :, :, None])
        return found


class ISA(nnx.Module):
    """3x3 convolution x, attention of long and then of short range, 1x1 over concat(x, that).

    lib/models/modules/isa_block.py and nets/isanet.py of openseg.pytorch, by the authors. With a
    partition P, the long range attends among all positions that have the same place in their P x P
    blocks, which is GRID_P, and the short range inside the blocks. Two steps reach every position.

    Where sides are no multiples of P, the authors' code pads the map with zeros on all sides, and
    the padding is attended to and takes part in the norms. Here blocks begin at the first row and
    column and are cut at the border of the map, nothing is padded, as in the paper's equations;
    maps of 128 x 256 and 64 x 128 are the same in both.

    Attributes:
        features: number of channels of the output.
        heads: graph of each step.
        pruning: rule of each step, see `pruning_rules.pruned`.
    """

    def __init__(
        self,
        in_features: int,
        *,
        channels: int,
        key_channels: int,
        partition: tuple[int, int],
        activation: Activation,
        norm: Norm = 'batch_norm',
        implementation: Implementation = 'auto',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            in_features: number of channels of the backbone's features.
            channels: number of channels of x, of the attention and of the output.
            key_channels: number of channels of queries and keys.
            partition: P, height and width of a block in positions.
            activation: activation behind every convolution but that of the values.
            norm: norm behind the same ones.
            implementation: what computes the attention, see `attend`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        layer = functools.partial(
            ConvNorm, activation=activation, norm=norm, dtype=dtype, rngs=rngs
        )
        self.features = channels
        self.heads: tuple[Graph, ...] = (Grid(partition), Block(partition))
        self.pruning: tuple[pruning_rules.Rule | None, ...] = (None, None)
        self.reduce = layer(in_features, channels, 3)
        self.steps = nnx.List(
            [
                SelfAttention(
                    graph,
                    channels=channels,
                    key_channels=key_channels,
                    activation=activation,
                    norm=norm,
                    implementation=implementation,
                    dtype=dtype,
                    rngs=rngs,
                )
                for graph in self.heads
            ]
        )
        self.fuse = layer(2 * channels, channels, 1)

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b h w features']:
        """Applies both steps and joins them with their input.

        Args:
            x: features of the backbone.
            train: whether batch statistics are used and updated.
            extent: extent of x, outside of which nothing is attended to; None where the maps are
                filled.
        """
        x = y = self.reduce(x, train=train, extent=extent)
        for i, step in enumerate(self.steps):
            y = step(y, self._options(i, y, extent), train=train)
        return self.fuse(jnp.concatenate([x, y], axis=-1), train=train)

    def attention(
        self,
        x: Float[Array, 'b h w in_features'],
        positions: Int[Array, 'm 2'],
        *,
        extent: Extent | None = None,
    ) -> Float[Array, 'b m 2 h w']:
        """Computes where single queries look in each step.

        Args:
            x: features of the backbone.
            positions: row and column of each query.
            extent: extent of x, inside which the queries lie; None where the maps are filled.

        Returns:
            float32, one in sum over the map; zero for pruned neighbours and outside of the extent.
        """
        x = self.reduce(x, train=False, extent=extent)
        rows = []
        for i, step in enumerate(self.steps):
            options = self._options(i, x, extent)
            rows.append(step.weights(x, positions, options))
            if i + 1 < len(self.steps):
                x = step(x, options, train=False)
        return jnp.concatenate(rows, axis=2)

    def _options(self, step: int, x: jax.Array, extent: Extent | None) -> dict[str, Any]:
        """Named arguments of the attention of a step on x of an extent."""
        options = pruning_rules.options(self.pruning[step], step)
        if extent is not None:
            options['valid'] = extent.mask(x.shape[1], x.shape[2])
        return options


def build(model: ConfigDict, in_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> ISA:
    """Builds the module from `config.model` (reads `activation`, `norm` and `isa`)."""
    partition = tuple(model.isa.partition)
    if len(partition) != 2 or min(partition) < 1:
        raise InputError(
            f'config.model.isa.partition={partition} must be (height, width) of a block in '
            'positions, at least 1 each'
        )
    return ISA(
        in_features,
        channels=model.isa.channels,
        key_channels=model.isa.key_channels,
        partition=partition,
        activation=model.activation,
        norm=model.norm,
        implementation=implementations.check(
            model.attention,
            (Grid(partition), Block(partition)),
            dtype=dtype,
            key_channels=model.isa.key_channels,
            value_channels=model.isa.channels,
        ),
        dtype=dtype,
        rngs=rngs,
    )


CONTEXTS = {'isa': build}
