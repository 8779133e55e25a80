"""Polynomial decay, the paper's schedule."""

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ggcf_jax.training.schedules import ScheduleBuilder


def poly(train: ConfigDict, steps: int) -> optax.Schedule:
    """end + (learning_rate - end) * (1 - step / steps) ** poly_power (section 4.1).

    Arguments: `ScheduleBuilder`.
    """
    fall = optax.polynomial_schedule(
        train.learning_rate, train.end_learning_rate, train.poly_power, steps
    )
    # At the end, XLA may find 1 - step * (1 / steps) a little below 0, and its power NaN.
    return lambda step: jnp.where(step < steps, fall(step), train.end_learning_rate)


SCHEDULES: dict[str, ScheduleBuilder] = {'poly': poly}
