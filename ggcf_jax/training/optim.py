"""The optimiser of a configuration: gradients in, updates of the parameters out.

`optimizers` has the optimisers, `schedules` the learning rates, `parameter_groups` which parameters
are trained and how fast. Equal blocks of a network are stored as one array with an axis of blocks
(`layers.repeat`); what depends on single layers sees them one by one (`layerwise`).
"""

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ggcf_jax import registry
from ggcf_jax.models import parameters
from ggcf_jax.training import optimizers, parameter_groups, schedules
from ggcf_jax.training.optimizers import Mask, OptimizerBuilder
from ggcf_jax.training.optimizers.lars import kernels
from ggcf_jax.training.schedules import ScheduleBuilder

DECAYED: dict[str, Mask] = {'all': True, 'kernels': kernels}


def outside_backbone(params: optax.Params) -> Any:
    """Masks every parameter that is not the backbone's."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: 'backbone' not in parameters.name(path).split('.'), params
    )


def layerwise(
    inner: optax.GradientTransformation, stacks: Collection[str]
) -> optax.GradientTransformation:
    """Applies a transformation to every layer by itself, those of equal blocks included.

    Args:
        inner: transformation that treats each array of a tree as one layer.
        stacks: paths of the arrays that hold equal blocks, see `parameters.stacks`.
    """
    unstacked = functools.partial(_unstacked, stacks=stacks)

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(unstacked(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        layers = None if params is None else unstacked(params)
        changed, state = inner.update(unstacked(updates), state, layers)
        restacked = jax.tree.map(
            lambda _, x: jnp.stack(x) if isinstance(x, tuple) else x, updates, changed
        )
        return restacked, state

    return optax.GradientTransformation(init, update)


def _unstacked(tree: Any, stacks: Collection[str]) -> Any:
    """The tree with a tuple of single layers for every array of equal blocks."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: tuple(x) if parameters.is_stacked(parameters.name(path), stacks) else x,
        tree,
    )


def schedule(train: ConfigDict) -> optax.Schedule:
    """Builds the schedule of the learning rate, after an optional linear warm-up.

    The warm-up rises from 0. After the last step the learning rate stays at its end.

    Args:
        train: `config.train`; `schedule`, `steps`, `schedule_steps`, `warmup_steps` and what the
            schedule itself reads.

    Returns:
        Number of steps done -> learning rate.

    Raises:
        InputError: an unknown schedule.
    """
    build: ScheduleBuilder = registry.find(
        schedules, 'SCHEDULES', train.schedule, 'config.train.schedule'
    )
    main = build(train, (train.schedule_steps or train.steps) - train.warmup_steps)
    if not train.warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, train.learning_rate, train.warmup_steps)
    return optax.join_schedules([warmup, main], [train.warmup_steps])


def optimizer(train: ConfigDict, stacks: frozenset[str]) -> optax.GradientTransformation:
    """Builds the optimiser.

    Gradients are clipped to the global norm `clip_norm` (0: not at all); then comes the optimiser
    itself, with weight decay on the parameters that `decay` names; updates of everything outside
    of the backbone are multiplied by `head_multiplier`, then all by the factors of their groups;
    frozen parameters get none.

    Args:
        train: `config.train`.
        stacks: paths of the arrays that hold equal blocks, see `parameters.stacks`.

    Raises:
        InputError: an unknown optimiser, schedule or decay, or patterns that cannot be read.
    """
    build: OptimizerBuilder = registry.find(
        optimizers, 'OPTIMIZERS', train.optimizer, 'config.train.optimizer'
    )
    registry.check(train.decay, DECAYED, 'config.train.decay')
    groups = parameter_groups.build(train, stacks)
    each_layer = functools.partial(layerwise, stacks=stacks)
    # One flat chain: the state of its links has these numbers in checkpoints.
    parts = [*build(train, schedule(train), DECAYED[train.decay], each_layer)]
    if train.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(train.clip_norm))
    if train.head_multiplier != 1.0:
        parts.append(optax.masked(optax.scale(train.head_multiplier), outside_backbone))
    if groups.multipliers or groups.layer_decay != 1.0:
        parts.append(_scaled(groups))
    if groups.frozen:
        parts.append(optax.masked(optax.set_to_zero(), groups.is_frozen))
    return optax.chain(*parts)


def _scaled(groups: parameter_groups.ParameterGroups) -> optax.GradientTransformation:
    """Multiplies each update by the factor of its layer."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda x, f: x * f, updates, groups.factors(updates))
    )
