"""The configuration that a run was started with: --config=configs/from_workdir.py:WORKDIR."""

import pathlib

from ml_collections import ConfigDict

from ggcf_jax.workdir import config


def get_config(workdir: str) -> ConfigDict:
    return config.load(pathlib.Path(workdir))
