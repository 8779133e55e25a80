"""The contract of a data set: classes, colours and splits of encoded images and labels.

A data set is one function, name -> `Dataset`: in a file of `data/datasets/`, which offers it in a
dictionary `DATASETS`, or outside this repository, where the configuration names it as
`--config.data.name=my_package.my_module:build`:

    def build(data):  # config.data; see `DatasetBuilder`
        root = pathlib.Path(data.manual_dir)
        return Dataset(
            name='leaves',
            classes=('soil', 'leaf'),
            colors=((120, 80, 40), (60, 180, 60)),
            sources={
                split: FileSource(
                    [
                        (image, root / split / 'labels' / f'{image.stem}.png')
                        for image in sorted((root / split / 'images').glob('*.jpg'))
                    ]
                )
                for split in ('train', 'validation')
            },
            decoder=FileDecoder(identity_label_map(2, ignore=255)),
            identity='leaves 1.0',
        )

Images that do not lie in files of their own need a `RecordSource`, formats other than image files
with PNG labels a `Decoder`. Neither has to inherit from anything here.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from ggcf_jax.data.records import codec
from ggcf_jax.data.records.codec import IGNORE, NOT_ALLOWED, WindowedImage
from ggcf_jax.data.records.finder import name_of, printable
from ggcf_jax.data.records.shards import Shards, prepare_again
from ggcf_jax.errors import InputError

Color = tuple[int, int, int]
Pair = tuple[pathlib.Path, pathlib.Path]  # image file, label file


class EncodedRecord(TypedDict):
    """An image and its label as they are stored.

    Attributes:
        name: name of the image, unique in its split if predictions of the split are to be written.
        image: bytes that `Decoder.image` decodes.
        label: bytes that `Decoder.label` decodes; may be missing in splits of
            `Dataset.unlabeled`.
        image_file: where the image comes from, for error messages; its name if missing.
        label_file: where the label comes from, for error messages; the name if missing.
    """

    name: str
    image: bytes
    label: NotRequired[bytes]
    image_file: NotRequired[str]
    label_file: NotRequired[str]


class OpenedExample(TypedDict):
    """A record whose label is decoded, and whose image is at least a window at a time.

    Attributes:
        name: name of the image.
        image: [h, w, 3] RGB; slicing it gives decoded pixels.
        label: train ids.
    """

    name: str
    image: WindowedImage
    label: UInt8[np.ndarray, 'h w']


class Example(TypedDict):
    """A decoded record.

    Attributes:
        name: name of the image.
        image: RGB pixels.
        label: train ids.
    """

    name: str
    image: UInt8[np.ndarray, 'h w 3']
    label: UInt8[np.ndarray, 'h w']


class RecordSource(Protocol):
    """Random access to the encoded records of a split.

    It is read by several threads at once, and pickled for worker processes. The order of the
    records must be the same in every process and at every start.
    """

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def __getitem__(self, index: int, /) -> EncodedRecord:
        """Reads a record.

        Args:
            index: index of the record, from 0.

        Raises:
            IndexError: `index` is `len(self)` or more.
            InputError: the record cannot be read; the message names the file.
        """
        ...


class Decoder(Protocol):
    """Turns the bytes of a record into pixels. It is pickled for worker processes.

    `codec.FileDecoder` decodes image files with PNG labels. Every method gets the encoded bytes
    and the name of the record, and raises InputError, with the name in the message, if the bytes
    cannot be decoded.
    """

    def image(self, data: bytes, name: str) -> WindowedImage:
        """Decodes an image: uint8 [h, w, 3] RGB, or an object that decodes windows of it.

        Args:
            data: `image` of the record.
            name: name of the record.
        """
        ...

    def label(self, data: bytes, name: str) -> UInt8[np.ndarray, 'h w']:
        """Decodes a label to train ids: 0 .. number of classes - 1, or `IGNORE`.

        Args:
            data: `label` of the record.
            name: name of the record.
        """
        ...

    def label_size(self, data: bytes, name: str) -> tuple[int, int]:
        """Returns (height, width) of a label, if possible without decoding it.

        Args:
            data: `label` of the record.
            name: name of the record.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A segmentation data set.

    Attributes:
        name: name that messages, prepared copies and workdirs show.
        classes: class names in train-id order; at most 254.
        colors: (red, green, blue) of each class, 0..255.
        sources: split name -> records. Training reads the splits of `config.data.train_split`,
            evaluation 'validation' and, if asked to, any other.
        decoder: decodes the records of all splits.
        identity: text that changes when the records or the label map do, but for what an attribute
            `made_from` of a source tells of its records. Files derived from the data set (compact
            copy, class index, class counts) and evaluations are named after both (`identity_of`).
        unlabeled: splits whose labels are not usable, such as those of a test server.
        categories: category of each class, whose IoU is then reported as well; () for none.
        server_ids: label value of each class in files for the evaluation server of the data set;
            () if there is no server.
        ids: label value of each class in the label files of the data set, the lowest where several
            mean one class; () if these are the train ids.

    Raises:
        InputError: a list that does not have one entry per class.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    sources: Mapping[str, RecordSource]
    decoder: Decoder
    identity: str
    unlabeled: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    server_ids: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.classes)
        if not 0 < count <= NOT_ALLOWED:
            raise InputError(
                f'data set {self.name!r} has {count} classes; 1 to {NOT_ALLOWED} fit 8-bit labels'
            )
        for field in ('colors', 'categories', 'server_ids', 'ids'):
            values = getattr(self, field)
            if len(values) != count and (values or field == 'colors'):
                raise InputError(
                    f'data set {self.name!r}: {field} must have one entry per class, {count} '
                    f'instead of {len(values)}'
                )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def source(self, split: str) -> RecordSource:
        """Returns the records of a split.

        Args:
            split: name of the split.

        Raises:
            InputError: there is no such split; the message names those that exist.
        """
        if split not in self.sources:
            raise InputError(
                f'data set {self.name!r} has no split {split!r}; it has {", ".join(self.sources)}'
            )
        return self.sources[split]

    def identity_of(self, *splits: str) -> str:
        """The identity of the data set and of what the records of some splits are made from.

        Args:
            splits: names of the splits.

        Raises:
            InputError: there is no such split.
        """
        origins = (getattr(self.source(split), 'made_from', '') for split in splits)
        return ' '.join([self.identity, *filter(None, origins)])

    def check_labeled(self, split: str, purpose: str) -> None:
        """Refuses a split without usable labels.

        Args:
            split: name of the split.
            purpose: what the labels are needed for; completes "cannot be ...".

        Raises:
            InputError: the split is one of `unlabeled`.
        """
        if split in self.unlabeled:
            raise InputError(
                f'split {split!r} of data set {self.name!r} cannot be {purpose}: its labels are '
                'withheld; only the evaluation server of the data set scores predictions of it, '
                f'which --mode=predict --input={split} --output=DIR writes'
            )

    def decode(self, record: EncodedRecord) -> Example:
        """Decodes a record.

        Args:
            record: record of one of the sources.

        Raises:
            InputError: an image or label that cannot be decoded, sizes that differ, or a label
                value that the data set does not have; the message names the record.
        """
        opened = self.open(record)
        return {
            'name': opened['name'],
            'image': opened['image'][:, :],
            'label': opened['label'],
        }

    def open(self, record: EncodedRecord) -> OpenedExample:
        """Decodes the label of a record and opens its image, of which windows can be decoded.

        Args:
            record: record of one of the sources.

        Raises:
            InputError: as `decode`.
        """
        image, label = self.open_image(record), self.decode_label(record)
        codec.check_sizes(image, label, record.get('image_file', record['name']))
        return {'name': record['name'], 'image': image, 'label': label}

    def open_image(self, record: EncodedRecord) -> WindowedImage:
        """Opens the image of a record: `image[rows, columns]` gives decoded pixels.

        Args:
            record: record of one of the sources.
        """
        return self.decoder.image(record['image'], record.get('image_file', record['name']))

    def decode_label(self, record: EncodedRecord) -> UInt8[np.ndarray, 'h w']:
        """Decodes the label of a record to train ids, without its image.

        Args:
            record: record of one of the sources.
        """
        return self.decoder.label(record['label'], record.get('label_file', record['name']))

    def label_size(self, record: EncodedRecord) -> tuple[int, int]:
        """Returns (height, width) of the label of a record.

        Args:
            record: record of one of the sources.
        """
        return self.decoder.label_size(record['label'], record.get('label_file', record['name']))


class DatasetBuilder(Protocol):
    """Builds a data set from the configuration."""

    def __call__(self, data: ConfigDict, /) -> Dataset:
        """Builds the data set, preparing on disk what has to be prepared.

        Args:
            data: `config.data`. `manual_dir` is the folder with the user's files, `data_dir` that
                of prepared data (`prepare.data_directory`); both may be None. A recipe adds fields
                for code of your own inside `with config.unlocked():`.

        Raises:
            InputError: something in the configuration or the files is wrong; the message says
                what to do about it.
        """
        ...


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Records of (image, label) file pairs, named after the images.

    Attributes:
        pairs: image and label file of each record.
        made_from: text that changes with the content of the files (`contents.of_pairs`); '' if it
            is not known.
    """

    pairs: Sequence[Pair]
    made_from: str = ''

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> EncodedRecord:
        image, label = self.pairs[index]
        return {
            'name': name_of(image),
            'image': _read(image),
            'label': _read(label),
            'image_file': printable(image),
            'label_file': printable(label),
        }


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f'{printable(path)}: the file cannot be read: {error.strerror}') from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedSource:
    """Records of one split of a TFDS data set, still encoded; see `prepare`.

    Attributes:
        source: TFDS data source of the split.
        directory: folder of the prepared data set, for error messages.
        image: name of the TFDS feature that holds the image.
        label: name of the TFDS feature that holds the label.
        name: name of the TFDS feature that holds the name.
        split: name of the split, for error messages.
        made_from: text that changes with the files that the data set was prepared from
            (`builder.Origin`); '' if that was not noted.
        shards: its files in the mirror of a bucket; None where all of them are there.
    """

    source: Sequence[Mapping[str, Any]]
    directory: pathlib.Path
    image: str
    label: str
    name: str
    split: str
    made_from: str = ''
    shards: Shards | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> EncodedRecord:
        if self.shards is not None and 0 <= index < len(self):
            self.shards.ensure([self.shards.of_record(index)])
        try:
            record = self.source[index]
        except IndexError:
            raise
        except Exception as error:  # array_record keeps a hash of every record; TFDS parses it
            raise InputError(
                f'record {index} cannot be read ({error}): the prepared data set is damaged; '
                f'{prepare_again(self.directory)}'
            ) from error
        name = record[self.name]
        return {
            'name': (text := name.decode() if isinstance(name, bytes) else str(name)),
            'image': record[self.image],
            'label': record[self.label],
            'image_file': f'{self.split}/{text}',
            'label_file': f'{self.split}/{text}',
        }


def damaged(directory: pathlib.Path, error: Exception) -> InputError:
    """Returns the error to raise for a prepared data set whose description cannot be read.

    Args:
        directory: folder of the prepared data set.
        error: what its reader raised.
    """
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(
        f'{directory}: dataset_info.json or features.json cannot be read ({first:.200}); '
        f'{prepare_again(directory)}'
    )


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of one or several splits under one range of indices.

    Attributes:
        dataset: data set that they belong to.
        splits: names of the splits, one after another.
    """

    dataset: Dataset
    splits: tuple[str, ...]

    def __len__(self) -> int:
        return sum(len(self.dataset.source(split)) for split in self.splits)

    def __getitem__(self, index: int) -> EncodedRecord:
        for split in self.splits:
            source = self.dataset.source(split)
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)

    def shards(self) -> tuple[Shards, ...]:
        """The files of the splits in the mirror of a bucket, split by split; () on a disk."""
        found = []
        for split in self.splits:
            files = getattr(self.dataset.source(split), 'shards', None)
            if not isinstance(files, Shards):
                return ()
            found.append(files)
        return tuple(found)


def identity_label_map(num_classes: int, ignore: int) -> UInt8[np.ndarray, '256']:
    """Returns the label map of labels that are train ids already.

    Args:
        num_classes: number of classes.
        ignore: label value of pixels without class.
    """
    label_map = np.full(256, NOT_ALLOWED, np.uint8)
    label_map[:num_classes] = np.arange(num_classes)
    label_map[ignore] = IGNORE
    return label_map


def own_ids(label_map: UInt8[np.ndarray, '256'], num_classes: int) -> tuple[int, ...]:
    """Returns `Dataset.ids` of a label map: the lowest raw value of each class.

    Args:
        label_map: raw label value -> train id, `IGNORE` or `NOT_ALLOWED`; every class occurs.
        num_classes: number of classes.
    """
    return tuple(int(np.flatnonzero(label_map == c)[0]) for c in range(num_classes))
