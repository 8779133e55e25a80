"""Non-local block (Wang et al., 2018) between convolutions, as mmsegmentation has it.

The FULL head of `ggcf` is the paper's own form of the same attention.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int
from ml_collections import ConfigDict

from ggcf_jax.attention import Full, Graph, attend, attention_weights
from ggcf_jax.attention.implementations import Implementation
from ggcf_jax.models.contexts import implementation as implementations
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.layers.conv import ConvNorm, conv
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.norm import Activation, Norm


class NonLocal(nnx.Module):
    """3x3 convolution, non-local block, 3x3 convolution, then a 3x3 over concat(input, that).

    decode_heads/nl_head.py and fcn_head.py of mmsegmentation, with the block of mmcv,
    cnn/bricks/non_local.py, in its mode 'embedded_gaussian':

        z_i = x_i + norm(W sum_j softmax_j(theta(x_i) . phi(x_j) / sqrt(c)) g(x_j))

    where c is the number of channels of theta and phi. The norm's scale starts at zero, so that the
    block starts as the identity.

    Attributes:
        features: number of channels of the output.
        heads: the graph of the one head.
        pruning: rule of the head, see `pruning_rules.pruned`.
    """

    heads: tuple[Graph, ...] = (Full(),)

    def __init__(
        self,
        in_features: int,
        *,
        channels: int,
        reduction: int,
        use_scale: bool,
        concat_input: bool,
        activation: Activation,
        norm: Norm = 'batch_norm',
        implementation: Implementation = 'auto',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            in_features: number of channels of the backbone's features.
            channels: number of channels of x, z and of the output.
            reduction: `channels` over the number of channels of theta, phi and g.
            use_scale: whether affinities are divided by sqrt(c).
            concat_input: whether the backbone's features are joined at the end.
            activation: activation behind every 3x3 convolution.
            norm: norm behind every 3x3 convolution and W.
            implementation: what computes the attention, see `attend`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        layer = functools.partial(
            ConvNorm, activation=activation, norm=norm, dtype=dtype, rngs=rngs
        )
        inner = max(channels // reduction, 1)
        embed = functools.partial(
            conv,
            channels,
            inner,
            1,
            use_bias=True,
            kernel_init=nnx.initializers.normal(0.01),
            dtype=dtype,
            rngs=rngs,
        )
        self.features = channels
        self.scale = inner**-0.5 if use_scale else 1.0
        self.implementation = implementation
        self.pruning: tuple[pruning_rules.Rule | None, ...] = (None,)
        self.reduce = layer(in_features, channels, 3)
        self.theta, self.phi, self.g = embed(), embed(), embed()
        self.w = ConvNorm(
            inner,
            channels,
            1,
            'identity',
            norm=norm,
            scale_init=nnx.initializers.zeros_init(),
            dtype=dtype,
            rngs=rngs,
        )
        self.refine = layer(channels, channels, 3)
        self.fuse = layer(in_features + channels, channels, 3) if concat_input else None

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b h w features']:
        """Applies block and convolutions.

        Args:
            x: features of the backbone.
            train: whether batch statistics are used and updated.
            extent: extent of x, outside of which nothing is attended to; None where the maps are
                filled.
        """
        reduced = self.reduce(x, train=train, extent=extent)
        v = self.g(reduced)[:, :, :, None]
        q, k = self._queries_and_keys(reduced)
        options = self._options(q, extent)
        y = attend(q, k, v, self.heads[0], implementation=self.implementation, **options)
        y = reduced + self.w(y[:, :, :, 0], train=train)
        y = self.refine(y, train=train, extent=extent)
        if self.fuse is None:
            return y
        return self.fuse(jnp.concatenate([x, y], -1), train=train, extent=extent)

    def attention(
        self,
        x: Float[Array, 'b h w in_features'],
        positions: Int[Array, 'm 2'],
        *,
        extent: Extent | None = None,
    ) -> Float[Array, 'b m 1 h w']:
        """Computes where single queries look.

        Args:
            x: features of the backbone.
            positions: row and column of each query.
            extent: extent of x, inside which the queries lie; None where the maps are filled.

        Returns:
            float32, one in sum over the map; zero for pruned neighbours and outside of the extent.
        """
        q, k = self._queries_and_keys(self.reduce(x, train=False, extent=extent))
        return attention_weights(q, k, self.heads[0], positions, **self._options(q, extent))

    def _queries_and_keys(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """theta and phi of the reduced x, [b, h, w, 1, c] each."""
        return self.theta(x)[:, :, :, None], self.phi(x)[:, :, :, None]

    def _options(self, q: jax.Array, extent: Extent | None) -> dict[str, Any]:
        """Named arguments of `attend` for queries of an extent."""
        options = {'scale': self.scale, **pruning_rules.options(self.pruning[0], 0)}
        if extent is not None:
            options['valid'] = extent.mask(q.shape[1], q.shape[2])
        return options


def build(model: ConfigDict, in_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> NonLocal:
    """Builds the module from `config.model` (reads `activation`, `norm` and `non_local`)."""
    inner = max(model.non_local.channels // model.non_local.reduction, 1)
    return NonLocal(
        in_features,
        channels=model.non_local.channels,
        reduction=model.non_local.reduction,
        use_scale=model.non_local.use_scale,
        concat_input=model.non_local.concat_input,
        activation=model.activation,
        norm=model.norm,
        implementation=implementations.check(
            model.attention, NonLocal.heads, dtype=dtype, key_channels=inner, value_channels=inner
        ),
        dtype=dtype,
        rngs=rngs,
    )


CONTEXTS = {'nonlocal': build}
