"""A trained model as a folder to give away, which is loaded like the workdir of its run.

    weights.safetensors     parameters and batch statistics by their dotted path, the step
    config.json             the configuration, without directories of the machine it was made on
    classes.json            names, colours and label values of the classes
    card.md                 `card`

Every mode that starts from a trained model takes the folder as --workdir, `ggcf_jax.load` reads it,
and training starts from it (`config.train.start_from`, `config.model.backbone.weights`).
"""

import hashlib
import json
import pathlib
import secrets
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from ggcf_jax import atomic, buckets, json_files, places
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import card
from ggcf_jax.workdir import classes as classes_lib
from ggcf_jax.workdir import config as workdir_config

FILE_NAME = 'weights.safetensors'
FORMAT = 1  # of the file
_ABOUT = 'ggcf_jax'  # the only key of its metadata: safetensors does not order several
_SHOWN = 5  # number of arrays that a message lists


class Weights(NamedTuple):
    """What the file of weights holds.

    Attributes:
        step: number of training steps done.
        arrays: dotted path, which begins with 'params.' or 'stats.', -> array.
    """

    step: int
    arrays: dict[str, np.ndarray]


def is_one(folder: str | pathlib.Path) -> bool:
    """Whether a folder is a released model, rather than the workdir of a run.

    Args:
        folder: the folder.
    """
    return (places.expand(folder) / FILE_NAME).is_file()


def write(
    folder: pathlib.Path,
    weights: Weights,
    *,
    workdir: pathlib.Path,
    config: Any,
    plan: str,
    license_: str,
) -> None:
    """Writes the folder; it is there whole or not at all.

    Args:
        folder: folder to write, replaced if it is a released model.
        weights: arrays and step.
        workdir: workdir that the model comes from.
        config: configuration of the model (`ConfigDict`).
        plan: how the class scores of an image are found.
        license_: licence of the model; '' if nobody has said.

    Raises:
        InputError: the folder holds something else, or a file of the workdir is damaged.
    """
    check(folder)
    metadata = {_ABOUT: json.dumps({'format': FORMAT, 'step': weights.step})}
    contents = {
        FILE_NAME: safetensors.numpy.save(weights.arrays, metadata),
        workdir_config.FILE_NAME: workdir_config.to_text(workdir_config.portable(config)).encode(),
        classes_lib.FILE_NAME: classes_lib.to_text(config, workdir).encode(),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    text = card.of_workdir(workdir, weights.step, plan=plan, files=hashes, license_=license_)
    contents[card.FILE_NAME] = text.encode()
    if isinstance(folder, buckets.BucketPath):
        (folder / FILE_NAME).unlink(missing_ok=True)  # without which it is no released model
        for name in sorted(contents, key=lambda name: name == FILE_NAME):
            atomic.write(folder / name, contents[name])
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    unique = f'.{folder.name}.{secrets.token_hex(4)}'
    new, old = folder.with_name(f'{unique}.part'), folder.with_name(f'{unique}.old')
    new.mkdir()
    try:
        for name, content in contents.items():
            (new / name).write_bytes(content)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check(folder: pathlib.Path) -> None:
    """Refuses to replace anything but a released model or an empty folder.

    Args:
        folder: folder that is going to be written.

    Raises:
        InputError: it is a file, or a folder with something else in it.
    """
    if folder.exists() and not (folder.is_dir() and (is_one(folder) or not any(folder.iterdir()))):
        raise InputError(
            f'--output={folder} exists and is no released model (it has no {FILE_NAME}); give the '
            'name of a new folder'
        )


def read(folder: str | pathlib.Path) -> Weights:
    """Reads the weights.

    Args:
        folder: a released model.

    Raises:
        InputError: the file is damaged, or of a newer format.
    """
    path = places.expand(folder) / FILE_NAME
    try:
        with buckets.fetched(path) as there, safetensors.safe_open(there, 'np') as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error
    except Exception as error:  # safetensors has errors of its own
        raise InputError(
            f'{path} is damaged ({error}); compare its SHA-256 with that of {card.FILE_NAME}'
        ) from error
    try:
        about = json_files.parse_object(metadata.get(_ABOUT, '{}'))
    except ValueError:
        about = {}
    if about.get('format') != FORMAT or not json_files.is_count(about.get('step')):
        raise InputError(
            f'{path} says {metadata} of itself; this version reads format {FORMAT}, which '
            '--mode=export --format=folder writes'
        )
    return Weights(about['step'], arrays)


def load(folder: str | pathlib.Path, tree: Any) -> tuple[int, Any]:
    """Reads the weights as trees.

    Args:
        folder: a released model.
        tree: pytree of shapes, a dictionary of 'params' and 'stats'.

    Returns:
        The step, and a pytree of this structure with host arrays.

    Raises:
        InputError: the file is damaged, or has arrays of another network.
    """
    step, arrays = read(folder)
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    wanted = {name_of(path): leaf for path, leaf in paths}
    different = [
        f'{name}: {_shape(arrays.get(name))} in the file, {_shape(wanted.get(name))} in the network'
        for name in sorted({*wanted, *arrays})
        if _shape(arrays.get(name)) != _shape(wanted.get(name))
    ]
    if different:
        shown = '\n  '.join(different[:_SHOWN])
        raise InputError(
            f'{places.expand(folder) / FILE_NAME} does not fit the network of its config.json and '
            f'classes.json ({len(different)} arrays differ):\n  {shown}\nfetch all files of the '
            'folder again'
        )
    leaves = [arrays[name].astype(leaf.dtype) for name, leaf in wanted.items()]
    return step, jax.tree.unflatten(structure, leaves)


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns arrays by their dotted path as nested dictionaries.

    Args:
        arrays: dotted path -> array.
    """
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = name.split('.')
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = array
    return tree


def name_of(path: tuple[Any, ...]) -> str:
    """The dotted name of a leaf.

    Args:
        path: path of the leaf, as JAX gives it.
    """
    return jax.tree_util.keystr(path, simple=True, separator='.')


def _shape(leaf: Any) -> list[int] | None:
    return None if leaf is None else list(leaf.shape)
