"""Your own images and labels, read in place; `configs/folder.py` shows how to use it.

`class_file` says what the labels mean, `pairing` which label belongs to which image. Paths are
relative to `config.data.manual_dir`.
"""

import hashlib
import pathlib
import sys

from ml_collections import ConfigDict

from ggcf_jax.data.datasets import class_file, pairing
from ggcf_jax.data.datasets.class_file import Classes
from ggcf_jax.data.records import contents, prepare, staging
from ggcf_jax.data.records.codec import FileDecoder
from ggcf_jax.data.records.dataset import Dataset, FileSource, own_ids
from ggcf_jax.errors import InputError

SPLITS = ('train', 'validation', 'test')


def build(data: ConfigDict) -> Dataset:
    """Builds the data set.

    Prints what was left out of the folders, and why.

    Args:
        data: `config.data`; reads `manual_dir`, `data_dir`, `classes`, `ignore`, `label_form`,
            `splits`, `image_endings` and `label_endings`.

    Raises:
        InputError: a folder, list or class file is missing or malformed, or an image has no label.
    """
    if not data.manual_dir:
        raise InputError(
            'config.data.manual_dir is not set; pass --config.data.manual_dir=DIR, the folder that '
            'holds your images, labels and class file'
        )
    root = staging.local(data.manual_dir, 'config.data.manual_dir')
    if not root.is_dir():
        raise InputError(f'config.data.manual_dir={data.manual_dir!r} is not a directory')
    table = class_file.locate(root, data.classes)
    classes = class_file.read(table, tuple(data.ignore))
    if data.label_form == 'colors' and not classes.label_colors:
        raise InputError(
            f"config.data.label_form='colors': {table} must give every class a "
            'colour of its own, in the columns red, green and blue'
        )
    endings = pairing.Endings.parse(data.image_endings, data.label_endings)
    pairs = {}
    for split in SPLITS:
        if data.splits[split]:
            field = f'config.data.splits.{split}'
            pairs[split], notes = pairing.find(root, data.splits[split], field, endings)
            for note in notes:
                print(f'{field}: left out {note}', file=sys.stderr)
    for split in ('train', 'validation'):
        if split not in pairs:
            raise InputError(
                f"config.data.splits.{split} is empty; give 'IMAGES,LABELS' folders or a list file"
            )
    directory = _derived(data.data_dir)
    contents_of = {split: contents.of_pairs(found, directory) for split, found in pairs.items()}
    return Dataset(
        name='folder',
        classes=classes.names,
        colors=classes.colors,
        sources={split: FileSource(pairs[split], contents_of[split]) for split in pairs},
        decoder=FileDecoder(classes.label_map, classes.label_colors, data.label_form),
        identity=_identity(contents_of, classes, data.label_form),
        ids=own_ids(classes.label_map, len(classes.names)),
    )


def _derived(data_dir: str | None) -> pathlib.Path | None:
    """Folder of derived files; None if there is none, which images that are read in place allow."""
    try:
        return prepare.data_directory(data_dir)
    except InputError:  # no home directory
        return None


def _identity(contents_of: dict[str, str], classes: Classes, label_form: str) -> str:
    """A text that changes with the content of the files and with their meaning."""
    digest = hashlib.sha256(classes.label_map.tobytes())
    if classes.label_colors and label_form != 'ids':
        digest.update(f'{label_form} {sorted(classes.label_colors.items())}'.encode())
    digest.update(repr(sorted(contents_of.items())).encode())
    return f'folder/{digest.hexdigest()[:16]}'


DATASETS = {'folder': build}
