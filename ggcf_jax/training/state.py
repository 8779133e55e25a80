"""Everything that training needs to continue."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float32, Int32, UInt32
from ml_collections import ConfigDict

from ggcf_jax import models
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models import stacking
from ggcf_jax.training import optim, parameter_groups

# What averaged parameters are evaluated with: the running batch statistics of the parameters that
# are trained, or an average of these.
EmaStatistics = Literal['latest', 'averaged']

# Metrics of a training step, summed in the state until they are logged.
METRICS = ('loss', 'aux_loss', 'grad_norm', 'skipped')


@flax.struct.dataclass
class TrainState:
    """The training state: one pytree, one checkpoint.

    Attributes:
        step: number of steps done; the whole state of the data pipeline.
        seed: seed of data order, augmentation and dropout.
        params: float32 parameters.
        stats: float32 running batch statistics.
        opt_state: state of the optimiser.
        ema_params: exponential moving average of the parameters, or None without one.
        metric_sums: sums of `METRICS`, and of the norms of gradients by layer if they are logged,
            since they were last logged.
        consecutive_skips: number of steps skipped since the last one whose loss and gradients were
            finite.
        ema_stats: exponential moving average of the batch statistics, or None without one.
    """

    step: Int32[Array, '']
    seed: UInt32[Array, '']
    params: nnx.State
    stats: nnx.State
    opt_state: optax.OptState
    ema_params: nnx.State | None
    metric_sums: dict[str, Float32[Array, '']]
    consecutive_skips: Int32[Array, '']
    ema_stats: nnx.State | None = None

    @property
    def eval_stats(self) -> nnx.State:
        """The batch statistics that are evaluated: the averaged ones where there are any."""
        return self.stats if self.ema_stats is None else self.ema_stats

    @property
    def eval_params(self) -> nnx.State:
        """The parameters that are evaluated: the averaged ones where there are any."""
        return self.params if self.ema_params is None else self.ema_params

    def to_trees(self) -> dict[str, Any]:
        """Returns the named trees of a checkpoint: `model`, which is evaluated, and `training`.

        An analysis can thus read the model without knowing the optimiser. Where parameters are
        or statistics are averaged, the averages are the model's, and those of the steps belong to
        `training`. Equal blocks are stacked, whatever the state has.
        """
        training = {
            'step': self.step,
            'seed': self.seed,
            'opt_state': self.opt_state,
            'running': self.metric_sums,
            'skipped': self.consecutive_skips,
        }
        if self.ema_params is not None:
            training['params'] = self.params
        if self.ema_stats is not None:
            training['stats'] = self.stats
        model = {'params': self.eval_params, 'stats': self.eval_stats}
        return stacking.stacked({'model': model, 'training': training})

    def unstacked(self, stacks: Mapping[str, int]) -> 'TrainState':
        """Returns the state with equal blocks in arrays of their own, see `models.stacking`.

        Args:
            stacks: those that are unstacked, see `models.unstacked_for`.
        """
        trees = (self.params, self.opt_state, self.ema_params)
        params, opt_state, ema_params = stacking.unstacked(trees, stacks)
        return dataclasses.replace(self, params=params, opt_state=opt_state, ema_params=ema_params)

    def without_metrics(self) -> 'TrainState':
        """Returns the state with the sums of metrics at zero."""
        zeros = jax.tree.map(lambda x: x * 0, self.metric_sums)  # on the same devices
        return dataclasses.replace(self, metric_sums=zeros)

    @classmethod
    def from_trees(cls, trees: Mapping[str, Any]) -> 'TrainState':
        """Returns the state that `to_trees` was called on."""
        model, training = trees['model'], trees['training']
        averaged, averaged_stats = 'params' in training, 'stats' in training
        return cls(
            step=training['step'],
            seed=training['seed'],
            params=training['params'] if averaged else model['params'],
            stats=training['stats'] if averaged_stats else model['stats'],
            opt_state=training['opt_state'],
            ema_params=model['params'] if averaged else None,
            metric_sums=training['running'],
            consecutive_skips=training['skipped'],
            ema_stats=model['stats'] if averaged_stats else None,
        )


def creator(
    config: ConfigDict, num_classes: int, mesh: jax.sharding.Mesh
) -> Callable[[], TrainState]:
    """Returns the jitted function that draws the state at step 0, replicated over the mesh.

    Args:
        config: configuration of the run.
        num_classes: number of classes of the data set.
        mesh: devices of the run.
    """
    train = config.train

    def initial() -> TrainState:
        model = models.build(config, num_classes)
        network = models.split(model)
        stacks = models.stacks(*network)
        layers = parameter_groups.layers(network[1], stacks) if train.gradient_norms else ()
        return create(
            model,
            optim.optimizer(train, stacks),
            seed=config.seed,
            ema_decay=train.ema_decay,
            ema_statistics=train.ema_statistics,
            layers=layers,
        )

    return jax.jit(initial, out_shardings=mesh_lib.replicated(mesh))


def create(
    model: models.Segmenter,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    ema_statistics: EmaStatistics = 'latest',
    layers: Sequence[str] = (),
) -> TrainState:
    """Creates the state at step 0 of a freshly initialised network.

    Args:
        model: network with fresh parameters.
        optimizer: optimiser whose state is initialised.
        seed: seed of data order, augmentation and dropout.
        ema_decay: decay of averaged parameters; 0 for a state without them.
        ema_statistics: what averaged parameters are evaluated with.
        layers: names of the layers whose gradients' norms are summed.
    """
    _, params, stats = models.split(model)
    return TrainState(
        step=jnp.int32(0),
        seed=jnp.uint32(seed),
        params=params,
        stats=stats,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema_decay else None,
        metric_sums={name: jnp.float32(0) for name in (*METRICS, *map(norm_name, layers))},
        consecutive_skips=jnp.int32(0),
        ema_stats=(
            jax.tree.map(jnp.copy, stats) if ema_decay and ema_statistics == 'averaged' else None
        ),
    )


def norm_name(layer: str) -> str:
    """Returns the name of the metric that is the norm of a layer's gradient."""
    return f'grad_norm/{layer}'


def continued(
    saved: TrainState, fresh: TrainState, report: Callable[[str], None] = print
) -> TrainState:
    """Carries a state over to another optimiser or another averaging of parameters.

    Momentum is kept where the optimiser has arrays of the same shapes; the position in the
    schedule of the learning rate always is.

    Args:
        saved: state of a checkpoint.
        fresh: state at step 0 with the optimiser and the averaging of the steps to come.
        report: called with one line if the state of the optimiser begins anew.
    """
    arrays, structure = jax.tree.flatten(fresh.opt_state)
    before = jax.tree.leaves(saved.opt_state)
    if [(x.shape, x.dtype) for x in before] == [(x.shape, x.dtype) for x in arrays]:
        opt_state = jax.tree.unflatten(structure, before)
    else:
        report('the state of the optimizer begins anew: that of the checkpoint is of another one')
        counted = jax.tree.leaves(saved.opt_state, is_leaf=_is_schedule)
        count = next((each.count for each in counted if _is_schedule(each)), saved.step)
        opt_state = jax.tree.map(
            lambda each: each._replace(count=jnp.copy(count)) if _is_schedule(each) else each,
            fresh.opt_state,
            is_leaf=_is_schedule,
        )
    ema_params = None
    if fresh.ema_params is not None:
        ema_params = saved.ema_params
        if ema_params is None:
            ema_params = jax.tree.map(jnp.copy, saved.params)
    ema_stats = None
    if fresh.ema_stats is not None:
        ema_stats = saved.ema_stats
        if ema_stats is None:
            ema_stats = jax.tree.map(jnp.copy, saved.stats)
    return dataclasses.replace(
        saved,
        opt_state=opt_state,
        ema_params=ema_params,
        ema_stats=ema_stats,
        metric_sums={n: saved.metric_sums.get(n, zero) for n, zero in fresh.metric_sums.items()},
    )


def _is_schedule(tree: Any) -> bool:
    return isinstance(tree, optax.ScaleByScheduleState)
