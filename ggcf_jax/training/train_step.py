"""One optimiser step: loss, gradients, update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models import merge, split
from ggcf_jax.models.layers.repeat import scan
from ggcf_jax.models.layers.resize import upsample
from ggcf_jax.training import losses, optim
from ggcf_jax.training.state import TrainState


def build(train, class_weights: tuple[float, ...], graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh):
    """The step of `config.train`, jitted: (state, batch) -> state; the old state is donated."""
    step = make_train_step(
        graphdef,
        optim.optimizer(train),
        loss=losses.build(train, class_weights),
        aux_weight=train.aux_weight,
        class_weights=class_weights,
        accumulate=train.accumulate,
        ema_decay=train.ema_decay,
        log_every=train.log_every,
    )
    return jax.jit(step, donate_argnums=0, out_shardings=mesh_lib.replicated(mesh))


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    *,
    loss: losses.Loss,
    aux_weight: float,
    class_weights: tuple[float, ...],
    accumulate: int,
    ema_decay: float,
    log_every: int,
) -> Callable[[TrainState, dict[str, jax.Array]], TrainState]:
    """Builds the step function, to be compiled with `jax.jit`.

    The loss is the global sum over the pixels that count divided by their global number (weight),
    for the main and the auxiliary logits at the labels' resolution. Under a mesh this and the
    batch norms are global, so any number of devices computes the same step. Microbatches are
    averaged by their numbers of labelled pixels, which for cross entropy is the mean of the batch.

    A step whose loss or gradients are not finite leaves parameters, statistics and optimiser
    untouched and is counted in `state.skipped`.

    Args:
        graphdef: of the model.
        tx: the optimiser.
        loss: of the main logits; the auxiliary loss is always cross entropy.
        aux_weight: weight of the auxiliary loss.
        class_weights: weight of each class in the auxiliary loss, () for equal ones.
        accumulate: number of microbatches; gradients are summed over them, batch statistics are
            those of one microbatch at a time.
        ema_decay: of `state.averaged`, in (0, 1), where the state has it.
        log_every: `state.running` starts anew after this many steps.
    """

    def loss_terms(params, stats, batch, key, share):
        model = merge(graphdef, params, stats)
        logits, aux_logits = model(batch['image'], train=True, key=key)
        labels = batch['label']
        main, aux = (upsample(x, model.stride, labels.shape[1:]) for x in (logits, aux_logits))
        terms = {
            'main': _mean(*loss(main, labels)),
            'aux_loss': _mean(*losses.cross_entropy(aux, labels, class_weights)),
        }
        terms = {name: share * term for name, term in terms.items()}
        return terms['main'] + aux_weight * terms['aux_loss'], (terms, split(model)[2])

    def add_microbatch(carry, inputs):
        params, (grads, terms, stats) = carry
        (_, (new_terms, stats)), new_grads = jax.value_and_grad(loss_terms, has_aux=True)(
            params, stats, *inputs
        )
        grads, terms = jax.tree.map(jnp.add, (grads, terms), (new_grads, new_terms))
        return (params, (grads, terms, stats)), None

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> TrainState:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        keys = jax.random.split(key, accumulate)
        zeros = (
            jax.tree.map(jnp.zeros_like, state.params),
            {name: jnp.float32(0) for name in ('main', 'aux_loss')},
            state.stats,
        )
        if accumulate == 1:
            inputs = (batch, keys[0], jnp.float32(1))
            (_, (grads, terms, stats)), _ = add_microbatch((state.params, zeros), inputs)
        else:
            dealt = deal(batch, accumulate)
            inputs = (dealt, keys, _shares(dealt['label'], class_weights))
            (_, (grads, terms, stats)), _ = scan(add_microbatch, (state.params, zeros), inputs)
        grad_norm = optax.global_norm(grads)
        total = terms['main'] + aux_weight * terms['aux_loss']
        finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = None
        if state.averaged is not None:
            averaged = optax.incremental_update(params, state.averaged, 1 - ema_decay)
        new = (params, stats, opt_state, averaged)
        old = (state.params, state.stats, state.opt_state, state.averaged)
        params, stats, opt_state, averaged = jax.tree.map(
            lambda n, o: jnp.where(finite, n, o), new, old
        )

        values = {
            'loss': total,
            'aux_loss': terms['aux_loss'],
            'grad_norm': grad_norm,
            'skipped': 1.0 - finite,
        }
        fresh = state.step % log_every == 0
        return TrainState(
            step=state.step + 1,
            seed=state.seed,
            params=params,
            stats=stats,
            opt_state=opt_state,
            averaged=averaged,
            running={
                name: jnp.where(fresh, 0.0, state.running[name])
                + (value if name == 'skipped' else jnp.where(finite, value, 0.0))
                for name, value in values.items()
            },
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )

    return train_step


def _mean(total: jax.Array, weight: jax.Array) -> jax.Array:
    """total / weight; 0 where nothing counts."""
    return total / jnp.where(weight > 0, weight, 1.0)


def _shares(labels: jax.Array, class_weights: tuple[float, ...]) -> jax.Array:
    """Share of each microbatch in the weight of all labelled pixels, float32 [accumulate]."""
    weights = losses.label_weights(labels, class_weights).sum((1, 2, 3))
    return _mean(weights, weights.sum())


def deal(batch: dict[str, jax.Array], accumulate: int) -> dict[str, jax.Array]:
    """[b, ...] -> [accumulate, b / accumulate, ...], every microbatch on all devices.

    Item i goes to microbatch i % accumulate, so that each device keeps what it has.
    """
    return {
        name: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }
