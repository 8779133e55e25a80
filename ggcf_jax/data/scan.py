"""Looking at every record of a split before training does."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a split holds.

    Attributes:
        split: its name.
        count: records.
        sizes: (h, w) -> images.
        pixels: int64 [C], labelled pixels by class.
        images: int64 [C], images that hold the class.
        ignored: pixels without a class.
        problems: one line for each record that cannot be used, naming it.
    """

    split: str
    count: int
    sizes: Counter
    pixels: np.ndarray
    images: np.ndarray
    ignored: int
    problems: tuple[str, ...]

    @property
    def ignored_share(self) -> float:
        total = self.ignored + int(self.pixels.sum())
        return self.ignored / total if total else 0.0


def scan(
    dataset: Dataset, split: str, threads: int, advance: Callable[[int], None] = lambda n: None
) -> Scan:
    """Decodes every record of `split` once.

    Args:
        threads: that decode.
        advance: called with 1 after each record.
    """
    source = dataset.source(split)

    def look(index: int):
        try:
            label = dataset.decode(source[index])['label']
        except (InputError, OSError) as error:
            return str(error)
        return label.shape, np.bincount(label.ravel(), minlength=256)

    sizes: Counter = Counter()
    pixels, images = np.zeros((2, dataset.num_classes), np.int64)
    ignored, problems = 0, []
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(look, range(len(source))):
            advance(1)
            if isinstance(found, str):
                problems.append(found)
                continue
            size, counts = found
            sizes[size] += 1
            pixels += counts[: dataset.num_classes]
            images += counts[: dataset.num_classes] > 0
            ignored += int(counts[IGNORE])
    return Scan(split, len(source), sizes, pixels, images, ignored, tuple(problems))
