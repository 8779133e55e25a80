"""Losses: one file for each, and the contract that all of them fulfil.

A module here offers its losses in a dictionary `LOSSES`, name -> builder; the name is a term of
`config.train.loss`. One of another package is named `my_package.my_module:builder`. All are
computed in float32, whatever the precision of the network.
"""

from typing import Protocol

from jaxtyping import Array, Float, Float32, Integer
from ml_collections import ConfigDict


class Loss(Protocol):
    """A function of logits and labels that JAX can differentiate with respect to the logits."""

    def __call__(
        self, logits: Float[Array, '*pixels classes'], labels: Integer[Array, '*pixels']
    ) -> tuple[Float32[Array, ''], Float32[Array, '']]:
        """Computes a sum and its normaliser.

        The two are returned apart, so that a mean over devices, processes or accumulated batches
        with different numbers of ignored pixels divides one global sum by the other.

        Args:
            logits: main logits at the resolution of the labels.
            labels: train ids; pixels of `IGNORE` (255) must not count.

        Returns:
            (sum over the pixels or classes that count, sum of their weights); a sum of 0, with zero
            gradients, if every pixel is ignored.
        """
        ...


class LossBuilder(Protocol):
    """Builds a loss from the configuration."""

    def __call__(self, train: ConfigDict, class_weights: tuple[float, ...]) -> Loss:
        """Builds the loss of the main logits.

        Args:
            train: `config.train`; the loss is called on `batch_size / accumulate` images.
            class_weights: weight of each class, or () for 1 each.

        Raises:
            InputError: a field has a value that this loss does not support.
        """
        ...
