"""Stochastic gradient descent with momentum."""

from collections.abc import Callable, Sequence

import optax
from ml_collections import ConfigDict

from ggcf_jax.training.optimizers import Mask, OptimizerBuilder


def sgd(
    train: ConfigDict,
    learning_rate: optax.Schedule,
    decayed: Mask,
    layerwise: Callable[[optax.GradientTransformation], optax.GradientTransformation],
) -> Sequence[optax.GradientTransformation]:
    """SGD as in PyTorch: weight decay comes before the momentum. Arguments: `OptimizerBuilder`."""
    del layerwise
    return (
        optax.add_decayed_weights(train.weight_decay, decayed),
        optax.sgd(learning_rate, momentum=train.momentum),
    )


OPTIMIZERS: dict[str, OptimizerBuilder] = {'sgd': sgd}
