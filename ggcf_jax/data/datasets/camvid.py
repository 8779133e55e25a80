"""CamVid (Brostow, Fauqueur, Cipolla, 2009) in the folder layout of the SegNet tutorial.

`config.data.manual_dir` holds train/ and trainannot/, val/ and valannot/, and optionally test/ and
testannot/: images as jpg or png, labels as PNG of the same name with ids 0..10 and 11 = void.
"""

import contextlib
import functools
import pathlib
from typing import Any

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from ggcf_jax.data.records import contents, prepare, staging
from ggcf_jax.data.records.builder import Record, RecordBuilder, Splits, check_pair
from ggcf_jax.data.records.codec import ONE_BYTE, FileDecoder
from ggcf_jax.data.records.dataset import Dataset, Pair, identity_label_map
from ggcf_jax.errors import InputError

CLASSES = (
    'sky',
    'building',
    'pole',
    'road',
    'pavement',
    'tree',
    'sign',
    'fence',
    'car',
    'pedestrian',
    'bicyclist',
)
COLORS = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
VOID = 11

_DECODER = FileDecoder(identity_label_map(len(CLASSES), VOID), label_form=ONE_BYTE)

_FOLDERS = {'train': 'train', 'validation': 'val', 'test': 'test'}
_LAYOUT = 'train/ + trainannot/ and val/ + valannot/ (test/ + testannot/ if you have it)'


class Builder(RecordBuilder):
    """TFDS builder; its config is named after the files that the data set is made from."""

    name = 'camvid'
    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, pairs: dict[str, list[Pair]], data_dir: str):
        """Names the data set after what its files hold; nothing is prepared yet.

        Args:
            pairs: split name -> image and label files.
            data_dir: folder of prepared data sets.
        """
        self._pairs = pairs
        config = tfds.core.BuilderConfig(name=_fingerprint(pairs, pathlib.Path(data_dir)))
        super().__init__(data_dir=data_dir, config=config)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    'name': tfds.features.Text(),
                    'image': tfds.features.Image(shape=(None, None, 3)),
                    'label': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
                }
            ),
        )

    def records(self) -> contextlib.AbstractContextManager[Splits]:
        """Lists the files, which were checked before."""
        return contextlib.nullcontext(
            {
                split: [
                    Record(image.stem, _size(image, label), functools.partial(_read, image, label))
                    for image, label in pairs
                ]
                for split, pairs in self._pairs.items()
            }
        )


def _size(*paths: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in paths)


def _read(image: pathlib.Path, label: pathlib.Path) -> dict[str, Any]:
    return {'name': image.stem, 'image': image.read_bytes(), 'label': label.read_bytes()}


def build(data: ConfigDict) -> Dataset:
    """Builds the data set.

    Args:
        data: `config.data`; reads `manual_dir` and `data_dir`.

    Raises:
        InputError: `manual_dir` is missing or incomplete, an image has no label, files cannot be
            decoded, sizes differ, or a label value is not in 0..11.
    """
    pairs = find_pairs(data.manual_dir)
    directory = prepare.data_directory(data.data_dir)
    builder = Builder(pairs, data_dir=str(directory))
    if not builder.data_path.exists():
        check_pairs(pairs)
    sources = prepare.prepared_sources(builder)
    return Dataset(
        name='camvid',
        classes=CLASSES,
        colors=COLORS,
        sources=sources,
        decoder=_DECODER,
        identity=builder.info.full_name,
    )


def find_pairs(manual_dir: str | None) -> dict[str, list[Pair]]:
    """Lists the image and label files of each split, without reading them.

    Args:
        manual_dir: folder with the layout above, `config.data.manual_dir`.

    Raises:
        InputError: `manual_dir` is missing or incomplete, or an image has no label.
    """
    if not manual_dir:
        raise InputError(
            'config.data.manual_dir is not set; pass --config.data.manual_dir=DIR, '
            f'the folder that holds {_LAYOUT}'
        )
    root = staging.local(manual_dir, 'config.data.manual_dir')
    if not root.is_dir():
        raise InputError(f'config.data.manual_dir={manual_dir!r} is not a directory')
    pairs = {}
    for split, folder in _FOLDERS.items():
        images, labels = root / folder, root / f'{folder}annot'
        if split == 'test' and not images.is_dir():
            continue
        for needed in (images, labels):
            if not needed.is_dir():
                raise InputError(
                    f'config.data.manual_dir={manual_dir!r} has no folder {needed.name}/; '
                    f'it must hold {_LAYOUT}'
                )
        files = sorted(p for p in images.iterdir() if p.suffix.lower() in ('.jpg', '.png'))
        if not files:
            raise InputError(f'{images} holds no .jpg or .png images')
        missing = [p.name for p in files if not (labels / f'{p.stem}.png').is_file()]
        if missing:
            raise InputError(
                f'{len(missing)} images in {images} have no label in {labels}, '
                f'the first is {missing[0]}'
            )
        pairs[split] = [(p, labels / f'{p.stem}.png') for p in files]
    return pairs


def check_pairs(pairs: dict[str, list[Pair]]) -> None:
    """Decodes every image and label once, before anything is written.

    Args:
        pairs: split name -> image and label files.

    Raises:
        InputError: files cannot be used; the message lists up to ten of them.
    """
    problems = []
    for image, label in (pair for files in pairs.values() for pair in files):
        try:
            check_pair(
                _DECODER,
                image.read_bytes(),
                label.read_bytes(),
                image_name=str(image),
                label_name=str(label),
            )
        except InputError as error:
            problems.append(str(error))
    if problems:
        shown = '\n  '.join(problems[:10])
        raise InputError(f'files that cannot be used ({len(problems)}), among them\n  {shown}')


def _fingerprint(pairs: dict[str, list[Pair]], data_dir: pathlib.Path) -> str:
    """A name that changes with the content of the files, so that they are prepared anew."""
    return contents.combined(
        f'{split} {contents.of_pairs(files, data_dir)}' for split, files in pairs.items()
    )


DATASETS = {'camvid': build}
