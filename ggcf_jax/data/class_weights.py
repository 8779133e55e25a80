"""Weights of the classes in the loss, by name.

none            every class weighs 1
cityscapes      the published 19 numbers that OCNet, CCNet, HRNet and openseg train with
data            1 / ln(1.1 + share of the labelled training pixels), after ENet (Paszke et al.,
                2016) with a milder constant; computed once and kept
4.1,3.4,...     one number a class
"""

import hashlib
import json
import os
import pathlib

import numpy as np

from ggcf_jax.data.mixture import Records
from ggcf_jax.data.scan import scan
from ggcf_jax.errors import InputError

CITYSCAPES = (
    0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip
NAMES = ('none', 'cityscapes', 'data')


def resolve(
    text: str, records: tuple[Records, ...], directory: pathlib.Path, threads: int
) -> tuple[float, ...]:
    """The weights that `config.train.class_weights` means.

    Args:
        text: see above.
        records: what is trained on, counted for 'data'.
        directory: where the counts are kept. threads: that count.

    Returns:
        One number a class, or () for none.

    Raises:
        InputError: an unknown name, or not one number a class.
    """
    dataset = records[0].dataset
    if text == 'none':
        return ()
    if text == 'data':
        pixels = _pixels(records, directory, threads)
        return tuple((1 / np.log(1.1 + pixels / pixels.sum())).tolist())
    weights = CITYSCAPES if text == 'cityscapes' else parse(text)
    if len(weights) != dataset.num_classes:
        raise InputError(
            f'config.train.class_weights={text!r} has {len(weights)} value'
            f'{"s" if len(weights) > 1 else ""}, but data set {dataset.name!r} has '
            f"{dataset.num_classes} classes; give one value for each class, or 'none'"
        )
    return weights


def parse(text: str) -> tuple[float, ...]:
    """The numbers of '4.1,3.4,...'; () for one of the names."""
    if text in NAMES:
        return ()
    try:
        weights = tuple(float(number) for number in text.split(','))
    except ValueError:
        weights = (-1.0,)
    if not all(0 <= weight < float('inf') for weight in weights):
        raise InputError(
            f'config.train.class_weights={text!r} is not one of {", ".join(NAMES)}, nor one '
            'non-negative number for each class, such as 1.0,2.5,0.8'
        )
    return weights


def _pixels(records: tuple[Records, ...], directory: pathlib.Path, threads: int) -> np.ndarray:
    """Labelled training pixels by class, int64 [C]."""
    dataset = records[0].dataset
    splits = sorted({split for part in records for split in part.splits})
    counts = [len(dataset.source(split)) for split in splits]
    digest = hashlib.sha256(f'{dataset.identity} {splits} {counts}'.encode()).hexdigest()[:16]
    path = directory / 'ggcf_jax_class_pixels' / f'{digest}.json'
    if path.exists():
        return np.array(json.loads(path.read_text()), np.int64)
    pixels = np.zeros(dataset.num_classes, np.int64)
    for split in splits:
        look = scan(dataset, split, threads)
        if look.problems:
            raise InputError(f'classes cannot be counted: {look.problems[0]}')
        pixels += look.pixels
    if not pixels.any():
        raise InputError(f'no labelled pixel in {"+".join(splits)}; nothing can be trained')
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f'.{os.getpid()}.tmp')
    temporary.write_text(json.dumps(pixels.tolist()))
    os.replace(temporary, path)
    return pixels
