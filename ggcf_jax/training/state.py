"""Everything that training needs to continue."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ggcf_jax import models
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models import Segmenter
from ggcf_jax.training import optim

RUNNING = ('loss', 'aux_loss', 'grad_norm', 'skipped')


@flax.struct.dataclass
class TrainState:
    """The training state: one pytree, one checkpoint.

    Attributes:
        step: int32, number of steps done; the whole state of the data pipeline.
        seed: uint32, of data order, augmentation and dropout.
        params: float32 parameters.
        stats: float32 running batch statistics.
        opt_state: of the optimiser.
        averaged: exponential moving average of the parameters, or None without one.
        running: sums of the training metrics since they were last reported.
        skipped: int32, steps left out since the last good one because they were not finite.
    """

    step: jax.Array
    seed: jax.Array
    params: nnx.State
    stats: nnx.State
    opt_state: optax.OptState
    averaged: nnx.State | None
    running: dict[str, jax.Array]
    skipped: jax.Array

    @property
    def evaluated(self) -> nnx.State:
        """The parameters that are evaluated: the averaged ones where there are any."""
        return self.params if self.averaged is None else self.averaged

    def to_trees(self) -> dict[str, Any]:
        """The named trees of a checkpoint: `model`, which is evaluated, apart from `training`.

        An analysis can thus read the model without knowing the optimizer. Where parameters are
        averaged, the averages are the model's, and the ones being trained belong to `training`.
        """
        training = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        model = {'params': self.evaluated, 'stats': training.pop('stats')}
        if training.pop('averaged') is None:
            del training['params']
        return {'model': model, 'training': training}

    @classmethod
    def from_trees(cls, trees: Mapping[str, Any]) -> 'TrainState':
        """The state that `to_trees` was called on."""
        model, training = trees['model'], trees['training']
        if 'params' in training:
            return cls(**training, averaged=model['params'], stats=model['stats'])
        return cls(**training, **model, averaged=None)


def creator(config, num_classes: int, mesh: jax.sharding.Mesh) -> Callable[[], TrainState]:
    """The jitted function that draws the state at step 0 of `config`, a copy on every device."""
    tx = optim.optimizer(config.train)

    def initial() -> TrainState:
        model = models.build(config, num_classes)
        return create(model, tx, config.seed, config.train.ema_decay)

    return jax.jit(initial, out_shardings=mesh_lib.replicated(mesh))


def create(
    model: Segmenter, tx: optax.GradientTransformation, seed: int, ema_decay: float
) -> TrainState:
    """The state at step 0 of a freshly initialised model; averages where `ema_decay` > 0."""
    _, params, stats = models.split(model)
    return TrainState(
        step=jnp.int32(0),
        seed=jnp.uint32(seed),
        params=params,
        stats=stats,
        opt_state=tx.init(params),
        averaged=jax.tree.map(jnp.copy, params) if ema_decay else None,
        running={name: jnp.float32(0) for name in RUNNING},
        skipped=jnp.int32(0),
    )
