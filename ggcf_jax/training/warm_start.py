"""The parameters that training starts from: random ones, a pretrained backbone, or a whole network.

`config.model.backbone.weights` is a published file (`models.pretrained`), or a ggcf_jax workdir
whose best checkpoint provides the backbone. `config.train.start_from` is a workdir whose best
checkpoint provides the whole network.
"""

import dataclasses
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ggcf_jax import models, places
from ggcf_jax.data.records import staging
from ggcf_jax.errors import InputError
from ggcf_jax.models import pretrained
from ggcf_jax.models.layers.norm import Norm
from ggcf_jax.training.state import TrainState
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import classes as classes_lib
from ggcf_jax.workdir import config as workdir_config

_BACKBONE = 'backbone.'
_CLASSIFIERS = ('classifier.', 'aux_classifier.')
# What a network is taken from.
_WHOLE = 'give the workdir of a run, or a model that --mode=export --format=folder wrote'

_T = TypeVar('_T')


def check(config: ConfigDict) -> None:
    """Reads the weights and compares them with the network, before anything expensive is done.

    Args:
        config: configuration of the run.

    Raises:
        InputError: the weights cannot be read or do not fit.
    """
    _, params, stats = models.abstract(config, num_classes=1)
    _arrays(config, _shapes((params, stats)), lambda line: None, classes=None)


def with_weights(
    config: ConfigDict,
    state: TrainState,
    report: Callable[[str], None] = print,
    *,
    classes: Sequence[str] = (),
) -> TrainState:
    """Replaces the parameters of a fresh state by those that the configuration names, if any.

    Args:
        config: configuration of the run.
        state: state at step 0, the same on every process.
        report: called with a line that says what was read, and with a warning if it is usually
            used with another `config.model.input`.
        classes: names of the classes. Classifiers are taken from `config.train.start_from` only
            where its run has the same ones.

    Raises:
        InputError: the weights cannot be read or do not fit.
    """
    trees = (state.params, state.stats)
    arrays = _arrays(config, _shapes(trees), report, classes=classes)
    if not arrays:
        report(_from_scratch(config))
        return state

    def replace(path: tuple, leaf: jax.Array) -> jax.Array:
        name = _name(path)
        if name not in arrays:
            return leaf
        return jax.device_put(arrays[name].astype(leaf.dtype), leaf.sharding)

    params, stats = jax.tree_util.tree_map_with_path(replace, trees)
    ema_params = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    ema_stats = None if state.ema_stats is None else jax.tree.map(jnp.copy, stats)
    return dataclasses.replace(
        state, params=params, stats=stats, ema_params=ema_params, ema_stats=ema_stats
    )


def _arrays(
    config: ConfigDict,
    shapes: dict[str, tuple[int, ...]],
    report: Callable[[str], None],
    *,
    classes: Sequence[str] | None,
) -> dict[str, np.ndarray]:
    """The arrays that do not start from random values, by their name in the network."""
    weights, whole = config.model.backbone.weights, config.train.start_from
    if weights is not None and whole is not None:
        raise InputError(
            f'config.train.start_from={whole!r} has a backbone of its own; leave '
            f'config.model.backbone.weights={weights!r} out'
        )
    if whole is not None:
        return _read_network(
            places.expand(whole, 'config.train.start_from'), config, shapes, report, classes
        )
    if weights is None:
        return {}
    inside = {
        name.removeprefix(_BACKBONE): shape
        for name, shape in shapes.items()
        if name.startswith(_BACKBONE)
    }
    return {_BACKBONE + name: array for name, array in _read(config, inside, report).items()}


def _read(
    config: ConfigDict, shapes: dict[str, tuple[int, ...]], report: Callable[[str], None]
) -> dict[str, np.ndarray]:
    path = places.expand(config.model.backbone.weights, 'config.model.backbone.weights')
    if path.is_dir():
        _check_place(path, 'config.model.backbone.weights')
        return _read_workdir(path, shapes, config.model.norm, report)
    path = staging.local(path, 'config.model.backbone.weights')
    if _is_exported(path):
        raise InputError(
            f'config.model.backbone.weights={str(path)!r} is a file of exported programs; {_WHOLE}'
        )
    imported = pretrained.load(path, shapes, config.model.norm)
    left_out = f'; left out {len(imported.left_out)} of heads' if imported.left_out else ''
    prefix = f' without the prefix {imported.prefix}' if imported.prefix else ''
    report(
        f'{path}: {imported.layout}, {imported.matched} tensors{prefix} into the backbone{left_out}'
    )
    if config.model.input not in imported.inputs:
        report(
            f'warning: such files are trained with config.model.input='
            f'{" or ".join(map(repr, imported.inputs))}, this run has {config.model.input!r}'
        )
    activation = config.model.backbone.activation or config.model.activation
    has_choice = imported.activation not in ('relu6', 'gelu')  # what has no other
    if has_choice and activation != imported.activation:
        report(
            'warning: such files are trained with config.model.backbone.activation='
            f'{imported.activation!r}, this run has {activation!r}'
        )
    return imported.arrays


def _from_scratch(config: ConfigDict) -> str:
    text = 'from scratch, random parameters'
    if expected := config.model.backbone.expected_weights:
        text += (
            f'; the figures of this recipe need {expected}: --config.model.backbone.weights=FILE '
            '(docs/pretrained.md)'
        )
    return text


def _read_workdir(
    path: pathlib.Path,
    shapes: dict[str, tuple[int, ...]],
    norm: Norm,
    report: Callable[[str], None],
) -> dict[str, np.ndarray]:
    where, saved = _saved(path)
    inside = _within(_BACKBONE, saved)
    arrays, count = _fill_backbone(path, where, inside, shapes, norm)
    report(f'{where}: {count} arrays into the backbone')
    return arrays


def _read_network(
    path: pathlib.Path,
    config: ConfigDict,
    shapes: dict[str, tuple[int, ...]],
    report: Callable[[str], None],
    classes: Sequence[str] | None,
) -> dict[str, np.ndarray]:
    """The arrays of a whole network; `classes` None checks them without those of classifiers."""
    if not path.is_dir():
        if path.is_file():
            raise InputError(f'config.train.start_from={str(path)!r} is a file; {_WHOLE}')
        raise InputError(
            f'config.train.start_from={str(path)!r}: there is no such folder; {_WHOLE}'
        )
    _check_place(path, 'config.train.start_from')
    there = workdir_config.load(path)
    where, saved = _saved(path)
    same = classes is not None and tuple(classes) == classes_lib.of_run(there, path).names
    wanted = {n: s for n, s in shapes.items() if same or not n.startswith(_CLASSIFIERS)}
    norm = config.model.norm
    backbone, _ = _fill_backbone(
        path, where, _within(_BACKBONE, saved), _within(_BACKBONE, wanted), norm
    )
    others = {n: x for n, x in saved.items() if n in wanted and not n.startswith(_BACKBONE)}
    different = [
        f'{name}: {_shape(others.get(name))} there, {list(shape)} here'
        for name, shape in wanted.items()
        if not name.startswith(_BACKBONE)
        and (name not in others or others[name].shape != tuple(shape))
    ]
    if different:
        listed = '\n  '.join(different[:10])
        raise InputError(
            f'{where} does not fit config.model ({len(different)} arrays differ):\n  {listed}\n'
            'use the model fields of its config.json, or config.model.backbone.weights for the '
            'backbone alone'
        )
    others = pretrained.convert_scales(others, source=there.model.norm, target=norm, where=where)
    drawn = '' if same else '; the classifiers are drawn anew, since the classes differ'
    if classes is not None:
        report(f'{where}: the whole network of {len(wanted)} arrays{drawn}')
    return {_BACKBONE + name: array for name, array in backbone.items()} | others


def _check_place(path: pathlib.Path, field: str) -> None:
    """Refuses a folder inside of a run, such as a checkpoint, and names the run."""
    name = workdir_config.FILE_NAME
    runs = [p for p in path.absolute().parents[:2] if (p / name).is_file()]
    if runs and not (path / name).exists():
        raise InputError(
            f'{field}={str(path)!r} lies inside of a run; give its workdir, {str(runs[0])!r}, of '
            'which the best checkpoint is taken'
        )


def _is_exported(path: pathlib.Path) -> bool:
    """Whether a file is one of programs, as `--mode=export` writes it; PyTorch's are zips, too."""
    try:
        with zipfile.ZipFile(path) as file:
            return {'metadata.json', 'weights.npz'} <= set(file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _saved(path: pathlib.Path) -> tuple[str, dict[str, np.ndarray]]:
    """The arrays of a run's best checkpoint by their name, and what messages call it."""
    restored = checkpoints.restore_as_saved(path)
    trees = (restored.params, restored.stats)
    arrays = {
        _name(leaf_path): np.asarray(leaf)
        for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    }
    return f'{path} (checkpoint {restored.step})', arrays


def _fill_backbone(
    path: pathlib.Path,
    where: str,
    saved: dict[str, np.ndarray],
    shapes: dict[str, tuple[int, ...]],
    norm: Norm,
) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of a backbone, however its blocks are stacked, and how many it has unstacked."""
    model = workdir_config.load(path).model
    tensors = {
        name: saved[slot.path][slot.index]
        for name, slot in pretrained.slots.expand({n: a.shape for n, a in saved.items()}).items()
    }
    hint = f'its backbone is {model.backbone.name} of width {model.backbone.width}'
    arrays = pretrained.fill(shapes, tensors, lambda name: name, where=where, hint=hint)
    arrays = pretrained.convert_scales(arrays, source=model.norm, target=norm, where=where)
    return arrays, len(tensors)


def _within(prefix: str, tree: dict[str, _T]) -> dict[str, _T]:
    return {n.removeprefix(prefix): each for n, each in tree.items() if n.startswith(prefix)}


def _shapes(trees: Any) -> dict[str, tuple[int, ...]]:
    return {
        _name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    }


def _shape(array: np.ndarray | None) -> str:
    return 'nothing' if array is None else str(list(array.shape))


def _name(path: tuple) -> str:
    """Path in the network of a leaf of (params, stats)."""
    return jax.tree_util.keystr(path[1:], simple=True, separator='.')
