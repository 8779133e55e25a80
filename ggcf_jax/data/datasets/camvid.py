"""CamVid in the folder layout of the SegNet tutorial (Brostow, Fauqueur, Cipolla, 2009).

`config.data.manual_dir` holds train/ and trainannot/, val/ and valannot/, and optionally test/ and
testannot/: images as jpg or png, labels as PNG of the same name with ids 0..10 and 11 = void.
"""

import contextlib
import functools
import hashlib
import pathlib

import tensorflow_datasets as tfds

from ggcf_jax.data.records import codec, prepare
from ggcf_jax.data.records.builder import Record, RecordBuilder
from ggcf_jax.data.records.dataset import Dataset, identity_label_map
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
LABEL_MAP = identity_label_map(len(CLASSES), VOID)

_FOLDERS = {'train': 'train', 'validation': 'val', 'test': 'test'}
_LAYOUT = 'train/ + trainannot/ and val/ + valannot/ (test/ + testannot/ if you have it)'


class Builder(RecordBuilder, skip_registration=True):
    """TFDS builder; its config is named after the files it was made from."""

    name = 'camvid'
    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, pairs: dict[str, list[tuple[pathlib.Path, pathlib.Path]]], data_dir: str):
        self._pairs = pairs
        config = tfds.core.BuilderConfig(name=_fingerprint(pairs))
        super().__init__(data_dir=data_dir, config=config)

    def _info(self):
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

    def records(self):
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


def _read(image: pathlib.Path, label: pathlib.Path) -> dict:
    return {'name': image.stem, 'image': image.read_bytes(), 'label': label.read_bytes()}


def build(data) -> Dataset:
    """Builds the data set from `config.data` (reads `manual_dir` and `data_dir`).

    Raises:
        InputError: `manual_dir` missing or incomplete, an image without its label, files that
            cannot be decoded, sizes that differ, or label values other than 0..11.
    """
    pairs = find_pairs(data.manual_dir)
    directory = prepare.data_directory(data.data_dir)
    builder = Builder(pairs, data_dir=str(directory))
    if not builder.data_path.exists():
        check_pairs(pairs)
    sources = prepare.prepared_sources(builder)
    return Dataset('camvid', CLASSES, COLORS, sources, LABEL_MAP, builder.info.full_name)


def find_pairs(manual_dir: str | None) -> dict[str, list[tuple[pathlib.Path, pathlib.Path]]]:
    """Lists (image, label) files by split, without reading them."""
    if not manual_dir:
        raise InputError(
            'config.data.manual_dir is not set; pass --config.data.manual_dir=DIR, '
            f'the folder that holds {_LAYOUT}'
        )
    root = pathlib.Path(manual_dir).expanduser()
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


def check_pairs(pairs: dict[str, list[tuple[pathlib.Path, pathlib.Path]]]) -> None:
    """Decodes every pair once, before anything is written, and refuses what training would."""
    problems = []
    for image_path, label_path in (pair for files in pairs.values() for pair in files):
        try:
            image = codec.decode_image(image_path.read_bytes(), str(image_path))
            raw = codec.decode_label(label_path.read_bytes(), str(label_path))
            codec.map_labels(raw, LABEL_MAP, str(label_path))
            codec.check_sizes(image, raw, str(image_path))
        except InputError as error:
            problems.append(str(error))
    if problems:
        shown = '\n  '.join(problems[:10])
        raise InputError(f'{len(problems)} files cannot be used, among them\n  {shown}')


def _fingerprint(pairs: dict[str, list[tuple[pathlib.Path, pathlib.Path]]]) -> str:
    """A name that changes with the files' names, sizes and times: changed data is made anew."""
    digest = hashlib.sha256()
    for split, files in pairs.items():
        for path in (path for pair in files for path in pair):
            stat = path.stat()
            digest.update(f'{split}/{path.name} {stat.st_size} {stat.st_mtime_ns}\n'.encode())
    return digest.hexdigest()[:12]


DATASETS = {'camvid': build}
