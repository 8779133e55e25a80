"""The Graph Guided Context Fusion module (sections 3.2 to 3.5, Fig. 2)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int
from ml_collections import ConfigDict

from ggcf_jax.attention import Graph, attend, attention_weights, parse
from ggcf_jax.attention.implementations import Implementation
from ggcf_jax.errors import InputError
from ggcf_jax.models.contexts import implementation as implementations
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.layers.conv import TORCH_UNIFORM, ConvNorm, conv
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.norm import Activation, Norm


class Head(NamedTuple):
    """What one head attends with.

    Attributes:
        graph: graph of the head, with its parameters.
        q: queries [b, h, w, 1, key_channels].
        k: keys [b, h, w, 1, key_channels].
        options: named arguments of `attend`.
    """

    graph: Graph
    q: jax.Array
    k: jax.Array
    options: dict[str, Any]


class GGCF(nnx.Module):
    """Multi-head attention, each head on its own graph, joined with its input.

        y_i = sum_k W_k (1 / C_ik sum_j E_k(i, j) exp(theta_k(x_i) . phi_k(x_j)) g(x_j))   (Eq. 3)

    theta_k and phi_k are one 1x1 convolution per head, g one shared by all heads, W_k one per head
    with summed outputs. The paper leaves open how backbone features reach the module; as its
    public descendants (OCNet, openseg) do, a 3x3 convolution with norm reduces them first.

    Attributes:
        features: number of channels of the output, concat(y, x).
        heads: graph of each head.
        pruning: rule of each head, None where all neighbours are kept; see
            `pruning_rules.pruned`.
    """

    def __init__(
        self,
        in_features: int,
        heads: tuple[Graph, ...],
        *,
        channels: int,
        key_channels: int,
        value_channels: int,
        scale: float,
        activation: Activation,
        norm: Norm = 'batch_norm',
        implementation: Implementation = 'auto',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Initialises the module.

        Args:
            in_features: number of channels of the backbone's features.
            heads: graph of each head.
            channels: number of channels of x and of y.
            key_channels: number of channels of theta and phi of one head.
            value_channels: number of channels of g.
            scale: factor of the affinities; the paper has none (1.0).
            activation: activation behind the reducing convolution.
            norm: norm behind the reducing convolution.
            implementation: what computes the attention, see `attend`.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        shared: dict[str, Any] = dict(kernel_init=TORCH_UNIFORM, dtype=dtype, rngs=rngs)
        self.heads = heads
        self.pruning: tuple[pruning_rules.Rule | None, ...] = (None,) * len(heads)
        self.scale = scale
        self.implementation = implementation
        self.features = 2 * channels
        self.reduce = ConvNorm(
            in_features, channels, 3, activation, norm=norm, dtype=dtype, rngs=rngs
        )
        self.theta = conv(channels, len(heads) * key_channels, 1, use_bias=True, **shared)
        self.phi = conv(channels, len(heads) * key_channels, 1, use_bias=True, **shared)
        self.g = conv(channels, value_channels, 1, use_bias=True, **shared)
        # The W_k side by side: one convolution of the concatenated heads is their sum.
        self.w = conv(len(heads) * value_channels, channels, 1, use_bias=True, **shared)
        # Only learned graphs have parameters; the others get an empty dictionary.
        self.graph_params = nnx.List(
            [
                nnx.Dict({name: nnx.Param(value) for name, value in _init(graph, rngs).items()})
                for graph in heads
            ]
        )

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b h w features']:
        """Computes concat(y, x).

        Args:
            x: features of the backbone.
            train: whether batch statistics are used and updated.
            extent: extent of x, outside of which nothing is attended to; None where the maps are
                filled.
        """
        x = self.reduce(x, train=train, extent=extent)
        b, h, w, _ = x.shape
        v = self.g(x)[:, :, :, None]
        heads = self._heads(x, extent)
        contexts: dict[int, jax.Array] = {}
        for numbers in self._alike():
            same = [heads[i] for i in numbers]
            q, k = (_joined([getattr(head, name) for head in same]) for name in 'qk')
            found = attend(
                q, k, v, same[0].graph, implementation=self.implementation, **same[0].options
            )
            parts = [found] if len(same) == 1 else jnp.split(found, len(same), axis=3)
            contexts |= dict(zip(numbers, parts))
        y = self.w(
            jnp.concatenate([contexts[i] for i in range(len(heads))], axis=3).reshape(b, h, w, -1)
        )
        return jnp.concatenate([y, x], axis=-1)

    def attention(
        self,
        x: Float[Array, 'b h w in_features'],
        positions: Int[Array, 'm 2'],
        *,
        extent: Extent | None = None,
    ) -> Float[Array, 'b m heads h w']:
        """Where single queries look: the weights 1/C_ik E_k(i, j) exp(theta_k . phi_k) of Eq. 3.

        Args:
            x: features of the backbone.
            positions: row and column of each query.
            extent: extent of x, inside which the queries lie; None where the maps are filled.

        Returns:
            float32, one in sum over the map; zero for pruned neighbours and outside of the extent.
        """
        rows = [
            attention_weights(head.q, head.k, head.graph, positions, **head.options)
            for head in self._heads(self.reduce(x, train=False, extent=extent), extent)
        ]
        return jnp.concatenate(rows, axis=2)

    @property
    def bound_heads(self) -> tuple[Graph, ...]:
        """`heads` with the parameters of learned graphs."""
        return tuple(
            graph.bind({name: p[...] for name, p in params.items()})
            for graph, params in zip(self.heads, self.graph_params)
        )

    def _alike(self) -> list[list[int]]:
        """Numbers of the heads that can attend together: same graph, same neighbours kept."""
        groups: dict[Any, list[int]] = {}
        for i, (graph, rule) in enumerate(zip(self.heads, self.pruning)):
            alone = graph.trainable or (rule is not None and rule.key(i) is not None)
            groups.setdefault(i if alone else (graph, rule), []).append(i)
        return list(groups.values())

    def _heads(self, x: jax.Array, extent: Extent | None) -> list[Head]:
        """The heads over the reduced x of an extent."""
        b, h, w, _ = x.shape
        q, k = (p(x).reshape(b, h, w, len(self.heads), -1) for p in (self.theta, self.phi))
        heads = []
        for i, (graph, rule) in enumerate(zip(self.bound_heads, self.pruning)):
            options = {'scale': self.scale, **pruning_rules.options(rule, i)}
            if extent is not None:
                options['valid'] = extent.mask(h, w)
            heads.append(Head(graph, q[:, :, :, i : i + 1], k[:, :, :, i : i + 1], options))
        return heads


def _joined(arrays: list[jax.Array]) -> jax.Array:
    """Arrays of one head each as one of all heads."""
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=3)


def _init(graph: Graph, rngs: nnx.Rngs) -> dict[str, jax.Array]:
    """Parameters of a graph; a key is drawn only where there are any."""
    return graph.init(rngs.params()) if graph.trainable else {}


def build(model: ConfigDict, in_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> GGCF:
    """Builds the module from `config.model` (reads `heads`, `activation`, `norm` and `ggcf`)."""
    try:
        heads = parse(model.heads)
    except ValueError as error:
        raise InputError(f'config.model.heads={model.heads!r}: {error}') from error
    return GGCF(
        in_features,
        heads,
        channels=model.ggcf.channels,
        key_channels=model.ggcf.key_channels,
        value_channels=model.ggcf.value_channels,
        scale=model.ggcf.scale,
        activation=model.activation,
        norm=model.norm,
        implementation=implementations.check(
            model.attention,
            heads,
            dtype=dtype,
            key_channels=model.ggcf.key_channels,
            value_channels=model.ggcf.value_channels,
        ),
        dtype=dtype,
        rngs=rngs,
    )


CONTEXTS = {'ggcf': build}
