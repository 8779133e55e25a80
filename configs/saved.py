"""The configuration that a run was started with: --config=configs/saved.py:WORKDIR."""

from ml_collections import ConfigDict

from ggcf_jax import config


def get_config(workdir: str) -> ConfigDict:
    return config.load(workdir)
