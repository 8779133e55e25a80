"""Fields of `config.model` that may be 'auto': what the weights that training starts from imply.

They are replaced by their values before anything else is done, so that a run's `config.json` never
depends on a file that may be gone.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from ggcf_jax import config as config_lib
from ggcf_jax import places
from ggcf_jax.data.records import staging
from ggcf_jax.errors import InputError
from ggcf_jax.models import pretrained
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import config as workdir_config

AUTO = 'auto'
FIELDS = ('model.input', 'model.backbone.stem', 'model.backbone.activation')


def asked(config: ConfigDict) -> list[str]:
    """Returns the dotted names of the fields that are 'auto'.

    Args:
        config: configuration of a run.
    """
    return [name for name in FIELDS if config_lib.get(config, name) == AUTO]


def resolve(config: ConfigDict, workdir: pathlib.Path | None) -> ConfigDict:
    """Returns the configuration with a value for every field that is 'auto'.

    Args:
        config: configuration of a run, which is not changed.
        workdir: directory of the run; one with checkpoints has the values already. None: the
            weights alone are looked at.

    Raises:
        InputError: there are no weights, they cannot be read, or leave a field open.
    """
    names = asked(config)
    if not names:
        return config
    if workdir is not None and checkpoints.exists(workdir):
        found = _of_workdir(workdir)
    else:
        field = 'train.start_from' if config.train.start_from else 'model.backbone.weights'
        source = config_lib.get(config, field)
        if source is None:
            raise InputError(
                f"config.{names[0]}='auto' is what the weights imply, and there are none; give "
                'config.model.backbone.weights or config.train.start_from, or a value'
            )
        path = places.expand(source, f'config.{field}')
        if path.is_dir():
            found = _of_workdir(path)
        else:
            found = pretrained.fields(staging.local(path, f'config.{field}'))
    resolved = workdir_config.from_text(workdir_config.to_text(config))
    for name in names:
        value = found.get(name.removeprefix('model.'))
        if value is None:
            raise InputError(
                f"config.{name}='auto': the weights leave it open; give a value "
                '(docs/pretrained.md)'
            )
        resolved.update_from_flattened_dict({name: value})
    return resolved


def _of_workdir(path: pathlib.Path) -> dict[str, Any]:
    """The same fields of a run."""
    model = workdir_config.load(path).model
    return {
        'input': model.input,
        'backbone.stem': model.backbone.stem,
        'backbone.activation': model.backbone.activation or model.activation,
    }
