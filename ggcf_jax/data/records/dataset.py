"""What the rest of the product knows of a data set: classes, colours and encoded records."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ggcf_jax.data.records import codec
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.jpeg_tiles import TiledImage
from ggcf_jax.errors import InputError


class RecordSource(Protocol):
    """Random access to encoded records; pickles, so that worker processes can read it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict:
        """Returns {'name': str, 'image': encoded bytes, 'label': encoded bytes}."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A segmentation data set.

    Attributes:
        name: its name in the configuration.
        classes: class names in train-id order.
        colors: one RGB triple (0..255) a class.
        sources: split name ('train', 'validation', 'test') -> records.
        label_map: uint8 [256], raw label value -> train id, `IGNORE` or `NOT_ALLOWED`.
        identity: a text that changes when the records do; names what is derived from them.
        unlabeled: splits whose labels are not usable, such as those of a test server.
        categories: category of each class, () if the makers define none.
        server_ids: value of each class in files for the makers' evaluation server, () without one.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    sources: Mapping[str, RecordSource]
    label_map: np.ndarray
    identity: str
    unlabeled: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    server_ids: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def source(self, split: str) -> RecordSource:
        """Returns the records of `split`; InputError names the splits there are."""
        if split not in self.sources:
            raise InputError(
                f'data set {self.name!r} has no split {split!r}; it has {", ".join(self.sources)}'
            )
        return self.sources[split]

    def check_labeled(self, split: str, purpose: str) -> None:
        """Refuses a split without usable labels; `purpose` completes "cannot be ..."."""
        if split in self.unlabeled:
            raise InputError(
                f'split {split!r} of data set {self.name!r} cannot be {purpose}: its labels are '
                'withheld by the makers; only their evaluation server scores predictions of it, '
                f'which --mode=predict --input={split} --output=DIR writes'
            )

    def decode(self, record: Mapping) -> dict:
        """Decodes a record.

        Returns:
            {'name': str, 'image': uint8 [h, w, 3] RGB, 'label': uint8 [h, w] of train ids}.

        Raises:
            InputError: an image or label that cannot be decoded, sizes that differ, or a label
                value outside the data set's; the message names the record.
        """
        opened = self.open(record)
        return opened | {'image': opened['image'][:, :]}

    def open(self, record: Mapping) -> dict:
        """As `decode`, with an image of `open_image`."""
        image, label = self.open_image(record), self.decode_label(record)
        codec.check_sizes(image, label, record['name'])
        return {'name': record['name'], 'image': image, 'label': label}

    def open_image(self, record: Mapping) -> np.ndarray | TiledImage:
        """The image of a record, decoded, or such that `image[rows, columns]` decodes a window."""
        return codec.decode_image(record['image'], record['name'])

    def decode_label(self, record: Mapping) -> np.ndarray:
        """Decodes only the label of a record: uint8 [h, w] of train ids, as `decode`."""
        name = record['name']
        return codec.map_labels(codec.decode_label(record['label'], name), self.label_map, name)


def identity_label_map(num_classes: int, ignore: int) -> np.ndarray:
    """The label map of labels that are train ids already, with one value to ignore."""
    label_map = np.full(256, codec.NOT_ALLOWED, np.uint8)
    label_map[:num_classes] = np.arange(num_classes)
    label_map[ignore] = IGNORE
    return label_map
