"""Query points: images of a split with pixels to look at, named by the user or chosen by a rule."""

import argparse
import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from experiments.common.confusable import ConfusableGroup
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset, Example
from ggcf_jax.errors import InputError
from ggcf_jax.models.layers.resize import nearest_positions, pixels_of_positions

Pixel = tuple[int, int]  # row and column


@dataclasses.dataclass(frozen=True)
class QueryImage:
    """An image with query points.

    Attributes:
        name: name of the record.
        image: RGB pixels.
        label: train ids.
        queries: query points in the image.
    """

    name: str
    image: UInt8[np.ndarray, 'h w 3']
    label: UInt8[np.ndarray, 'h w']
    queries: tuple[Pixel, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --split, --image and --query, which `select` takes."""
    parser.add_argument('--split', default='validation', help='split of the images [validation]')
    parser.add_argument(
        '--image', help='number in the split, or name [one for each group of confusable classes]'
    )
    parser.add_argument(
        '--query',
        action='append',
        type=parse_pixel,
        metavar='Y,X',
        help='query point; may be repeated',
    )


def select(
    dataset: Dataset,
    split: str,
    groups: Sequence[ConfusableGroup],
    image: str | None = None,
    queries: Sequence[Pixel] | None = None,
) -> list[QueryImage]:
    """Selects images and query points.

    Args:
        dataset: data set of the images.
        split: split of the data set.
        groups: confusable classes. Without `image`, one image is selected for each group: the one
            where the group's second most frequent class has the most pixels. Its query point lies
            deepest inside the group's most frequent class.
        image: number or name of a record.
        queries: pixels of that image; without any, the deepest pixel of each of its three largest
            classes.

    Raises:
        InputError: no such split, record or pixel.
    """
    if image is None:
        if queries:
            raise InputError('--query needs --image')
        return _one_for_each_group(dataset, split, groups)
    example = load_example(dataset, split, image)
    queries = queries or deepest_pixels(example['label'], 3)
    check_pixels(queries, example['label'])
    return [QueryImage(example['name'], example['image'], example['label'], tuple(queries))]


def _one_for_each_group(
    dataset: Dataset, split: str, groups: Sequence[ConfusableGroup]
) -> list[QueryImage]:
    dataset.check_labeled(split, 'inspected')
    source = dataset.source(split)
    best: dict[ConfusableGroup, tuple[int, int]] = {}  # (pixels of the second class, record)
    for i in range(len(source)):
        pixels = np.bincount(dataset.decode_label(source[i]).ravel(), minlength=IGNORE + 1)
        for group in groups:
            second = int(np.sort(pixels[list(group.members)])[-2])
            if second > best.get(group, (0, -1))[0]:
                best[group] = second, i
    selected = []
    for group, (_, i) in best.items():
        example = dataset.decode(source[i])
        pixels = np.bincount(example['label'].ravel(), minlength=IGNORE + 1)
        query = deepest_pixel(example['label'], max(group.members, key=pixels.__getitem__))
        selected.append(QueryImage(example['name'], example['image'], example['label'], (query,)))
    if not selected:
        raise InputError(
            f'no image of split {split!r} shows two classes of a family; choose one with --image'
        )
    return selected


def load_example(dataset: Dataset, split: str, image: str) -> Example:
    """Decodes the record of a number or name (see `Dataset.decode`).

    Args:
        dataset: data set of the record.
        split: split of the data set.
        image: number of the record in the split, or its name.

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


def parse_pixel(text: str) -> Pixel:
    """Parses row and column: '200,310' -> (200, 310)."""
    y, x = map(int, text.split(','))
    return y, x


def check_pixels(queries: Sequence[Pixel], label: UInt8[np.ndarray, 'h w']) -> None:
    """Checks that query points lie inside the image and have a class.

    Args:
        queries: query points.
        label: train ids of the image.

    Raises:
        InputError: a pixel outside of the image, or one without a class.
    """
    height, width = label.shape
    for y, x in queries:
        if not (0 <= y < height and 0 <= x < width):
            raise InputError(f'--query={y},{x} lies outside of the image of {height} x {width}')
        if label[y, x] == IGNORE:
            raise InputError(f'--query={y},{x} has no class in the ground truth; choose another')


def deepest_pixel(label: UInt8[np.ndarray, 'h w'], index: int) -> Pixel:
    """Returns the pixel of a class that is farthest from other classes, the first of equals.

    Args:
        label: train ids.
        index: train id of the class.
    """
    inside = np.pad((label == index).astype(np.uint8), 1)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(y), int(x)


def deepest_pixels(label: UInt8[np.ndarray, 'h w'], count: int) -> list[Pixel]:
    """Returns the `deepest_pixel` of each of the largest classes, the largest class first.

    Args:
        label: train ids.
        count: maximum number of classes.
    """
    classes, pixels = np.unique(label[label != IGNORE], return_counts=True)
    largest = classes[np.argsort(-pixels, kind='stable')][:count]
    return [deepest_pixel(label, index) for index in largest]


def coarse_label(
    label: UInt8[np.ndarray, 'h w'], query: Pixel, stride: int, first: float
) -> tuple[UInt8[np.ndarray, 'rows columns'], Pixel]:
    """Subsamples a label to the positions of a feature map.

    Args:
        label: train ids.
        query: query point; its position gets the class of this pixel, every other position that of
            the pixel it lies on.
        stride: pixels from one position to the next.
        first: pixel that the first position is centred on.

    Returns:
        Train ids [ceil(h / stride), ceil(w / stride)], and the position of the query.
    """
    y, x = nearest_positions(np.asarray(query), stride, label.shape, first).tolist()
    rows, columns = (pixels_of_positions(stride, length, first) for length in label.shape)
    coarse = label[np.ix_(rows, columns)]
    coarse[y, x] = label[query]
    return coarse, (y, x)
