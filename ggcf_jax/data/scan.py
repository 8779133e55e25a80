"""Checks every record of a split, and counts its classes, before anything is trained."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int64

from ggcf_jax.data.records import codec
from ggcf_jax.data.records.codec import IGNORE, FileDecoder
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a split contains.

    Attributes:
        split: name of the split.
        count: number of records.
        sizes: (height, width) -> number of images of this size.
        pixels: number of labelled pixels of each class.
        images: number of images that show each class.
        ignored: number of pixels without class.
        problems: a line for each record that cannot be used, with its name.
        deep: number of images of 16 bits.
        largest: largest value of these.
        largest_of: name of the image that has it.
    """

    split: str
    count: int
    sizes: Counter[tuple[int, int]]
    pixels: Int64[np.ndarray, ' classes']
    images: Int64[np.ndarray, ' classes']
    ignored: int
    problems: tuple[str, ...]
    deep: int = 0
    largest: int = 0
    largest_of: str = ''

    @property
    def ignored_share(self) -> float:
        """Share of the pixels without class, 0 to 1."""
        total = self.ignored + int(self.pixels.sum())
        return self.ignored / total if total else 0.0


@dataclasses.dataclass(frozen=True)
class _Inspected:
    """One record.

    Attributes:
        problem: why it cannot be used; '' if it can.
        size: (height, width).
        counts: number of pixels of each of the 256 label values.
        name: name of its image.
        largest: largest value of its image; -1 if that has no 16 bits.
    """

    problem: str = ''
    size: tuple[int, int] = (0, 0)
    counts: Int64[np.ndarray, '256'] = dataclasses.field(
        default_factory=lambda: np.zeros(256, np.int64)
    )
    name: str = ''
    largest: int = -1


def scan(
    dataset: Dataset,
    split: str,
    threads: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Scan:
    """Decodes every record of a split once.

    Args:
        dataset: data set to check.
        split: split of the data set.
        threads: number of threads that decode.
        advance: function that is called with 1 after each record.
    """
    source, classes = dataset.source(split), dataset.num_classes

    def inspect(index: int) -> _Inspected:
        largest, name = -1, ''
        try:
            record = source[index]
            name = record.get('image_file', record['name'])
            if isinstance(dataset.decoder, FileDecoder):
                found = codec.largest_of_16_bits(record['image'], name)
                largest = -1 if found is None else found
            label = dataset.decode(record)['label']
        except (InputError, OSError) as error:
            return _Inspected(problem=str(error), name=name, largest=largest)
        counts = np.bincount(label.ravel(), minlength=256)
        height, width = label.shape
        return _Inspected(size=(height, width), counts=counts, name=name, largest=largest)

    sizes: Counter[tuple[int, int]] = Counter()
    pixels, images = np.zeros((2, classes), np.int64)
    ignored = 0
    problems: list[str] = []
    deep, brightest = 0, _Inspected()
    with ThreadPoolExecutor(threads) as pool:
        for record in pool.map(inspect, range(len(source))):
            advance(1)
            if record.largest >= 0:
                deep += 1
                brightest = max(brightest, record, key=lambda each: each.largest)
            if record.problem:
                problems.append(record.problem)
                continue
            sizes[record.size] += 1
            pixels += record.counts[:classes]
            images += record.counts[:classes] > 0
            ignored += int(record.counts[IGNORE])
    return Scan(
        split,
        len(source),
        sizes,
        pixels,
        images,
        ignored,
        tuple(problems),
        deep,
        max(brightest.largest, 0),
        brightest.name,
    )
