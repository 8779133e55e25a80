"""One optimiser step: loss, gradients, update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ggcf_jax.losses import cross_entropy
from ggcf_jax.models.upsample import upsample
from ggcf_jax.state import TrainState, merge, split


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    *,
    aux_weight: float,
    class_weights: tuple[float, ...],
    accumulate: int,
    log_every: int,
) -> Callable[[TrainState, dict[str, jax.Array]], TrainState]:
    """Builds the step function, to be compiled with `jax.jit`.

    The loss is the global sum of the pixels' cross entropies over the global number (weight) of
    the pixels that count, for the main and the auxiliary logits at the labels' resolution. Under a
    mesh this and the batch norms are global, so any number of devices computes the same step.

    A step whose loss or gradients are not finite leaves parameters, statistics and optimiser
    untouched and is counted in `state.skipped`.

    Args:
        graphdef: of the model.
        tx: the optimiser.
        aux_weight: weight of the auxiliary loss.
        class_weights: weight of each class in both losses, () for equal ones.
        accumulate: number of microbatches; gradients are summed over them, batch statistics are
            those of one microbatch at a time.
        log_every: `state.running` starts anew after this many steps.
    """

    def loss_sums(params, stats, batch, key):
        model = merge(graphdef, params, stats)
        logits, aux_logits = model(batch['image'], train=True, key=key)
        labels = batch['label']
        full = [upsample(x, model.stride, labels.shape[1:]) for x in (logits, aux_logits)]
        (loss, count), (aux_loss, _) = (cross_entropy(x, labels, class_weights) for x in full)
        # A constant keeps the sum's gradients near one in bfloat16; the mean is taken outside.
        scale = 1 / labels.size
        sums = {'loss': loss * scale, 'aux_loss': aux_loss * scale, 'count': count * scale}
        return sums['loss'] + aux_weight * sums['aux_loss'], (sums, split(model)[2])

    def add_microbatch(carry, inputs):
        params, (grads, sums, stats) = carry
        batch, key = inputs
        (_, (new_sums, stats)), new_grads = jax.value_and_grad(loss_sums, has_aux=True)(
            params, stats, batch, key
        )
        grads, sums = jax.tree.map(jnp.add, (grads, sums), (new_grads, new_sums))
        return (params, (grads, sums, stats)), None

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> TrainState:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        keys = jax.random.split(key, accumulate)
        zeros = (
            jax.tree.map(jnp.zeros_like, state.params),
            {name: jnp.float32(0) for name in ('loss', 'aux_loss', 'count')},
            state.stats,
        )
        if accumulate == 1:
            (_, (grads, sums, stats)), _ = add_microbatch((state.params, zeros), (batch, keys[0]))
        else:
            (_, (grads, sums, stats)), _ = jax.lax.scan(
                add_microbatch, (state.params, zeros), (deal(batch, accumulate), keys)
            )
        count = jnp.where(sums['count'] > 0, sums['count'], 1.0)
        grads = jax.tree.map(lambda g: g / count, grads)
        grad_norm = optax.global_norm(grads)
        loss = (sums['loss'] + aux_weight * sums['aux_loss']) / count
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = (params, stats, opt_state)
        old = (state.params, state.stats, state.opt_state)
        params, stats, opt_state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        values = {
            'loss': loss,
            'aux_loss': sums['aux_loss'] / count,
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
            running={
                name: jnp.where(fresh, 0.0, state.running[name])
                + (value if name == 'skipped' else jnp.where(finite, value, 0.0))
                for name, value in values.items()
            },
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )

    return train_step


def deal(batch: dict[str, jax.Array], accumulate: int) -> dict[str, jax.Array]:
    """[b, ...] -> [accumulate, b / accumulate, ...], every microbatch on all devices.

    Item i goes to microbatch i % accumulate, so that each device keeps what it has.
    """
    return {
        name: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }
