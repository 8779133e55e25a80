"""One learning rate throughout."""

import optax
from ml_collections import ConfigDict

from ggcf_jax.training.schedules import ScheduleBuilder


def constant(train: ConfigDict, steps: int) -> optax.Schedule:
    """`learning_rate` at every step. Arguments: `ScheduleBuilder`."""
    del steps
    return optax.constant_schedule(train.learning_rate)


SCHEDULES: dict[str, ScheduleBuilder] = {'constant': constant}
