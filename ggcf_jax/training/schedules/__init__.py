"""Schedules of the learning rate: one file for each, and the contract that all of them fulfil.

A module here offers its schedules in a dictionary `SCHEDULES`, name -> builder; the name is
`config.train.schedule`. One of another package is named `my_package.my_module:builder`.
"""

from typing import Protocol

import optax
from ml_collections import ConfigDict


class ScheduleBuilder(Protocol):
    """Builds a schedule: an entry of `SCHEDULES`, or `my_package.my_module:builder`."""

    def __call__(self, train: ConfigDict, steps: int) -> optax.Schedule:
        """Builds the schedule that follows the warm-up.

        Args:
            train: `config.train`, of which `learning_rate` is meant for the first step and
                `end_learning_rate` for the time after the last one.
            steps: number of steps without the warm-up, at least 1.

        Returns:
            Number of steps done since the warm-up -> learning rate, to be computed by JAX; also
            for more than `steps`.
        """
        ...
