"""Half a cosine wave."""

import optax
from ml_collections import ConfigDict

from ggcf_jax.training.schedules import ScheduleBuilder


def cosine(train: ConfigDict, steps: int) -> optax.Schedule:
    """end + (learning_rate - end) * (1 + cos(pi * step / steps)) / 2 (Loshchilov, Hutter, 2017).

    Arguments: `ScheduleBuilder`.
    """
    fall = optax.cosine_decay_schedule(train.learning_rate - train.end_learning_rate, steps)
    return lambda step: train.end_learning_rate + fall(step)


SCHEDULES: dict[str, ScheduleBuilder] = {'cosine': cosine}
