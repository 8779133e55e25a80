"""Where in a data set each class occurs, so that rare ones can be drawn more often.

Class-uniform sampling (Zhu et al., 2019, "Improving semantic segmentation via video propagation
and label relaxation", 3.3): a class is drawn uniformly, then an image that holds it, then a place
in that image, and the crop is taken around that place. The index is built once a data set and kept
beside the prepared data.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from rich.progress import track

from ggcf_jax.data.mixture import Records
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.errors import InputError

TILES = 8  # an image is looked at in 8 x 8 tiles, each gives one pixel a class


@dataclasses.dataclass(frozen=True)
class ClassIndex:
    """One pixel for each class in each tile of each image.

    Attributes:
        points: int32 [n, 4] of class, record, y, x, sorted by class and record.
    """

    points: np.ndarray

    @functools.cached_property
    def _groups(self) -> np.ndarray:
        """First row of each (class, record) pair, and the end."""
        pairs = self.points[:, :2]
        new = np.flatnonzero((pairs[1:] != pairs[:-1]).any(1)) + 1
        return np.concatenate([[0], new, [len(pairs)]])

    @functools.cached_property
    def _classes(self) -> np.ndarray:
        """First group of each class that occurs, and the end."""
        classes = self.points[self._groups[:-1], 0]
        return np.concatenate([[0], np.flatnonzero(np.diff(classes)) + 1, [len(classes)]])

    def draw(self, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """Draws a class, an image that holds it and a pixel of it there: (record, (y, x))."""
        chosen = rng.integers(len(self._classes) - 1)
        group = rng.integers(self._classes[chosen], self._classes[chosen + 1])
        _, record, y, x = self.points[rng.integers(self._groups[group], self._groups[group + 1])]
        return int(record), (int(y), int(x))


def build(records: Records, threads: int) -> ClassIndex:
    """Reads every label of `records` once.

    Raises:
        InputError: a label that cannot be decoded, or none with a labelled pixel.
    """

    def look(index: int) -> list[tuple[int, int, int, int]]:
        label = records.dataset.decode_label(records[index])
        return [(c, index, y, x) for c, y, x in points(label)]

    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(look, range(len(records)))
        rows = [row for r in track(found, 'class index', len(records), transient=True) for row in r]
    if not rows:
        raise InputError(f'no labelled pixel in {"+".join(records.splits)}; nothing can be trained')
    return ClassIndex(np.array(sorted(rows), np.int32).reshape(-1, 4))


def points(label: np.ndarray) -> list[tuple[int, int, int]]:
    """(class, y, x) of one pixel for each class in each tile of a label map [h, w]."""
    found = []
    rows, columns = (np.linspace(0, n, min(TILES, n) + 1).astype(int) for n in label.shape)
    for top, bottom in zip(rows, rows[1:]):
        for left, right in zip(columns, columns[1:]):
            tile = label[top:bottom, left:right]
            for c in np.flatnonzero(np.bincount(tile.ravel(), minlength=IGNORE)[:IGNORE]):
                y, x = np.nonzero(tile == c)
                middle = len(y) // 2
                found.append((int(c), int(top + y[middle]), int(left + x[middle])))
    return found


def load_or_build(records: Records, directory: pathlib.Path, threads: int) -> ClassIndex:
    """The index of `records`, from `directory` if it was built before."""
    identity = f'{records.dataset.identity} {"+".join(records.splits)} {len(records)} {TILES}'
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = directory / 'ggcf_jax_class_index' / f'{digest}.npy'
    if path.exists():
        return ClassIndex(np.load(path))
    index = build(records, threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f'.{os.getpid()}.tmp')
    with temporary.open('wb') as file:
        np.save(file, index.points)
    os.replace(temporary, path)
    return index
