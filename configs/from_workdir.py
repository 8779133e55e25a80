"""The configuration that a run was started with: --config=configs/from_workdir.py:WORKDIR."""

from ml_collections import ConfigDict

from ggcf_jax import places
from ggcf_jax.workdir import config


def get_config(workdir: str) -> ConfigDict:
    return config.load(places.expand(workdir))
