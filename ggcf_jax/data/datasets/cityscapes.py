"""Cityscapes (Cordts et al., 2016), fine and coarse annotations, from its zips or their folders.

The prepared data set is the one of the TFDS builder of this name, stored as array_record, so that
each program reads what the other prepared. Labels stay raw labelIds on disk and become the 19
trainIds of cityscapesscripts when they are read. Where label images are missing, they are drawn
from the polygons, as cityscapesscripts draws them.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import labels as _LABELS
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from jaxtyping import UInt8
from ml_collections import ConfigDict

from ggcf_jax.data.records import prepare
from ggcf_jax.data.records.builder import Record, RecordBuilder, Splits, check_pair
from ggcf_jax.data.records.codec import IGNORE, MAX_PIXELS, NOT_ALLOWED, ONE_BYTE, FileDecoder
from ggcf_jax.data.records.dataset import Dataset, EncodedRecord, PreparedSource, own_ids
from ggcf_jax.data.records.zip_files import Archive, Zip, open_zips, origin
from ggcf_jax.errors import InputError

_TRAINED = sorted((x for x in _LABELS if 0 <= x.trainId < IGNORE), key=lambda x: x.trainId)
CLASSES = tuple(x.name for x in _TRAINED)
COLORS = tuple(x.color for x in _TRAINED)
CATEGORIES = tuple(x.category for x in _TRAINED)
SERVER_IDS = tuple(x.id for x in _TRAINED)  # label values of the evaluation server

BROKEN = 'troisdorf_000000_000073'  # its image is all black, with one channel
VERSION = '1.0.0'

_FINE, _COARSE = 'semantic_segmentation', 'semantic_segmentation_extra'
_WEBSITE = 'https://www.cityscapes-dataset.com'
_IMAGES, _EXTRA_IMAGES = 'leftImg8bit_trainvaltest.zip', 'leftImg8bit_trainextra.zip'
# Number of images as published, by TFDS config; we leave one out of train_extra.
PUBLISHED: dict[str, dict[str, tuple[int, ...]]] = {
    _FINE: {'train': (2975,), 'validation': (500,), 'test': (1525,)},
    _COARSE: {'train_extra': (19_998, 19_997)},
}


class _Files(NamedTuple):
    """Where the files of a split lie.

    Attributes:
        images: zip of the images.
        labels: zip of the labels.
        folder: folder of the split, in both zips.
        annotation: top folder of the labels, which is also part of their names.
    """

    images: str
    labels: str
    folder: str
    annotation: str


_FILES = {
    _FINE: {
        'train': _Files(_IMAGES, 'gtFine_trainvaltest.zip', 'train', 'gtFine'),
        'validation': _Files(_IMAGES, 'gtFine_trainvaltest.zip', 'val', 'gtFine'),
        'test': _Files(_IMAGES, 'gtFine_trainvaltest.zip', 'test', 'gtFine'),
    },
    _COARSE: {
        'train': _Files(_IMAGES, 'gtCoarse.zip', 'train', 'gtCoarse'),
        'validation': _Files(_IMAGES, 'gtCoarse.zip', 'val', 'gtCoarse'),
        'train_extra': _Files(_EXTRA_IMAGES, 'gtCoarse.zip', 'train_extra', 'gtCoarse'),
    },
}


def _label_map() -> UInt8[np.ndarray, '256']:
    """labelIds -> trainIds, as cityscapesscripts defines them."""
    label_map = np.full(256, NOT_ALLOWED, np.uint8)
    for label in _LABELS:
        # The id -1 of licence plates is 255 in an 8-bit image.
        label_map[label.id % 256] = label.trainId if label in _TRAINED else IGNORE
    return label_map


LABEL_MAP = _label_map()
_DECODER = FileDecoder(LABEL_MAP, label_form=ONE_BYTE)


class Builder(RecordBuilder):
    """Has the name, configs, version, features and splits of the TFDS builder of Cityscapes."""

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
        """Names the data set; nothing is read or written yet.

        Args:
            config: TFDS config: fine or coarse annotations.
            manual_dir: folder of the zips; None if it was prepared before.
            data_dir: folder of prepared data sets.
        """
        self._manual_dir = manual_dir
        super().__init__(data_dir=data_dir, config=config)

    def _info(self) -> tfds.core.DatasetInfo:
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
    def records(self) -> Iterator[Splits]:
        """Lists the image and label files of all splits."""
        splits = _FILES[self.builder_config.name]
        tops: dict[str, str] = {}
        for files in splits.values():
            tops |= {files.images: 'leftImg8bit', files.labels: files.annotation}
        with open_zips(self._manual_dir, tops, _WEBSITE) as zips:
            yield {
                split: _records(zips[files.images], zips[files.labels], files)
                for split, files in splits.items()
                if not _is_left_out(split, zips, files)
            }


def _is_left_out(split: str, zips: Mapping[str, Archive], files: _Files) -> bool:
    """Whether a test split was not unpacked: its labels are empty, and many delete it."""
    images, labels = zips[files.images], zips[files.labels]
    if split != 'test' or isinstance(images, Zip) or isinstance(labels, Zip):
        return False
    is_there = all(
        any(name.startswith(f'{top}/{files.folder}/') for name in archive.sizes)
        for archive, top in ((images, 'leftImg8bit'), (labels, files.annotation))
    )
    if not is_there:
        print(f'cityscapes: {images.path} has no test images with labels; that split is left out')
    return not is_there


def _records(images: Archive, labels: Archive, files: _Files) -> list[Record]:
    """Pairs the images of a split with their labels, by the official names."""
    folder, annotation = files.folder, files.annotation
    pattern = re.compile(rf'leftImg8bit/{folder}/([^/]+)/([^/]+)_leftImg8bit\.png')
    pairs = [
        (image_id, match[0], f'{annotation}/{folder}/{city}/{image_id}_{annotation}_labelIds.png')
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
    drawn = [label for _, _, label in pairs if label not in labels.sizes]
    missing = [label for label in drawn if _polygons(label) not in labels.sizes]
    if drawn and not missing:
        print(
            f'cityscapes: {len(drawn)} of {len(pairs)} label images of {annotation}/{folder} are '
            'missing; they are drawn from the polygons, as cityscapesscripts does'
        )
        pairs = [
            (image_id, image, label if label in labels.sizes else _polygons(label))
            for image_id, image, label in pairs
        ]
    if missing:
        raise InputError(
            f'{labels.path} has no labels for {len(missing)} of the {len(pairs)} images of '
            f'leftImg8bit/{folder} in {images.path.name}, nor their polygons; the first that is '
            f'missing is {missing[0]}'
        )
    return [
        Record(
            image_id,
            images.sizes[image] + labels.sizes[label],
            functools.partial(_read, image_id, images, image, labels, label),
            origin((images, image), (labels, label)),
        )
        for image_id, image, label in pairs
    ]


def _polygons(label: str) -> str:
    """The file of polygons beside a label image."""
    return label.replace('_labelIds.png', '_polygons.json')


def _read(
    image_id: str, images: Archive, image: str, labels: Archive, label: str
) -> dict[str, Any]:
    """Reads and checks an image and its label, named by their members in the zips."""
    pixels, ids = images.read(image), labels.read(label)
    if label.endswith('.json'):
        ids = _draw(ids, f'{labels.path.name}: {label}')
    check_pair(
        _DECODER,
        pixels,
        ids,
        image_name=f'{images.path.name}: {image}',
        label_name=f'{labels.path.name}: {label}',
    )
    return {'image_id': image_id, 'image_left': pixels, 'segmentation_label': ids}


def _draw(polygons: bytes, name: str) -> bytes:
    """The label image of the polygons of an image, as a PNG of labelIds."""
    annotation = Annotation()
    try:
        annotation.fromJsonText(polygons.decode('utf-8'))
        size = annotation.imgHeight, annotation.imgWidth
        if not (size[0] > 0 and size[1] > 0 and size[0] * size[1] <= MAX_PIXELS):
            raise ValueError(f'the image has {size[0]} x {size[1]} pixels')
        label = np.asarray(createLabelImage(annotation, 'ids'))
    except (Exception, SystemExit) as error:  # it exits on labels that it does not know
        raise InputError(
            f'{name}: the polygons cannot be drawn ({type(error).__name__}: {error}); download '
            f'them again from {_WEBSITE}'
        ) from error
    return cv2.imencode('.png', label)[1].tobytes()


class CoarseImages:
    """The split train_extra: 20,000 coarsely annotated images, prepared when they are first read.

    Few runs want them, and they need further zips and about 55 GB.
    """

    def __init__(self, manual_dir: str | None, data_dir: str):
        """Remembers where the images are; nothing is read yet.

        Args:
            manual_dir: folder of the zips; None if they were prepared before.
            data_dir: folder of prepared data sets.
        """
        self._manual_dir, self._data_dir = manual_dir, data_dir

    @functools.cached_property
    def _records(self) -> PreparedSource:
        builder = Builder(_COARSE, self._manual_dir, self._data_dir)
        is_new = not builder.data_path.exists()
        records = _prepared(builder)['train_extra']
        if is_new:
            print(f'cityscapes: left {BROKEN} out of train_extra, it was published broken')
        return records

    @property
    def made_from(self) -> str:
        """Text that changes with the files that the images were prepared from."""
        return self._records.made_from

    def __len__(self) -> int:
        """Returns the number of images; InputError if they need zips that are missing."""
        return len(self._records)

    def __getitem__(self, index: int) -> EncodedRecord:
        return self._records[index]


def _prepared(builder: Builder) -> dict[str, PreparedSource]:
    """Prepares and opens one kind of annotations."""
    sources = prepare.prepared_sources(
        builder, image='image_left', label='segmentation_label', name='image_id'
    )
    prepare.warn_of_counts('cityscapes', sources, PUBLISHED[builder.builder_config.name])
    return sources


def build(data: ConfigDict) -> Dataset:
    """Builds the data set, with fine annotations in all splits but train_extra.

    Args:
        data: `config.data`; reads `manual_dir` and `data_dir`.

    Raises:
        InputError: a zip is missing or damaged, an image has no label, files cannot be decoded,
            sizes differ, or labels are not Cityscapes labelIds.
    """
    data_dir = str(prepare.data_directory(data.data_dir))
    fine = _prepared(Builder(_FINE, data.manual_dir, data_dir))
    return Dataset(
        name='cityscapes',
        classes=CLASSES,
        colors=COLORS,
        sources={**fine, 'train_extra': CoarseImages(data.manual_dir, data_dir)},
        decoder=_DECODER,
        identity=f'cityscapes {VERSION}',
        unlabeled=('test',),
        categories=CATEGORIES,
        server_ids=SERVER_IDS,
        ids=own_ids(LABEL_MAP, len(CLASSES)),
    )


DATASETS = {'cityscapes': build}
