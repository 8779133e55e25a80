"""LARS, for large batches."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from ggcf_jax.training.optimizers import Mask, OptimizerBuilder


def kernels(params: optax.Params) -> Any:
    """Masks the kernels of convolutions: False for biases and for the scales of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == 'kernel', params
    )


def lars(
    train: ConfigDict,
    learning_rate: optax.Schedule,
    decayed: Mask,
    layerwise: Callable[[optax.GradientTransformation], optax.GradientTransformation],
) -> Sequence[optax.GradientTransformation]:
    """LARS (You et al., 2017); norms and biases are left out of the layer-wise rate, as usual.

    Arguments: `OptimizerBuilder`.
    """
    return (
        # optax.lars, but for the layers of equal blocks: one flat state, as checkpoints have it.
        optax.chain(
            optax.add_decayed_weights(train.weight_decay, decayed),
            optax.masked(layerwise(optax.scale_by_trust_ratio(trust_coefficient=0.001)), kernels),
            optax.scale_by_learning_rate(learning_rate),
            optax.trace(decay=train.momentum),
        ),
    )


OPTIMIZERS: dict[str, OptimizerBuilder] = {'lars': lars}
