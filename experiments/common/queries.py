"""Images of a split and marked pixels in them, as the command line names them or by a rule."""

import argparse
import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from experiments.common.confusable import Family
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.errors import InputError
from ggcf_jax.models.layers.resize import nearest_positions

Pixel = tuple[int, int]  # row and column


@dataclasses.dataclass(frozen=True)
class Marked:
    """An image with marked pixels.

    Attributes:
        name: of the record.
        image: uint8 [h, w, 3] RGB. label: uint8 [h, w] of train ids.
        queries: (y, x) of the pixels.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    queries: tuple[Pixel, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --split, --image and --query, which `choose` takes."""
    parser.add_argument('--split', default='validation')
    parser.add_argument('--image', help='number in the split, or name [one for each family]')
    parser.add_argument('--query', action='append', type=pixel, metavar='Y,X', help='a pixel')


def choose(
    dataset: Dataset,
    split: str,
    families: Sequence[Family],
    image: str | None = None,
    queries: Sequence[Pixel] | None = None,
) -> list[Marked]:
    """What is looked at.

    Args:
        dataset: has the images. split: of it.
        families: without `image`, one is chosen for each: where the second most frequent class of
            the family has most pixels; its most frequent class is marked at the deepest pixel.
        image: number or name of a record.
        queries: pixels of that image; without any, the deepest of its three largest classes.

    Raises:
        InputError: no such split, record or pixel.
    """
    if image is None:
        if queries:
            raise InputError('--query needs --image')
        return _of_families(dataset, split, families)
    found = example(dataset, split, image)
    queries = queries or deepest_pixels(found['label'], 3)
    check(queries, found['label'])
    return [Marked(found['name'], found['image'], found['label'], tuple(queries))]


def _of_families(dataset: Dataset, split: str, families: Sequence[Family]) -> list[Marked]:
    dataset.check_labeled(split, 'inspected')
    source = dataset.source(split)
    best: dict[Family, tuple[int, int]] = {}  # (pixels of the second class, record)
    for i in range(len(source)):
        pixels = np.bincount(dataset.decode_label(source[i]).ravel(), minlength=IGNORE + 1)
        for family in families:
            second = int(np.sort(pixels[list(family.members)])[-2])
            if second > best.get(family, (0, -1))[0]:
                best[family] = second, i
    marked = []
    for family, (_, i) in best.items():
        found = dataset.decode(source[i])
        pixels = np.bincount(found['label'].ravel(), minlength=IGNORE + 1)
        query = deepest(found['label'], max(family.members, key=pixels.__getitem__))
        marked.append(Marked(found['name'], found['image'], found['label'], (query,)))
    if not marked:
        raise InputError(
            f'no image of split {split!r} shows two classes of a family; choose one with --image'
        )
    return marked


def example(dataset: Dataset, split: str, image: str) -> dict:
    """The record of this number or name, decoded (see `Dataset.decode`).

    Raises:
        InputError: no such split or record, or a split without labels.
    """
    dataset.check_labeled(split, 'inspected')
    source = dataset.source(split)
    if image.isdecimal():
        if int(image) >= len(source):
            raise InputError(
                f'--image={image}: split {split!r} of {dataset.name!r} has images 0 to '
                f'{len(source) - 1}'
            )
        return dataset.decode(source[int(image)])
    for i in range(len(source)):
        record = source[i]
        if record['name'] == image:
            return dataset.decode(record)
    raise InputError(f'--image={image}: no image of split {split!r} has this name')


def pixel(text: str) -> Pixel:
    """'200,310' -> (200, 310): y and x."""
    y, x = map(int, text.split(','))
    return y, x


def check(queries, label: np.ndarray) -> None:
    """Raises InputError for a pixel outside of the image or without a class."""
    height, width = label.shape
    for y, x in queries:
        if not (0 <= y < height and 0 <= x < width):
            raise InputError(f'--query={y},{x} lies outside of the image of {height} x {width}')
        if label[y, x] == IGNORE:
            raise InputError(f'--query={y},{x} has no class in the ground truth; choose another')


def deepest(label: np.ndarray, index: int) -> Pixel:
    """The pixel of class `index` farthest from its outside; of equally far ones the first."""
    inside = np.pad((label == index).astype(np.uint8), 1)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(y), int(x)


def deepest_pixels(label: np.ndarray, count: int) -> list[Pixel]:
    """For each of the `count` classes with most pixels, the pixel farthest from its outside."""
    classes, pixels = np.unique(label[label != IGNORE], return_counts=True)
    return [deepest(label, index) for index in classes[np.argsort(-pixels, kind='stable')][:count]]


def coarse_label(label: np.ndarray, query: Pixel, stride: int) -> tuple[np.ndarray, Pixel]:
    """The class at each position of the map, and the query's position.

    The class of a position is that of the pixel it lies on; of the query, that of its pixel.

    Returns:
        uint8 [ceil(h / stride), ceil(w / stride)], (row, column).
    """
    y, x = nearest_positions(query, stride, label.shape).tolist()
    coarse = label[::stride, ::stride].copy()
    coarse[y, x] = label[query]
    return coarse, (y, x)
