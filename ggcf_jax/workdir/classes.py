"""`classes.json`: the classes that a run was trained on.

Prediction needs their names and colours, but not the data set.
"""

import dataclasses
import json
import pathlib

from ml_collections import ConfigDict

from ggcf_jax import atomic, data
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.errors import InputError

FILE_NAME = 'classes.json'


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classes in train-id order.

    Attributes:
        names: name of each class.
        colors: RGB of each class, 0 to 255.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]


def save(dataset: Dataset, workdir: pathlib.Path) -> None:
    """Writes `classes.json` into the workdir.

    Args:
        dataset: data set of the run.
        workdir: directory of the run.
    """
    content = {'dataset': dataset.name, 'names': dataset.classes, 'colors': dataset.colors}
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
        return Classes(dataset.classes, dataset.colors)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        return Classes(tuple(content['names']), tuple(map(tuple, content['colors'])))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path} is damaged ({error}); delete it to use the data set') from error
