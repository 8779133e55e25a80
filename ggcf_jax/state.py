"""Everything that training needs to continue."""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ggcf_jax.models import Segmenter


@flax.struct.dataclass
class TrainState:
    """The training state: one pytree, one checkpoint.

    Attributes:
        step: int32, number of steps done; the whole state of the data pipeline.
        seed: uint32, of data order, augmentation and dropout.
        params: float32 parameters.
        stats: float32 running batch statistics.
        opt_state: of the optimiser.
        running: sums of the training metrics since they were last reported.
        skipped: int32, steps left out since the last good one because they were not finite.
    """

    step: jax.Array
    seed: jax.Array
    params: nnx.State
    stats: nnx.State
    opt_state: optax.OptState
    running: dict[str, jax.Array]
    skipped: jax.Array


RUNNING = ('loss', 'aux_loss', 'grad_norm', 'skipped')


def split(model: Segmenter) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a model into (graphdef, params, stats); `merge` puts it together again."""
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.as_pure(params), nnx.as_pure(stats)


def merge(graphdef: nnx.GraphDef, params: nnx.State, stats: nnx.State) -> Segmenter:
    """A model of its own over these arrays, usable inside `jax.jit`."""
    return nnx.merge(graphdef, params, stats, copy=True)


def create(model: Segmenter, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """The state at step 0 of a freshly initialised model."""
    _, params, stats = split(model)
    return TrainState(
        step=jnp.int32(0),
        seed=jnp.uint32(seed),
        params=params,
        stats=stats,
        opt_state=tx.init(params),
        running={name: jnp.float32(0) for name in RUNNING},
        skipped=jnp.int32(0),
    )
