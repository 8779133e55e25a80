"""Your own images and label PNGs, read in place; `configs/folder.py` shows how to use it.

A split is a pair of folders, 'IMAGES,LABELS', whose files are matched by their name without the
extension, or a list file with one 'image label' pair per line. Paths are relative to
`config.data.manual_dir`.
"""

import colorsys
import csv
import hashlib
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from ggcf_jax.data.records.codec import IGNORE, NOT_ALLOWED, FileDecoder
from ggcf_jax.data.records.dataset import Color, Dataset, FileSource, Pair, own_ids
from ggcf_jax.errors import InputError

# Extensions of image files, in lower case.
IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
SPLITS = ('train', 'validation', 'test')


def build(data: ConfigDict) -> Dataset:
    """Builds the data set.

    Args:
        data: `config.data`; reads `manual_dir`, `classes`, `ignore` and `splits`.

    Raises:
        InputError: a folder, list or class file is missing or malformed, or an image has no label.
    """
    if not data.manual_dir:
        raise InputError(
            'config.data.manual_dir is not set; pass --config.data.manual_dir=DIR, the folder that '
            'holds your images, labels and class file'
        )
    root = pathlib.Path(data.manual_dir).expanduser()
    if not root.is_dir():
        raise InputError(f'config.data.manual_dir={data.manual_dir!r} is not a directory')
    classes = read_classes(root / data.classes, tuple(data.ignore))
    pairs = {
        split: find_pairs(root, data.splits[split], f'config.data.splits.{split}')
        for split in SPLITS
        if data.splits[split]
    }
    for split in ('train', 'validation'):
        if split not in pairs:
            raise InputError(
                f"config.data.splits.{split} is empty; give 'IMAGES,LABELS' folders or a list file"
            )
    sources = {split: FileSource(found) for split, found in pairs.items()}
    return Dataset(
        name='folder',
        classes=classes.names,
        colors=classes.colors,
        sources=sources,
        decoder=FileDecoder(classes.label_map),
        identity=_identity(pairs, classes.label_map),
        ids=own_ids(classes.label_map, len(classes.names)),
    )


def find_pairs(root: pathlib.Path, text: str, field: str) -> list[Pair]:
    """Lists the (image, label) files of a split, without reading them.

    Args:
        root: folder that paths are relative to.
        text: value of the field: 'IMAGES,LABELS' folders, or a list file.
        field: field of the configuration, for error messages.

    Raises:
        InputError: a folder or file that does not exist, an image without label, or no images.
    """
    pairs = _from_folders(root, text, field) if ',' in text else _from_list(root, text, field)
    if not pairs:
        raise InputError(
            f'{field}={text!r}: no images found; supported extensions: {", ".join(IMAGES)}'
        )
    return pairs


def _from_folders(root: pathlib.Path, text: str, field: str) -> list[Pair]:
    """The pairs of two folders, sorted by name."""
    folders = [root / part.strip() for part in text.split(',')]
    if len(folders) != 2:
        raise InputError(f"{field}={text!r} must be two folders, 'IMAGES,LABELS', or a list file")
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f'{field}={text!r}: {folder} is not a directory')
    images = by_stem((p for p in folders[0].rglob('*') if p.suffix.lower() in IMAGES), folders[0])
    labels = by_stem((p for p in folders[1].rglob('*.png')), folders[1])
    alone = sorted(images.keys() - labels.keys())
    if alone:
        raise InputError(
            f'{field}={text!r}: {len(alone)} of {len(images)} images have no label, the first is '
            f'{images[alone[0]]}; its label would be {folders[1] / alone[0]}.png'
        )
    return [(images[stem], labels[stem]) for stem in sorted(images)]


def by_stem(files: Iterable[pathlib.Path], folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns path relative to the folder, without extension -> file.

    Args:
        files: files inside the folder.
        folder: folder that the names are relative to.

    Raises:
        InputError: two files differ in their extension alone.
    """
    found: dict[str, pathlib.Path] = {}
    for path in files:
        stem = path.relative_to(folder).with_suffix('').as_posix()
        if stem in found:
            raise InputError(
                f'{found[stem]} and {path} have the same name up to the extension; rename or '
                'remove one'
            )
        found[stem] = path
    return found


def _from_list(root: pathlib.Path, text: str, field: str) -> list[Pair]:
    """The pairs of a list file, in its order."""
    path = root / text
    if not path.is_file():
        raise InputError(
            f"{field}={text!r}: {path} is not a file; give 'IMAGES,LABELS' folders or a list file"
        )
    pairs: list[Pair] = []
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        if not line.strip() or line.startswith('#'):
            continue
        # Names with spaces are separated by a tab or comma.
        separator = next((s for s in ('\t', ',') if s in line), None)
        parts = [part.strip() for part in line.split(separator)]
        if len(parts) != 2:
            raise InputError(f"{path}:{number}: {line!r} is not 'image label'")
        pair = (root / parts[0], root / parts[1])
        for file in pair:
            if not file.is_file():
                raise InputError(f'{path}:{number}: there is no file {file}')
        pairs.append(pair)
    return pairs


class Classes(NamedTuple):
    """What the class file says.

    Attributes:
        names: name of each class.
        colors: RGB colour of each class.
        label_map: label value -> index of its class, `IGNORE` or `NOT_ALLOWED`.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    label_map: UInt8[np.ndarray, '256']


def read_classes(path: pathlib.Path, ignore: tuple[int, ...]) -> Classes:
    """Reads the class file.

    A text file has one name per line: the n-th, counted from 0, is label value n. A .csv file has
    the column name, optionally red, green and blue (0..255), and optionally ids, the label values
    of the class separated by spaces (several values may become one class).

    Args:
        path: path of the class file.
        ignore: label values of pixels without class, `config.data.ignore`.

    Raises:
        InputError: the file is missing or malformed, or names or label values are used twice.
    """
    if not path.is_file():
        raise InputError(f'config.data.classes: there is no file {path}')
    with path.open(encoding='utf-8-sig', newline='') as file:
        if path.suffix.lower() == '.csv':
            rows = list(csv.DictReader(file, skipinitialspace=True))
        else:
            rows = [{'name': line.strip()} for line in file if line.strip()]
    if not rows or 'name' not in rows[0]:
        raise InputError(f'{path}: no classes; write one name a line, or a CSV with a column name')
    if len(rows) > NOT_ALLOWED:
        raise InputError(f'{path}: {len(rows)} classes; at most {NOT_ALLOWED} fit 8-bit labels')
    names = tuple((row['name'] or '').strip() for row in rows)
    for name in names:
        if not name or names.count(name) > 1:
            raise InputError(f'{path}: class name {name!r} is empty or duplicated')
    return Classes(names, _colors(path, rows), _label_map(path, rows, ignore))


def _colors(path: pathlib.Path, rows: list[dict[str, str]]) -> tuple[Color, ...]:
    """The colours of the file, or colours that are easy to tell apart."""
    colors: list[Color] = []
    for i, row in enumerate(rows):
        if 'red' in rows[0]:
            red, green, blue = (
                _byte(path, row, channel, row.get(channel)) for channel in ('red', 'green', 'blue')
            )
        else:
            # Steps of the golden ratio: hues of neighbours differ, however many there are.
            hue = 0.618034 * i % 1
            red, green, blue = (round(255 * x) for x in colorsys.hsv_to_rgb(hue, 0.65, 0.9))
        colors.append((red, green, blue))
    return tuple(colors)


def _label_map(
    path: pathlib.Path, rows: list[dict[str, str]], ignore: tuple[int, ...]
) -> UInt8[np.ndarray, '256']:
    """Label values of the column ids, or the row numbers, and those to ignore."""
    label_map = np.full(256, NOT_ALLOWED, np.uint8)
    for value in ignore:
        if not 0 <= value <= 255:
            raise InputError(f'config.data.ignore={ignore} must hold values in 0..255')
        label_map[value] = IGNORE
    for index, row in enumerate(rows):
        ids = str(index) if 'ids' not in row else row['ids'] or ''
        if not ids.split():
            raise InputError(f'{path}: class {row["name"]!r} has no ids')
        for text in ids.split():
            value = _byte(path, row, 'ids', text)
            if label_map[value] != NOT_ALLOWED:
                raise InputError(
                    f'{path}: label value {value} of class {row["name"]!r} belongs to another '
                    f'class or to config.data.ignore={ignore} already'
                )
            label_map[value] = index
    return label_map


def _byte(path: pathlib.Path, row: dict[str, str], column: str, text: str | None) -> int:
    """The number that a cell holds."""
    if text is None or not text.strip().isdigit() or int(text) > 255:
        raise InputError(f'{path}: {column} {text!r} of class {row["name"]!r} is not in 0..255')
    return int(text)


def _identity(pairs: dict[str, list[Pair]], label_map: np.ndarray) -> str:
    """A text that changes with names, sizes and times of the files and with the label map."""
    digest = hashlib.sha256(label_map.tobytes())
    for split, files in pairs.items():
        for path in (path for pair in files for path in pair):
            stat = path.stat()
            digest.update(f'{split}/{path} {stat.st_size} {stat.st_mtime_ns}\n'.encode())
    return f'folder/{digest.hexdigest()[:16]}'


DATASETS = {'folder': build}
