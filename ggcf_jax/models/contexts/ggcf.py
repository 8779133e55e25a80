"""The Graph Guided Context Fusion module (sections 3.2 to 3.5, Fig. 2)."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx

from ggcf_jax.attention import attend, graphs, probabilities
from ggcf_jax.errors import InputError
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.layers.conv import TORCH_UNIFORM, ConvNorm, conv
from ggcf_jax.models.layers.norm import Activation, Norm


class GGCF(nnx.Module):
    """Multi-head attention, each head on its own graph, joined with its input.

        y_i = sum_k W_k (1 / C_ik sum_j E_k(i, j) exp(theta_k(x_i) . phi_k(x_j)) g(x_j))   (Eq. 3)

    theta_k and phi_k are one 1x1 convolution a head, g one shared by all heads, W_k one a head
    with summed outputs. The paper leaves open how backbone features reach the module; as its
    public descendants (OCNet, openseg) do, a 3x3 convolution with norm reduces them first.

    Attributes:
        features: channels of the output, concat(y, x).
        pruning: the rule of each head, None where all neighbours are kept; see `pruned`.
    """

    def __init__(
        self,
        in_features: int,
        heads: tuple,
        *,
        channels: int,
        key_channels: int,
        value_channels: int,
        scale: float,
        activation: Activation,
        norm: Norm = 'batch_norm',
        dtype,
        rngs: nnx.Rngs,
    ):
        """Args:
        in_features: channels of the backbone.
        heads: one graph a head.
        channels: channels of x and y.
        key_channels: of theta and phi, each head. value_channels: of g.
        scale: factor on the affinities; the paper has none (1.0).
        """
        shared = dict(kernel_init=TORCH_UNIFORM, dtype=dtype, rngs=rngs)
        self.heads = heads
        self.pruning: tuple[pruning_rules.Rule | None, ...] = (None,) * len(heads)
        self.scale = scale
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

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [b, h, w, in_features] -> concat(y, x) [b, h, w, features]."""
        x = self.reduce(x, train)
        b, h, w, _ = x.shape
        v = self.g(x)[:, :, :, None]
        y = [attend(q, k, v, graph, **options) for graph, q, k, options in self._heads(x)]
        y = self.w(jnp.concatenate(y, axis=3).reshape(b, h, w, -1))
        return jnp.concatenate([y, x], axis=-1)

    def attention(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Where chosen queries look: the weights 1/C_ik E_k(i, j) exp(theta_k . phi_k) of Eq. 3.

        Args:
            x: [b, h, w, in_features].
            positions: integers [m, 2], row and column of each query.

        Returns:
            float32 [b, m, heads, h, w], one in sum over the map; zero for pruned neighbours.
        """
        rows = [
            probabilities(q, k, graph, positions, **options)
            for graph, q, k, options in self._heads(self.reduce(x, False))
        ]
        return jnp.concatenate(rows, axis=2)

    def _heads(self, x: jax.Array) -> list[tuple]:
        """(graph, queries, keys, options of `attend`) of each head, of the reduced x.

        Queries and keys are [b, h, w, 1, key_channels].
        """
        b, h, w, _ = x.shape
        q, k = (p(x).reshape(b, h, w, len(self.heads), -1) for p in (self.theta, self.phi))
        heads = []
        for i, (graph, rule) in enumerate(zip(self.heads, self.pruning)):
            if isinstance(graph, graphs.Learned):
                graph = graph.bind({name: p[...] for name, p in self.graph_params[i].items()})
            options = {'scale': self.scale}
            if rule is not None:
                options |= {'keep': rule.keep, 'drop_rate': rule.drop_rate}
                options |= {'pruning': rule.priority, 'key': rule.key(i)}
            heads.append((graph, q[:, :, :, i : i + 1], k[:, :, :, i : i + 1], options))
        return heads


def pruned(module: nnx.Module, rules: Iterable[pruning_rules.Rule]) -> nnx.Module:
    """A module on the same arrays whose heads prune their contexts (section 3.4, inference only).

    Args:
        module: that is or holds a GGCF, such as a `Segmenter`.
        rules: at most one for each kind of head; () changes nothing.

    Raises:
        ValueError: a rule for a kind that no head has, or no GGCF there.
    """
    rules = tuple(rules)
    if not rules:
        return module
    module = nnx.merge(*nnx.split(module))
    found = [node for _, node in nnx.iter_graph(module) if isinstance(node, GGCF)]
    if not found:
        raise ValueError(f'pruning {",".join(map(str, rules))!r}: the model has no GGCF heads')
    for ggcf in found:
        ggcf.pruning = pruning_rules.deal(rules, ggcf.heads)
    return module


def _init(graph, rngs: nnx.Rngs) -> dict[str, jax.Array]:
    return graph.init(rngs.params()) if isinstance(graph, graphs.Learned) else {}


def build(model, in_features: int, *, dtype, rngs: nnx.Rngs) -> GGCF:
    """Builds the module from `config.model` (reads `heads`, `activation`, `norm` and `ggcf`)."""
    try:
        heads = graphs.parse(model.heads)
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
        dtype=dtype,
        rngs=rngs,
    )


CONTEXTS = {'ggcf': build}
