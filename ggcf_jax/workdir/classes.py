"""`classes.json`: the classes that a run was trained on.

Prediction needs their names and colours, but not the data set.
"""

import dataclasses
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from ggcf_jax import atomic, data, json_files
from ggcf_jax.data.records.codec import NOT_ALLOWED
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.errors import InputError

FILE_NAME = 'classes.json'


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classes in train-id order.

    Attributes:
        names: name of each class.
        colors: RGB of each class, 0 to 255.
        ids: value of each class in the label files of the data set; () if these are the train ids,
            or if an older run did not save them.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ids: tuple[int, ...] = ()


def save(dataset: Dataset, workdir: pathlib.Path) -> None:
    """Writes `classes.json` into the workdir.

    Args:
        dataset: data set of the run.
        workdir: directory of the run.
    """
    content = {
        'dataset': dataset.name,
        'names': dataset.classes,
        'colors': dataset.colors,
        'ids': dataset.ids,
    }
    atomic.write(workdir / FILE_NAME, json.dumps(content).encode())


def of_run(config: ConfigDict, workdir: pathlib.Path) -> Classes:
    """Reads the classes of a run; for a run that did not save them, takes those of its data set.

    Args:
        config: configuration of the run.
        workdir: directory of the run.

    Raises:
        InputError: the file is damaged; or there is none, and the data set cannot be built.
    """
    path = workdir / FILE_NAME
    if not path.exists():
        dataset = data.build(config.data)
        return Classes(dataset.classes, dataset.colors, dataset.ids)
    try:
        return _parse(path.read_bytes())
    except ValueError as error:
        raise InputError(f'{path} is damaged ({error}); delete it to use the data set') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error


def _parse(text: bytes) -> Classes:
    """Raises ValueError for anything that `save` does not write."""
    content = json_files.parse_object(text)
    names = json_files.need(
        content,
        'names',
        lambda value: json_files.is_list(value, lambda x: json_files.is_text(x) and x),
        'a list of names',
    )
    if not 0 < len(set(names)) == len(names) <= NOT_ALLOWED:
        raise ValueError(f'names are {len(names)}, not 1 to {NOT_ALLOWED} different ones')
    colors = json_files.need(
        content,
        'colors',
        lambda value: json_files.is_list(value, json_files.is_color) and len(value) == len(names),
        f'a list of {len(names)} colours [red, green, blue] in 0..255',
    )
    ids = json_files.need(
        {'ids': []} | content,
        'ids',
        lambda value: _is_ids(value) and len(value) in (0, len(names)),
        f'a list of {len(names)} different label values in 0..65535',
    )
    return Classes(tuple(names), tuple(map(tuple, colors)), tuple(ids))


def _is_ids(value: Any) -> bool:
    return json_files.is_list(value, _is_id) and len(set(value)) == len(value)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**16
