"""ADE20K scene parsing (Zhou et al., 2017), 150 classes, from its zip or the folder inside.

TFDS has no builder for these labels (those of its `scene_parse150` differ). Images have any size;
some JPEGs are grey, which decoding turns into RGB.
"""

import contextlib
import csv
import functools
import importlib.resources
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from ml_collections import ConfigDict

from ggcf_jax.data.records import prepare
from ggcf_jax.data.records.builder import Record, RecordBuilder, Splits, check_pair
from ggcf_jax.data.records.codec import IGNORE, NOT_ALLOWED, ONE_BYTE, FileDecoder
from ggcf_jax.data.records.dataset import Color, Dataset, own_ids
from ggcf_jax.data.records.zip_files import Archive, open_zips, origin
from ggcf_jax.errors import InputError

# Number of images as published, by split.
PUBLISHED = {'train': (20_210,), 'validation': (2_000,)}

_ZIP = 'ADEChallengeData2016.zip'
_ROOT = 'ADEChallengeData2016'
_TOPS = {_ZIP: _ROOT}
_WEBSITE = 'http://sceneparsing.csail.mit.edu'
_FOLDERS = {'train': 'training', 'validation': 'validation'}


def _classes() -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Names (first synonyms in objectInfo150.txt) and the colours of the toolkit (color150)."""
    table = importlib.resources.files('ggcf_jax.data.datasets') / 'ade20k_classes.csv'
    rows = list(csv.DictReader(table.read_text(encoding='utf-8').splitlines()))
    colors = tuple((int(row['red']), int(row['green']), int(row['blue'])) for row in rows)
    return tuple(row['name'] for row in rows), colors


CLASSES, COLORS = _classes()


def _label_map() -> UInt8[np.ndarray, '256']:
    """Values 1 to 150 are the classes, in their order."""
    label_map = np.full(256, NOT_ALLOWED, np.uint8)
    label_map[0] = IGNORE  # objects of other classes
    label_map[1 : len(CLASSES) + 1] = np.arange(len(CLASSES))
    return label_map


LABEL_MAP = _label_map()
_DECODER = FileDecoder(LABEL_MAP, label_form=ONE_BYTE)


class Builder(RecordBuilder):
    """TFDS builder of the image and label files in the zip."""

    name = 'ade20k'
    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, manual_dir: str | None, data_dir: str):
        """Names the data set; nothing is read or written yet.

        Args:
            manual_dir: folder of the zip; None if it was prepared before.
            data_dir: folder of prepared data sets.
        """
        self._manual_dir = manual_dir
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    'name': tfds.features.Text(),
                    'image': tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg'),
                    'label': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
                }
            ),
            homepage=_WEBSITE,
        )

    @contextlib.contextmanager
    def records(self) -> Iterator[Splits]:
        """Lists the image and label files of both splits."""
        with open_zips(self._manual_dir, _TOPS, _WEBSITE) as zips:
            yield {split: _records(zips[_ZIP], folder) for split, folder in _FOLDERS.items()}


def _records(archive: Archive, folder: str) -> list[Record]:
    """Pairs the images of a folder with their labels."""
    pattern = re.compile(rf'{_ROOT}/images/{folder}/([^/]+)\.jpg')
    pairs = [
        (match[1], match[0], f'{_ROOT}/annotations/{folder}/{match[1]}.png')
        for match in map(pattern.fullmatch, archive.sizes)
        if match
    ]
    if not pairs:
        raise InputError(
            f'{archive.path} holds no {_ROOT}/images/{folder}/*.jpg; '
            f'is it the file of that name from {_WEBSITE}?'
        )
    missing = [label for _, _, label in pairs if label not in archive.sizes]
    if missing:
        raise InputError(
            f'{archive.path} has no labels for {len(missing)} of its {len(pairs)} images of '
            f'{folder}; the first that is missing is {missing[0]}'
        )
    return [
        Record(
            name,
            archive.sizes[image] + archive.sizes[label],
            functools.partial(_read, name, archive, image, label),
            origin((archive, image), (archive, label)),
        )
        for name, image, label in pairs
    ]


def _read(name: str, archive: Archive, image: str, label: str) -> dict[str, Any]:
    """Reads and checks an image and its label, named by their members in the zip."""
    pixels, ids = archive.read(image), archive.read(label)
    zip_name = archive.path.name
    check_pair(
        _DECODER,
        pixels,
        ids,
        image_name=f'{zip_name}: {image}',
        label_name=f'{zip_name}: {label}',
    )
    return {'name': name, 'image': pixels, 'label': ids}


def _check_names(archive: Archive) -> None:
    """Warns if the zip has a table of classes that differs from the published one."""
    table = f'{_ROOT}/objectInfo150.txt'
    if table not in archive.sizes:
        return
    rows = archive.read(table).decode('utf-8', 'replace').splitlines()[1:]
    # The last column holds synonyms: 'windowpane, window '.
    theirs = [row.rstrip().split('\t')[-1].lower() for row in rows if row.strip()]
    same = [ours in (x.strip() for x in names.split(',')) for ours, names in zip(CLASSES, theirs)]
    if len(theirs) != len(CLASSES) or not all(same):
        print(
            f'warning: {archive.path}: {table} has {len(theirs)} classes and differs from the '
            f'{len(CLASSES)} published ones, whose names are used; is it the file of that name '
            f'from {_WEBSITE}?',
            file=sys.stderr,
        )


def build(data: ConfigDict) -> Dataset:
    """Builds the data set.

    Args:
        data: `config.data`; reads `manual_dir` and `data_dir`.

    Raises:
        InputError: the zip is missing or damaged, an image has no label, files cannot be decoded,
            sizes differ, or a label value is above 150.
    """
    builder = Builder(data.manual_dir, str(prepare.data_directory(data.data_dir)))
    if not builder.data_path.exists():
        with open_zips(data.manual_dir, _TOPS, _WEBSITE) as zips:
            _check_names(zips[_ZIP])
    sources = prepare.prepared_sources(builder)
    prepare.warn_of_counts('ade20k', sources, PUBLISHED)
    return Dataset(
        name='ade20k',
        classes=CLASSES,
        colors=COLORS,
        sources=sources,
        decoder=_DECODER,
        identity=builder.info.full_name,
        ids=own_ids(LABEL_MAP, len(CLASSES)),
    )


DATASETS = {'ade20k': build}
