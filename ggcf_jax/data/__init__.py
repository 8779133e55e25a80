"""Data sets and the input pipeline."""

import sys

from ggcf_jax import named
from ggcf_jax.data.dataset import Dataset


def build(data) -> Dataset:
    """Builds the data set that `config.data.name` names.

    Raises:
        InputError: an unknown name, or whatever that data set finds wrong with `config.data`.
    """
    return named.find(sys.modules[__name__], 'DATASETS', data.name, 'config.data.name')(data)
