"""Polynomial decay, the paper's schedule."""

import optax
from ml_collections import ConfigDict

from ggcf_jax.training.schedules import ScheduleBuilder


def poly(train: ConfigDict, steps: int) -> optax.Schedule:
    """end + (learning_rate - end) * (1 - step / steps) ** poly_power (section 4.1).

    Arguments: `ScheduleBuilder`.
    """
    return optax.polynomial_schedule(
        train.learning_rate, train.end_learning_rate, train.poly_power, steps
    )


SCHEDULES: dict[str, ScheduleBuilder] = {'poly': poly}
