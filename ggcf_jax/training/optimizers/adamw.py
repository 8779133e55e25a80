"""AdamW: Adam with decoupled weight decay."""

from collections.abc import Callable, Sequence

import optax
from ml_collections import ConfigDict

from ggcf_jax.training.optimizers import Mask, OptimizerBuilder


def adamw(
    train: ConfigDict,
    learning_rate: optax.Schedule,
    decayed: Mask,
    layerwise: Callable[[optax.GradientTransformation], optax.GradientTransformation],
) -> Sequence[optax.GradientTransformation]:
    """AdamW (Loshchilov and Hutter, 2019) as in PyTorch.

    `train.momentum` is the decay of the mean of the gradients (beta 1), `train.adamw` has that of
    their squares (beta 2) and epsilon. Arguments: `OptimizerBuilder`.
    """
    del layerwise
    return (
        optax.adamw(
            learning_rate,
            b1=train.momentum,
            b2=train.adamw.beta2,
            eps=train.adamw.epsilon,
            weight_decay=train.weight_decay,
            mask=decayed,
        ),
    )


OPTIMIZERS: dict[str, OptimizerBuilder] = {'adamw': adamw}
