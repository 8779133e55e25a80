"""The parameters that training starts from: random ones, except for a pretrained backbone.

`config.model.backbone.weights` is a published file (`models.pretrained`), or a ggcf_jax workdir
whose best checkpoint provides the backbone.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ggcf_jax import models
from ggcf_jax.models import pretrained
from ggcf_jax.models.layers.norm import Norm
from ggcf_jax.training.state import TrainState
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import config as workdir_config

_BACKBONE = 'backbone.'


def check(config: ConfigDict) -> None:
    """Reads the weights and compares them with the network, before anything expensive is done.

    Args:
        config: configuration of the run.

    Raises:
        InputError: the weights cannot be read or do not fit.
    """
    if config.model.backbone.weights is not None:
        _, params, stats = models.abstract(config, num_classes=1)
        _read(config, _backbone_shapes((params, stats)), report=lambda line: None)


def with_weights(
    config: ConfigDict, state: TrainState, report: Callable[[str], None] = print
) -> TrainState:
    """Replaces the backbone of a fresh state by `config.model.backbone.weights`, if there are any.

    Args:
        config: configuration of the run.
        state: state at step 0, the same on every process.
        report: called with one line that says what was read.

    Raises:
        InputError: the weights cannot be read or do not fit.
    """
    if config.model.backbone.weights is None:
        return state
    trees = (state.params, state.stats)
    arrays = _read(config, _backbone_shapes(trees), report)

    def replace(path: tuple, leaf: jax.Array) -> jax.Array:
        name = _name(path)
        if name is None:
            return leaf
        return jax.device_put(arrays[name].astype(leaf.dtype), leaf.sharding)

    params, stats = jax.tree_util.tree_map_with_path(replace, trees)
    ema_params = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, stats=stats, ema_params=ema_params)


def _read(
    config: ConfigDict, shapes: dict[str, tuple[int, ...]], report: Callable[[str], None]
) -> dict[str, np.ndarray]:
    path = pathlib.Path(config.model.backbone.weights)
    if path.is_dir():
        return _read_workdir(path, shapes, config.model.norm, report)
    imported = pretrained.load(path, shapes, config.model.norm)
    left_out = f'; left out {len(imported.left_out)} of heads' if imported.left_out else ''
    report(f'{path}: {imported.layout}, {imported.matched} tensors into the backbone{left_out}')
    return imported.arrays


def _read_workdir(
    path: pathlib.Path,
    shapes: dict[str, tuple[int, ...]],
    norm: Norm,
    report: Callable[[str], None],
) -> dict[str, np.ndarray]:
    model = workdir_config.load(path).model
    restored = checkpoints.restore_as_saved(path)
    trees = (restored.params, restored.stats)
    saved = {
        name: np.asarray(leaf)
        for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(trees)
        if (name := _name(leaf_path)) is not None
    }
    where = f'{path} (checkpoint {restored.step})'
    tensors = {
        name: saved[slot.path][slot.index]
        for name, slot in pretrained.slots.expand({n: a.shape for n, a in saved.items()}).items()
    }
    hint = f'its backbone is {model.backbone.name} of width {model.backbone.width}'
    arrays = pretrained.fill(shapes, tensors, lambda name: name, where=where, hint=hint)
    report(f'{where}: {len(tensors)} arrays into the backbone')
    return pretrained.convert_scales(arrays, source=model.norm, target=norm, where=where)


def _backbone_shapes(trees: Any) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
        if (name := _name(path)) is not None
    }


def _name(path: tuple) -> str | None:
    """Path inside the backbone of a leaf of (params, stats); None for the rest of the network."""
    name = jax.tree_util.keystr(path[1:], simple=True, separator='.')
    return name.removeprefix(_BACKBONE) if name.startswith(_BACKBONE) else None
