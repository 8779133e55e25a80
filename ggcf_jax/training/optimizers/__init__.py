"""Optimisers: one file for each, and the contract that all of them fulfil.

A module here offers its optimisers in a dictionary `OPTIMIZERS`, name -> builder; the name is
`config.train.optimizer`. One of another package is named `my_package.my_module:builder`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import optax
from ml_collections import ConfigDict

# True: all parameters; or a function of the parameters that returns a boolean for each.
Mask = bool | Callable[[optax.Params], Any]


class OptimizerBuilder(Protocol):
    """Builds an optimiser: an entry of `OPTIMIZERS`, or `my_package.my_module:builder`."""

    def __call__(
        self,
        train: ConfigDict,
        learning_rate: optax.Schedule,
        decayed: Mask,
        layerwise: Callable[[optax.GradientTransformation], optax.GradientTransformation],
    ) -> Sequence[optax.GradientTransformation]:
        """Builds the transformations that turn (clipped) gradients into updates, in their order.

        Args:
            train: `config.train`, of which `momentum` and `weight_decay` are meant for optimisers.
            learning_rate: number of updates done -> learning rate.
            decayed: mask of the parameters that weight decay applies to, as
                `optax.add_decayed_weights` takes it.
            layerwise: makes a transformation that takes each array for one layer see every layer by
                itself: equal blocks of a network are stored as one array.
        """
        ...
