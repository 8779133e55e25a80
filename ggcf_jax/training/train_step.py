"""One optimiser step: loss, gradients, update."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, Shaped, UInt8
from ml_collections import ConfigDict

from ggcf_jax import models
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models.layers.repeat import scan
from ggcf_jax.training import objective as objective_lib
from ggcf_jax.training import optim, parameter_groups
from ggcf_jax.training.global_norm import global_norm
from ggcf_jax.training.losses.pixels import label_weights
from ggcf_jax.training.objective import Objective, mean
from ggcf_jax.training.state import TrainState, norm_name

Batch = dict[str, UInt8[Array, 'b h w *channels']]
TrainStep = Callable[[TrainState, Batch], TrainState]
_Schedule = optax.ScaleByScheduleState  # the number of steps that a learning rate is computed from


def build(
    train: ConfigDict,
    class_weights: tuple[float, ...],
    network: tuple[nnx.GraphDef, nnx.State, nnx.State],
    mesh: jax.sharding.Mesh,
) -> jax.stages.Wrapped:
    """Builds the jitted step (state, batch) -> state; the buffers of the old state are donated.

    Args:
        train: `config.train`.
        class_weights: weight of each class in the losses, () for equal ones.
        network: structure, parameters and batch statistics of the network, or their shapes, as
            `models.abstract` returns them.
        mesh: devices; the state is replicated over them.
    """
    graphdef, _, _ = network
    stacks = models.stacks(*network)
    groups = parameter_groups.build(train, stacks)
    step = make_train_step(
        graphdef,
        optim.optimizer(train, stacks),
        objective_lib.build(train, class_weights),
        accumulate=train.accumulate,
        ema_decay=train.ema_decay,
        log_every=train.log_every,
        frozen=groups.is_frozen if groups.frozen else None,
        ema_warmup=train.ema_warmup,
        layer_norms=(
            functools.partial(parameter_groups.norms, stacks=stacks)
            if train.gradient_norms
            else None
        ),
    )
    return jax.jit(step, donate_argnums=0, out_shardings=mesh_lib.replicated(mesh))


class _Microbatch(NamedTuple):
    """Input of one forward and backward pass.

    Attributes:
        batch: images and labels.
        key: random key for dropout.
        share: weight of this microbatch in the loss of the batch.
    """

    batch: dict[str, jax.Array]
    key: jax.Array
    share: jax.Array


class _Sums(NamedTuple):
    """Gradients and loss terms summed over microbatches, and the latest batch statistics."""

    grads: nnx.State
    terms: dict[str, jax.Array]
    stats: nnx.State


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    accumulate: int,
    ema_decay: float,
    log_every: int,
    frozen: Callable[[nnx.State], Any] | None = None,
    ema_warmup: bool = False,
    layer_norms: Callable[[nnx.State], dict[str, jax.Array]] | None = None,
) -> TrainStep:
    """Builds the step function, to be compiled with `jax.jit`.

    The loss is the global sum over the pixels that count divided by their global number (weight),
    for the main and the auxiliary logits at the labels' resolution. Under a mesh this and the
    batch norms are global, so any number of devices computes the same step. Microbatches are
    averaged by their numbers of labelled pixels, which for cross entropy is the mean of the batch.

    A step whose loss or gradients are not finite leaves parameters, statistics and optimiser
    untouched, but for the schedule, whose learning rate is that of `state.step` all the same. It is
    counted in `state.consecutive_skips`.

    Args:
        graphdef: structure of the network.
        optimizer: gradient transformation whose updates are added to the parameters.
        objective: what is minimised.
        accumulate: number of microbatches that a batch is split into; gradients are summed over
            them, batch statistics are those of one microbatch at a time.
        ema_decay: decay of `state.ema_params`, in (0, 1); not used where the state has none.
        log_every: number of steps after which `state.metric_sums` starts from zero again.
        frozen: parameters -> a boolean for each, whether it is left as it is, so that no gradient
            of it has to be computed; None where all are trained.
        ema_warmup: whether the averages follow faster in the beginning: with a decay of
            (1 + step) / (10 + step) while that is lower (TensorFlow's ExponentialMovingAverage).
        layer_norms: gradients -> norm of those of each layer, for the metrics; None: not computed.
    """

    def loss_terms(
        params: nnx.State, stats: nnx.State, inputs: _Microbatch
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], nnx.State]]:
        if frozen is not None:
            params = jax.tree.map(
                lambda x, is_frozen: jax.lax.stop_gradient(x) if is_frozen else x,
                params,
                frozen(params),
            )
        model = models.merge(graphdef, params, stats)
        logits, aux_logits = model(inputs.batch['image'], train=True, key=inputs.key)
        labels = inputs.batch['label']
        _, height, width = labels.shape
        main = model.upsample(logits, (height, width))
        aux = model.upsample_aux(aux_logits, (height, width))
        terms = {
            'main': mean(*objective.loss(main, labels)),
            'aux_loss': mean(*objective.aux_loss(aux, labels)),
        }
        terms = {name: inputs.share * term for name, term in terms.items()}
        _, _, stats = models.split(model)
        return terms['main'] + objective.aux_weight * terms['aux_loss'], (terms, stats)

    def add_microbatch(
        carry: tuple[nnx.State, _Sums], inputs: _Microbatch
    ) -> tuple[tuple[nnx.State, _Sums], None]:
        params, sums = carry
        (_, (terms, stats)), grads = jax.value_and_grad(loss_terms, has_aux=True)(
            params, sums.stats, inputs
        )
        grads, terms = jax.tree.map(jnp.add, (sums.grads, sums.terms), (grads, terms))
        return (params, _Sums(grads, terms, stats)), None

    def gradients(state: TrainState, batch: Batch) -> _Sums:
        keys = jax.random.split(_step_key(state), accumulate)
        zeros = _Sums(
            grads=jax.tree.map(jnp.zeros_like, state.params),
            terms={name: jnp.float32(0) for name in ('main', 'aux_loss')},
            stats=state.stats,
        )
        if accumulate == 1:
            inputs = _Microbatch(batch, keys[0], jnp.float32(1))
            (_, sums), _ = add_microbatch((state.params, zeros), inputs)
            return sums
        batches = split_microbatches(batch, accumulate)
        shares = _shares(batches['label'], objective)
        (_, sums), _ = scan(
            add_microbatch, (state.params, zeros), _Microbatch(batches, keys, shares)
        )
        return sums

    def train_step(state: TrainState, batch: Batch) -> TrainState:
        grads, terms, stats = gradients(state, batch)
        grad_norm = global_norm(grads)
        total = terms['main'] + objective.aux_weight * terms['aux_loss']
        finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params, ema_stats = None, state.ema_stats
        decay: Any = ema_decay
        if ema_warmup:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        if state.ema_params is not None:
            ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
            if frozen is not None:  # an average of equal values is rounded
                ema_params = jax.tree.map(
                    lambda x, average, is_frozen: x if is_frozen else average,
                    params,
                    ema_params,
                    frozen(params),
                )
        if ema_stats is not None:  # in this form equal values, frozen ones, stay equal
            ema_stats = jax.tree.map(lambda x, a: a + (1 - decay) * (x - a), stats, ema_stats)
        new = (params, stats, opt_state, ema_params, ema_stats)
        old = (state.params, state.stats, state.opt_state, state.ema_params, state.ema_stats)
        params, stats, opt_state, ema_params, ema_stats = jax.tree.map(
            lambda n, o: jnp.where(finite, n, o), new, old
        )
        opt_state = _with_schedules_of(new[2], opt_state)

        metrics = {
            'loss': total,
            'aux_loss': terms['aux_loss'],
            'grad_norm': grad_norm,
            'skipped': 1.0 - finite,
        }
        if layer_norms is not None:
            metrics |= {norm_name(layer): norm for layer, norm in layer_norms(grads).items()}
        fresh = state.step % log_every == 0
        return TrainState(
            step=state.step + 1,
            seed=state.seed,
            params=params,
            stats=stats,
            opt_state=opt_state,
            ema_params=ema_params,
            metric_sums={
                name: jnp.where(fresh, 0.0, state.metric_sums[name])
                + (value if name == 'skipped' else jnp.where(finite, value, 0.0))
                for name, value in metrics.items()
            },
            consecutive_skips=jnp.where(finite, 0, state.consecutive_skips + 1),
            ema_stats=ema_stats,
        )

    return train_step


def split_microbatches(
    batch: dict[str, Shaped[Any, 'b ...']], accumulate: int
) -> dict[str, Shaped[Any, '{accumulate} _ ...']]:
    """Splits [b, ...] into [accumulate, b / accumulate, ...], every microbatch on all devices.

    Item i goes to microbatch i % accumulate, so that no array moves between devices.

    Args:
        batch: arrays whose leading axis may be sharded over devices.
        accumulate: number of microbatches, a divisor of b.
    """
    return {
        name: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }


def _with_schedules_of(new: optax.OptState, state: optax.OptState) -> optax.OptState:
    """A state of the optimiser whose schedules are as far as those of `new`."""
    return jax.tree.map(
        lambda n, s: n if isinstance(n, _Schedule) else s,
        new,
        state,
        is_leaf=lambda node: isinstance(node, _Schedule),
    )


def _step_key(state: TrainState) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.key(state.seed), state.step)


def _shares(labels: jax.Array, objective: Objective) -> Float[Array, ' accumulate']:
    """Share of each microbatch in the weight of all pixels that a mean is taken over."""
    if objective.average == 'all':
        return jnp.full(labels.shape[0], 1 / labels.shape[0], jnp.float32)
    weights = label_weights(labels, objective.class_weights).sum((1, 2, 3))
    return mean(weights, weights.sum())
