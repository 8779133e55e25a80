"""Cityscapes (Cordts et al., 2016) from its official zips, fine and coarse annotations.

What is prepared is what TFDS' own builder of this name prepares, stored as array_record: either
program reads the other's. Labels stay raw labelIds on disk and become the 19 trainIds of
cityscapesscripts when they are read.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
from cityscapesscripts.helpers.labels import labels as _LABELS

from ggcf_jax.data.records import prepare
from ggcf_jax.data.records.builder import Record, RecordBuilder, check_pair
from ggcf_jax.data.records.codec import IGNORE, NOT_ALLOWED
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.data.records.zip_files import Zip, open_zips
from ggcf_jax.errors import InputError

_TRAINED = sorted((x for x in _LABELS if 0 <= x.trainId < IGNORE), key=lambda x: x.trainId)
CLASSES = tuple(x.name for x in _TRAINED)
COLORS = tuple(x.color for x in _TRAINED)
CATEGORIES = tuple(x.category for x in _TRAINED)
SERVER_IDS = tuple(x.id for x in _TRAINED)  # of label files for the evaluation server

BROKEN = 'troisdorf_000000_000073'  # its image is all black, with one channel
VERSION = '1.0.0'

_FINE, _COARSE = 'semantic_segmentation', 'semantic_segmentation_extra'
_WEBSITE = 'https://www.cityscapes-dataset.com'
_IMAGES, _EXTRA_IMAGES = 'leftImg8bit_trainvaltest.zip', 'leftImg8bit_trainextra.zip'
# Numbers of images as published, by TFDS config; of train_extra one is left out here.
PUBLISHED = {
    _FINE: {'train': (2975,), 'validation': (500,), 'test': (1525,)},
    _COARSE: {'train_extra': (19_998, 19_997)},
}
# By TFDS config: (split, zip of images, zip of labels, folder in both, root of the labels).
_SPLITS = {
    _FINE: (
        ('train', _IMAGES, 'gtFine_trainvaltest.zip', 'train', 'gtFine'),
        ('validation', _IMAGES, 'gtFine_trainvaltest.zip', 'val', 'gtFine'),
        ('test', _IMAGES, 'gtFine_trainvaltest.zip', 'test', 'gtFine'),
    ),
    _COARSE: (
        ('train', _IMAGES, 'gtCoarse.zip', 'train', 'gtCoarse'),
        ('validation', _IMAGES, 'gtCoarse.zip', 'val', 'gtCoarse'),
        ('train_extra', _EXTRA_IMAGES, 'gtCoarse.zip', 'train_extra', 'gtCoarse'),
    ),
}


def _label_map() -> np.ndarray:
    label_map = np.full(256, NOT_ALLOWED, np.uint8)
    for label in _LABELS:
        # The licence plate's id -1 is 255 in an 8-bit image.
        label_map[label.id % 256] = label.trainId if label in _TRAINED else IGNORE
    return label_map


LABEL_MAP = _label_map()


class Builder(RecordBuilder, skip_registration=True):
    """The official builder's name, configs, version, features and splits, without TensorFlow."""

    name = 'cityscapes'
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name=_FINE, version=VERSION, description='Cityscapes with fine annotations.'
        ),
        tfds.core.BuilderConfig(
            name=_COARSE, version=VERSION, description='Cityscapes with coarse annotations.'
        ),
    ]

    def __init__(self, config: str, manual_dir: str | None, data_dir: str):
        self._manual_dir = manual_dir
        super().__init__(data_dir=data_dir, config=config)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    'image_id': tfds.features.Text(),
                    'image_left': tfds.features.Image(shape=(1024, 2048, 3), encoding_format='png'),
                    'segmentation_label': tfds.features.Image(
                        shape=(1024, 2048, 1), encoding_format='png', use_colormap=True
                    ),
                }
            ),
            homepage=_WEBSITE,
        )

    @contextlib.contextmanager
    def records(self) -> Iterator[dict[str, list[Record]]]:
        splits = _SPLITS[self.builder_config.name]
        names = tuple(dict.fromkeys(name for split in splits for name in split[1:3]))
        with open_zips(self._manual_dir, names, _WEBSITE) as zips:
            yield {
                split: _records(zips[images], zips[labels], folder, root)
                for split, images, labels, folder, root in splits
            }


def _records(images: Zip, labels: Zip, folder: str, root: str) -> list[Record]:
    """Pairs the images of a folder with their labels, by the official names."""
    pattern = re.compile(rf'leftImg8bit/{folder}/([^/]+)/([^/]+)_leftImg8bit\.png')
    pairs = [
        (image_id, match[0], f'{root}/{folder}/{city}/{image_id}_{root}_labelIds.png')
        for match in map(pattern.fullmatch, images.sizes)
        if match
        for city, image_id in [match.groups()]
        if image_id != BROKEN
    ]
    if not pairs:
        raise InputError(
            f'{images.path} holds no leftImg8bit/{folder}/<city>/*_leftImg8bit.png; '
            f'is it the file of that name from {_WEBSITE}?'
        )
    missing = [label for _, _, label in pairs if label not in labels.sizes]
    if missing:
        raise InputError(
            f'{labels.path} has no labels for {len(missing)} of the {len(pairs)} images of '
            f'leftImg8bit/{folder} in {images.path.name}; the first that is missing is {missing[0]}'
        )
    return [
        Record(
            image_id,
            images.sizes[image] + labels.sizes[label],
            functools.partial(_read, image_id, images, image, labels, label),
        )
        for image_id, image, label in pairs
    ]


def _read(image_id: str, images: Zip, image: str, labels: Zip, label: str) -> dict:
    pixels, ids = images.read(image), labels.read(label)
    check_pair(
        pixels, ids, LABEL_MAP, f'{images.path.name}: {image}', f'{labels.path.name}: {label}'
    )
    return {'image_id': image_id, 'image_left': pixels, 'segmentation_label': ids}


class Sources(Mapping):
    """The splits of the fine annotations, and 'train_extra' for those who ask for it.

    'train_extra' can be had if the coarse zips are there or were prepared before. It is prepared
    when it is looked up; only then do iteration and length count it.
    """

    def __init__(self, manual_dir: str | None, data_dir: str):
        """Opens the fine annotations; arguments as for `Builder`."""
        self._manual_dir, self._data_dir = manual_dir, data_dir
        self._open = dict(self._prepared(_FINE))
        if self._builder(_COARSE).data_path.exists():
            self['train_extra']

    def __getitem__(self, split: str) -> prepare.PreparedSource:
        """Raises InputError if the coarse zips are needed and not there."""
        if split == 'train_extra' and split not in self._open:
            there = self._builder(_COARSE).data_path.exists()
            self._open[split] = self._prepared(_COARSE)[split]
            if not there:
                print(f'cityscapes: left {BROKEN} out of train_extra, it was published broken')
        return self._open[split]

    def __contains__(self, split: object) -> bool:
        return split == 'train_extra' or split in self._open

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def _builder(self, config: str) -> Builder:
        return Builder(config, self._manual_dir, self._data_dir)

    def _prepared(self, config: str) -> Mapping[str, prepare.PreparedSource]:
        sources = prepare.prepared_sources(
            self._builder(config), image='image_left', label='segmentation_label', name='image_id'
        )
        prepare.warn_of_counts('cityscapes', sources, PUBLISHED[config])
        return sources


def build(data) -> Dataset:
    """Builds the data set from `config.data` (reads `manual_dir` and `data_dir`).

    Raises:
        InputError: a zip is missing or damaged, an image has no label, files that cannot be
            decoded, sizes that differ, or labels that are no Cityscapes labelIds.
    """
    sources = Sources(data.manual_dir, str(prepare.data_directory(data.data_dir)))
    identity = f'cityscapes {VERSION}'
    return Dataset(
        'cityscapes',
        CLASSES,
        COLORS,
        sources,
        LABEL_MAP,
        identity,
        unlabeled=('test',),
        categories=CATEGORIES,
        server_ids=SERVER_IDS,
    )


DATASETS = {'cityscapes': build}
