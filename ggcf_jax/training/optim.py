"""The optimiser: SGD or LARS with momentum, weight decay and a polynomial learning rate.

Equal blocks of a network are stored as one array with an axis of blocks (`layers.repeat`); what
depends on single layers sees them one by one (`layerwise`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ggcf_jax import registry
from ggcf_jax.models.layers.repeat import STACKED

# True: all parameters; or a function of the parameters that returns a boolean for each.
Mask = bool | Callable[[optax.Params], Any]


class OptimizerBuilder(Protocol):
    """Builds an optimiser: an entry of `OPTIMIZERS`, or `my_package.my_module:builder`."""

    def __call__(
        self, train: ConfigDict, learning_rate: optax.Schedule, decayed: Mask
    ) -> Sequence[optax.GradientTransformation]:
        """Builds the transformations that turn (clipped) gradients into updates, in their order.

        Args:
            train: `config.train`, of which `momentum` and `weight_decay` are meant for optimisers.
            learning_rate: number of updates done -> learning rate.
            decayed: mask of the parameters that weight decay applies to, as
                `optax.add_decayed_weights` takes it.
        """
        ...


def kernels(params: optax.Params) -> Any:
    """Masks the kernels of convolutions: False for biases and for the scales of norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[-1] == 'kernel', params)


def outside_backbone(params: optax.Params) -> Any:
    """Masks every parameter that is not the backbone's."""
    return jax.tree_util.tree_map_with_path(lambda path, _: 'backbone' not in _names(path), params)


def _names(path: tuple) -> list[str]:
    return jax.tree_util.keystr(path, simple=True, separator='/').split('/')


def _sgd(
    train: ConfigDict, learning_rate: optax.Schedule, decayed: Mask
) -> Sequence[optax.GradientTransformation]:
    """SGD as in PyTorch: weight decay comes before the momentum."""
    return (
        optax.add_decayed_weights(train.weight_decay, decayed),
        optax.sgd(learning_rate, momentum=train.momentum),
    )


def _lars(
    train: ConfigDict, learning_rate: optax.Schedule, decayed: Mask
) -> Sequence[optax.GradientTransformation]:
    """LARS (You et al., 2017); norms and biases are left out of the layer-wise rate, as usual."""
    return (
        # optax.lars, but for the layers of equal blocks: one flat state, as checkpoints have it.
        optax.chain(
            optax.add_decayed_weights(train.weight_decay, decayed),
            optax.masked(layerwise(optax.scale_by_trust_ratio(trust_coefficient=0.001)), kernels),
            optax.scale_by_learning_rate(learning_rate),
            optax.trace(decay=train.momentum),
        ),
    )


def layerwise(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation to every layer by itself, those of equal blocks included.

    Args:
        inner: transformation that treats each array of a tree as one layer.
    """

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(_unstacked(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        layers = None if params is None else _unstacked(params)
        changed, state = inner.update(_unstacked(updates), state, layers)
        restacked = jax.tree.map(
            lambda _, x: jnp.stack(x) if isinstance(x, tuple) else x, updates, changed
        )
        return restacked, state

    return optax.GradientTransformation(init, update)


def _unstacked(tree: Any) -> Any:
    """The tree with a tuple of single layers for every array of equal blocks."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: tuple(x) if _is_stacked(_names(path)) else x, tree
    )


def _is_stacked(names: list[str]) -> bool:
    """Whether an array belongs to a `Repeated`, not to a list of blocks under the same name."""
    return any(a == STACKED and not b.isdigit() for a, b in zip(names, names[1:]))


OPTIMIZERS: dict[str, OptimizerBuilder] = {'sgd': _sgd, 'lars': _lars}
DECAYED: dict[str, Mask] = {'all': True, 'kernels': kernels}


def schedule(train: ConfigDict) -> optax.Schedule:
    """Builds the poly schedule of section 4.1, after an optional linear warm-up.

    lr = end + (learning_rate - end) * (1 - step / steps) ** poly_power, where steps are those after
    the warm-up, which rises from 0. After its last step the learning rate stays at its end.

    Args:
        train: `config.train`; `steps`, `schedule_steps`, `warmup_steps`, `learning_rate`,
            `end_learning_rate` and `poly_power` are read.

    Returns:
        Number of steps done -> learning rate.
    """
    poly = optax.polynomial_schedule(
        train.learning_rate,
        train.end_learning_rate,
        train.poly_power,
        (train.schedule_steps or train.steps) - train.warmup_steps,
    )
    if not train.warmup_steps:
        return poly
    warmup = optax.linear_schedule(0.0, train.learning_rate, train.warmup_steps)
    return optax.join_schedules([warmup, poly], [train.warmup_steps])


def optimizer(train: ConfigDict) -> optax.GradientTransformation:
    """Builds the optimiser.

    Gradients are clipped to the global norm `clip_norm` (0: not at all); then comes the optimiser
    itself, with weight decay on the parameters that `decay` names; updates of everything outside
    of the backbone are multiplied by `head_multiplier`.

    Args:
        train: `config.train`.

    Raises:
        InputError: an unknown optimiser or decay.
    """
    build = registry.pick(OPTIMIZERS, train.optimizer, 'config.train.optimizer')
    registry.check(train.decay, DECAYED, 'config.train.decay')
    # One flat chain: the state of its links has these numbers in checkpoints.
    parts = [*build(train, schedule(train), DECAYED[train.decay])]
    if train.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(train.clip_norm))
    if train.head_multiplier != 1.0:
        parts.append(optax.masked(optax.scale(train.head_multiplier), outside_backbone))
    return optax.chain(*parts)
