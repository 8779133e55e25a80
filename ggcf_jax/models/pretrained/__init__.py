"""Import of published backbone weights: from a file's tensors to the arrays of a backbone.

`files` reads tensors, `layouts` holds how published files name them, `slots` how our networks
store them. `python -m experiments.inspect_weights FILE` prints what a file contains and which
configuration it fits; docs/pretrained.md lists where files are published.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from ggcf_jax.errors import InputError
from ggcf_jax.models.layers.norm import EPSILON, Norm
from ggcf_jax.models.pretrained import files, layouts, slots

_SHOWN = 10  # names listed of each kind of difference


@dataclasses.dataclass(frozen=True)
class Imported:
    """Arrays for a backbone, read from a published file.

    Attributes:
        arrays: path in the backbone -> array.
        layout: name of the file's layout.
        matched: number of the file's tensors that were used.
        left_out: names of the file's tensors that belong to classifiers and heads.
        inputs: values of `config.model.input` that published files of the layout are used with.
        prefix: what stands before the backbone's names in the file; '' if nothing.
        activation: activation that published files of the layout were trained with.
    """

    arrays: dict[str, Float32[np.ndarray, '...']]
    layout: str
    matched: int
    left_out: tuple[str, ...]
    inputs: tuple[str, ...]
    prefix: str
    activation: str


def fields(path: str | pathlib.Path) -> dict[str, Any]:
    """Returns the fields of `config.model` that fit a published file.

    Args:
        path: a `.safetensors`, `.pth` or `.pt` file.

    Returns:
        Dotted name, without `model.` -> value; None where files of the layout differ.

    Raises:
        InputError: the file cannot be read or matches none of the supported layouts.
    """
    tensors, _, _ = layouts.trunk(files.read(path))
    layout = layouts.detect(tensors, path)
    return layout.describe(tensors) | {
        'backbone.activation': layout.activation,
        'input': layout.trained_input,
    }


def load(path: str | pathlib.Path, shapes: Mapping[str, tuple[int, ...]], norm: Norm) -> Imported:
    """Reads a published file for a backbone.

    Args:
        path: a `.safetensors`, `.pth` or `.pt` file.
        shapes: path in the backbone -> shape, for all its parameters and batch statistics.
        norm: form of the scales of the backbone's norms.

    Raises:
        InputError: the file cannot be read, matches none of the supported layouts, or does not fit
            the backbone; the message lists what is missing, unexpected or of another shape.
    """
    tensors, heads, prefix = layouts.trunk(files.read(path))
    layout = layouts.detect(tensors, path)
    left_out = [name for name in tensors if layout.leaves_out(name)]
    kept = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    where = f'{path} (layout {layout.name})'
    hint = layouts.fields_text(layout.describe(kept))
    matched = len(kept)
    used = dict(layout.convert(kept))
    for name, slot in slots.expand(shapes).items():
        if layout.may_lack(name) and layout.rename(name) not in used:
            identity = 1.0 if name.endswith('.scale') else 0.0
            used[layout.rename(name)] = np.full(slot.shape, identity, np.float32)
    arrays = fill(shapes, used, layout.rename, where=where, hint=f'the file fits {hint}')
    arrays = convert_scales(arrays, source=layout.norm, target=norm, where=where)
    return Imported(
        arrays,
        layout.name,
        matched,
        (*left_out, *heads),
        layout.inputs,
        prefix,
        layout.activation,
    )


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns path (joined by dots) -> shape for every array of a pytree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def fill(
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Float32[np.ndarray, '...']],
    rename: Callable[[str], str],
    *,
    where: str,
    hint: str,
) -> dict[str, Float32[np.ndarray, '...']]:
    """Puts tensors into the arrays of a backbone, stacking those of repeated blocks.

    Args:
        shapes: path in the backbone -> shape.
        tensors: name -> array with our order of axes.
        rename: name of a slot (`slots.expand`) -> name among the tensors.
        where: source of the tensors, for the error message.
        hint: cure to suggest in the error message.

    Returns:
        Path in the backbone -> array.

    Raises:
        InputError: tensors and slots are not one to one, or differ in shape.
    """
    wanted = {rename(name): slot for name, slot in slots.expand(shapes).items()}
    different = [
        f'{name}: {list(tensors[name].shape)} in the file, {list(slot.shape)} in the network'
        for name, slot in wanted.items()
        if name in tensors and tensors[name].shape != slot.shape
    ]
    problems = [
        *_listed('missing', [name for name in wanted if name not in tensors]),
        *_listed('unexpected', [name for name in tensors if name not in wanted]),
        *_listed('of another shape', different),
    ]
    if problems:
        raise InputError(
            '\n  '.join([f'{where} does not fit config.model.backbone:', *problems, hint])
        )
    arrays = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for name, slot in wanted.items():
        arrays[slot.path][slot.index] = tensors[name]
    return arrays


def convert_scales(
    arrays: dict[str, Float32[np.ndarray, '...']], *, source: Norm, target: Norm, where: str
) -> dict[str, Float32[np.ndarray, '...']]:
    """Converts scales from one form of the norm to the other, keeping the network's function.

    Args:
        arrays: path in the backbone -> array.
        source: form that the arrays have.
        target: form to convert to.
        where: source of the arrays, for the error message.

    Returns:
        The arrays, the scales of batch norms converted: those with a running mean beside them.

    Raises:
        InputError: there are negative scales, which 'abs_gamma' cannot express.
    """
    if source == target:
        return arrays
    scales = {
        path: array
        for path, array in arrays.items()
        if path.endswith('.scale') and f'{path.removesuffix("scale")}mean' in arrays
    }
    if target == 'batch_norm':
        return arrays | {
            path: np.abs(array) + np.float32(EPSILON) for path, array in scales.items()
        }
    negative = sum(int((array < 0).sum()) for array in scales.values())
    if negative:
        raise InputError(
            f"{where} has negative scales ({negative}), which config.model.norm='abs_gamma' cannot "
            "express; use 'batch_norm'"
        )
    return arrays | {path: np.maximum(array - EPSILON, 0) for path, array in scales.items()}


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    if not names:
        return []
    more = [f'... and {len(names) - _SHOWN} more'] if len(names) > _SHOWN else []
    return [f'{kind} ({len(names)}):', *(f'  {name}' for name in names[:_SHOWN] + more)]
