"""What the rest of the product knows of a data set: classes, colours and encoded records."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import cv2
import numpy as np

from ggcf_jax.errors import InputError

IGNORE = 255  # train id of pixels that are neither trained on nor counted
NOT_ALLOWED = 254  # entry of a label map for raw values that must not occur


class RecordSource(Protocol):
    """Random access to encoded records; pickles, so that worker processes can read it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict:
        """Returns {'name': str, 'image': encoded bytes, 'label': PNG bytes}."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A segmentation data set.

    Attributes:
        name: its name in the configuration.
        classes: class names in train-id order.
        colors: one RGB triple (0..255) a class.
        sources: split name ('train', 'validation', 'test') -> records.
        label_map: uint8 [256], raw label value -> train id, `IGNORE` or `NOT_ALLOWED`.
        unlabeled: splits whose labels are not usable.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    sources: Mapping[str, RecordSource]
    label_map: np.ndarray
    unlabeled: tuple[str, ...] = ()

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

    def decode(self, record: Mapping) -> dict:
        """Decodes a record.

        Returns:
            {'name': str, 'image': uint8 [h, w, 3] RGB, 'label': uint8 [h, w] of train ids}.

        Raises:
            InputError: an image or label that cannot be decoded, sizes that differ, or a label
                value outside the data set's; the message names the record.
        """
        name = record['name']
        image = decode_image(record['image'], name)
        label = map_labels(decode_label(record['label'], name), self.label_map, name)
        check_sizes(image, label, name)
        return {'name': name, 'image': image, 'label': label}


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes an image to uint8 [h, w, 3] RGB; EXIF rotation is ignored, as labels have none."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise InputError(f'{name}: the image cannot be decoded; is the file damaged?')
    return image


def decode_label(data: bytes, name: str) -> np.ndarray:
    """Decodes a label image to its raw values, uint8 [h, w]."""
    label = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if label is None:
        raise InputError(f'{name}: the label cannot be decoded; is the file damaged?')
    if label.ndim != 2 or label.dtype != np.uint8:
        raise InputError(
            f'{name}: the label has shape {label.shape} and type {label.dtype}; '
            'labels must be 8-bit single-channel PNG files of class ids'
        )
    return label


def map_labels(raw: np.ndarray, label_map: np.ndarray, name: str) -> np.ndarray:
    """Maps raw label values to train ids (uint8, same shape), refusing unknown values."""
    mapped = label_map[raw]
    if (mapped == NOT_ALLOWED).any():
        bad = np.unique(raw[mapped == NOT_ALLOWED])
        raise InputError(
            f'{name}: label values {bad.tolist()} are outside the allowed '
            f'{np.flatnonzero(label_map != NOT_ALLOWED).tolist()}; correct the label file'
        )
    return mapped


def check_sizes(image: np.ndarray, label: np.ndarray, name: str) -> None:
    """Refuses an image [h, w, 3] and a label [h, w] of different sizes."""
    if image.shape[:2] != label.shape:
        raise InputError(
            f'{name}: the image is {image.shape[0]} x {image.shape[1]} but its label is '
            f'{label.shape[0]} x {label.shape[1]}; both must have the same size'
        )


def identity_label_map(num_classes: int, ignore: int) -> np.ndarray:
    """The label map of labels that are train ids already, with one value to ignore."""
    label_map = np.full(256, NOT_ALLOWED, np.uint8)
    label_map[:num_classes] = np.arange(num_classes)
    label_map[ignore] = IGNORE
    return label_map
