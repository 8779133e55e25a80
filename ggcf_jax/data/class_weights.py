"""Weights of the classes in the loss: `config.train.class_weights`.

none            every class weighs 1
cityscapes      the published 19 numbers that OCNet, CCNet, HRNet and openseg train with
data            1 / ln(1.1 + share of the labelled training pixels), after ENet (Paszke et al.,
                2016) with a milder constant; the pixels are counted once and the counts saved
4.1,3.4,...     one number per class
"""

import hashlib
import json
import pathlib

import numpy as np
from jaxtyping import Int64

from ggcf_jax import atomic, json_files, places
from ggcf_jax.data.records import prepare, progress, staging
from ggcf_jax.data.records.dataset import Records
from ggcf_jax.data.scan import scan
from ggcf_jax.errors import InputError

CITYSCAPES = (
    0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip
COUNTED = 'data'
NAMES = ('none', 'cityscapes', COUNTED)


def resolve(
    text: str, records: tuple[Records, ...], data_dir: str | None, threads: int
) -> tuple[float, ...]:
    """Returns the weights that `config.train.class_weights` stands for.

    Args:
        text: value of the field, in one of the forms above.
        records: records that are trained on, whose pixels are counted for 'data'.
        data_dir: `config.data.data_dir`, the folder that the counts for 'data' are saved in.
        threads: number of threads that decode labels.

    Returns:
        One number per class, or () for 'none'.

    Raises:
        InputError: an unknown name, or a number of weights other than that of classes.
    """
    dataset = records[0].dataset
    if text == 'none':
        return ()
    if text == COUNTED:
        pixels = _pixels(records, counts_file(records, prepare.data_directory(data_dir)), threads)
        return tuple((1 / np.log(1.1 + pixels / pixels.sum())).tolist())
    weights = CITYSCAPES if text == 'cityscapes' else parse(text)
    if len(weights) != dataset.num_classes:
        count = '1 value' if len(weights) == 1 else f'{len(weights)} values'
        raise InputError(
            f'config.train.class_weights={text!r} has {count}, but data set {dataset.name!r} has '
            f"{dataset.num_classes} classes; give one value for each class, or 'none'"
        )
    return weights


def parse(text: str) -> tuple[float, ...]:
    """Parses weights that are given as numbers.

    Args:
        text: value of the field, such as '4.1,3.4'.

    Returns:
        The numbers, or () for one of `NAMES`.

    Raises:
        InputError: neither one of `NAMES` nor numbers that are not negative.
    """
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


def counts_file(records: tuple[Records, ...], directory: pathlib.Path) -> pathlib.Path:
    """The file in which the pixels of the classes are counted for 'data'.

    Args:
        records: records that are trained on.
        directory: folder of prepared data sets.
    """
    dataset, splits = records[0].dataset, _splits(records)
    counts = [len(dataset.source(split)) for split in splits]
    identity = f'{dataset.identity_of(*splits)} {splits} {counts}'
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return directory / 'ggcf_jax_class_pixels' / f'{digest}.json'


def _splits(records: tuple[Records, ...]) -> list[str]:
    return sorted({split for part in records for split in part.splits})


def _pixels(
    records: tuple[Records, ...], path: pathlib.Path, threads: int
) -> Int64[np.ndarray, ' classes']:
    """Number of labelled training pixels of each class, read from a file if it is there."""
    staging.pull(path)
    if (saved := _read(path, records[0].dataset.num_classes)) is not None:
        return saved
    places.check_writable(path.parent, prepare.FIELD)
    dataset, splits = records[0].dataset, _splits(records)
    pixels = np.zeros(dataset.num_classes, np.int64)
    for split in splits:
        total = len(dataset.source(split))
        with progress.shown('counting classes in', 'counted', split, total) as advance:
            counted = scan(dataset, split, threads, advance)
        if counted.problems:
            raise InputError(f'classes cannot be counted: {counted.problems[0]}')
        pixels += counted.pixels
    if not pixels.any():
        raise InputError(f'no labelled pixel in {"+".join(splits)}; nothing to train on')
    with places.writing(path, prepare.FIELD):
        atomic.write(path, json.dumps({'pixels': pixels.tolist()}).encode())
        staging.push(path)
    return pixels


def _read(path: pathlib.Path, num_classes: int) -> Int64[np.ndarray, ' classes'] | None:
    """The saved counts; None where there are none, or damaged ones, which are counted again."""
    try:
        content = json_files.parse_object(path.read_bytes())
        pixels = json_files.need(
            content,
            'pixels',
            lambda x: json_files.is_list(x, json_files.is_count) and len(x) == num_classes,
            f'a list of {num_classes} numbers of pixels',
        )
    except (OSError, ValueError):
        return None
    return np.array(pixels, np.int64) if sum(pixels) else None
