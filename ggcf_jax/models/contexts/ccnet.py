"""Recurrent criss-cross attention of CCNet (Huang et al., 2019, arXiv:1811.11721)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int
from ml_collections import ConfigDict

from ggcf_jax.attention import Cross, Graph, attend, attention_weights
from ggcf_jax.attention.implementations import Implementation
from ggcf_jax.models.contexts import implementation as implementations
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.layers.conv import TORCH_UNIFORM, ConvNorm, conv
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.norm import Activation, Norm


class CCNet(nnx.Module):
    """3x3 convolution, steps of criss-cross attention, 3x3, then a 3x3 over concat(input, that).

        x <- x + gamma sum_j softmax_j(theta(x_i) . phi(x_j)) g(x_j)

    over the row and the column of i, itself once. All steps share their parameters; two reach every
    position. gamma starts at zero, so that the attention starts as the identity. networks/ccnet.py
    (RCCAModule) and cc_attention/functions.py of speedinghzl/CCNet, by the authors, and
    decode_heads/cc_head.py of mmsegmentation, which have the same layers.

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
        reduction: int,
        recurrence: int,
        activation: Activation,
        norm: Norm = 'batch_norm',
        implementation: Implementation = 'auto',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            in_features: number of channels of the backbone's features.
            channels: number of channels of x, g and of the output.
            reduction: `channels` over the number of channels of theta and phi.
            recurrence: number of steps.
            activation: activation behind every 3x3 convolution.
            norm: norm behind every 3x3 convolution.
            implementation: what computes the attention, see `attend`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        layer = functools.partial(
            ConvNorm, activation=activation, norm=norm, dtype=dtype, rngs=rngs
        )
        embed = functools.partial(
            conv,
            channels,
            kernel=1,
            use_bias=True,
            kernel_init=TORCH_UNIFORM,
            dtype=dtype,
            rngs=rngs,
        )
        inner = max(channels // reduction, 1)
        self.features = channels
        self.implementation = implementation
        self.heads: tuple[Graph, ...] = (Cross(),) * recurrence
        self.pruning: tuple[pruning_rules.Rule | None, ...] = (None,) * recurrence
        self.reduce = layer(in_features, channels, 3)
        self.theta, self.phi, self.g = embed(inner), embed(inner), embed(channels)
        self.gamma = nnx.Param(jnp.zeros(1))
        self.refine = layer(channels, channels, 3)
        self.fuse = layer(in_features + channels, channels, 3)

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b h w features']:
        """Applies attention and convolutions.

        Args:
            x: features of the backbone.
            train: whether batch statistics are used and updated.
            extent: extent of x, outside of which nothing is attended to; None where the maps are
                filled.
        """
        y = self.reduce(x, train=train, extent=extent)
        for i in range(len(self.heads)):
            y = self._step(y, i, extent)
        y = self.refine(y, train=train, extent=extent)
        return self.fuse(jnp.concatenate([x, y], axis=-1), train=train, extent=extent)

    def attention(
        self,
        x: Float[Array, 'b h w in_features'],
        positions: Int[Array, 'm 2'],
        *,
        extent: Extent | None = None,
    ) -> Float[Array, 'b m heads h w']:
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
        for i, graph in enumerate(self.heads):
            q, k = self._queries_and_keys(x)
            options = self._options(i, x, extent)
            rows.append(attention_weights(q, k, graph, positions, **options))
            if i + 1 < len(self.heads):
                x = self._step(x, i, extent)
        return jnp.concatenate(rows, axis=2)

    def _step(self, x: jax.Array, i: int, extent: Extent | None) -> jax.Array:
        """x after the i-th step."""
        v = self.g(x)[:, :, :, None]
        q, k = self._queries_and_keys(x)
        options = self._options(i, x, extent)
        y = attend(q, k, v, self.heads[i], implementation=self.implementation, **options)
        return x + self.gamma[...].astype(x.dtype) * y[:, :, :, 0]

    def _queries_and_keys(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """theta and phi of x, [b, h, w, 1, c] each."""
        return self.theta(x)[:, :, :, None], self.phi(x)[:, :, :, None]

    def _options(self, step: int, x: jax.Array, extent: Extent | None) -> dict[str, Any]:
        """Named arguments of the attention of a step on x of an extent."""
        options = pruning_rules.options(self.pruning[step], step)
        if extent is not None:
            options['valid'] = extent.mask(x.shape[1], x.shape[2])
        return options


def build(model: ConfigDict, in_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> CCNet:
    """Builds the module from `config.model` (reads `activation`, `norm` and `ccnet`)."""
    return CCNet(
        in_features,
        channels=model.ccnet.channels,
        reduction=model.ccnet.reduction,
        recurrence=model.ccnet.recurrence,
        activation=model.activation,
        norm=model.norm,
        implementation=implementations.check(
            model.attention,
            (Cross(),),
            dtype=dtype,
            key_channels=max(model.ccnet.channels // model.ccnet.reduction, 1),
            value_channels=model.ccnet.channels,
        ),
        dtype=dtype,
        rngs=rngs,
    )


CONTEXTS = {'ccnet': build}
