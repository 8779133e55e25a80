"""Class-uniform sampling: where each class occurs, so that rare ones can be drawn more often.

As in Zhu et al. (2019), "Improving semantic segmentation via video propagation and label
relaxation", section 3.3: a class is drawn uniformly, then an image that shows it, then a pixel of
it there, and the crop is taken around that pixel. The index is built once per data set and saved
beside the prepared data.
"""

import dataclasses
import functools
import hashlib
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int32, UInt8

from ggcf_jax import atomic, places
from ggcf_jax.data.records import prepare, progress, staging
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Records
from ggcf_jax.errors import InputError

MAX_SIDE = 1 << 29  # pixels; no image is larger (`codec.MAX_PIXELS`)
GRID = 8  # images are cut into 8 x 8 cells, each of which gives one pixel per class


@dataclasses.dataclass(frozen=True)
class ClassIndex:
    """One pixel for each class in each cell of each image.

    Attributes:
        points: (class, record, y, x) of each pixel, sorted by class and record.
    """

    points: Int32[np.ndarray, 'n 4']

    @functools.cached_property
    def _groups(self) -> np.ndarray:
        """Row of `points` where each (class, record) pair begins, and the end."""
        pairs = self.points[:, :2]
        new = np.flatnonzero((pairs[1:] != pairs[:-1]).any(1)) + 1
        return np.concatenate([[0], new, [len(pairs)]])

    @functools.cached_property
    def _classes(self) -> np.ndarray:
        """Group where each class that occurs begins, and the end."""
        classes = self.points[self._groups[:-1], 0]
        return np.concatenate([[0], np.flatnonzero(np.diff(classes)) + 1, [len(classes)]])

    def draw(self, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """Draws a class, an image that shows it and a pixel of it there.

        Args:
            rng: source of randomness.

        Returns:
            Index of the record, and (y, x) of the pixel.
        """
        chosen = rng.integers(len(self._classes) - 1)
        group = rng.integers(self._classes[chosen], self._classes[chosen + 1])
        _, record, y, x = self.points[rng.integers(self._groups[group], self._groups[group + 1])]
        return int(record), (int(y), int(x))


def build(records: Records, threads: int) -> ClassIndex:
    """Builds the index, reading every label once.

    Args:
        records: records to index.
        threads: number of threads that decode labels.

    Raises:
        InputError: a label cannot be decoded, or no label has a labelled pixel.
    """

    def index_record(index: int) -> list[tuple[int, int, int, int]]:
        label = records.dataset.decode_label(records[index])
        return [(c, index, y, x) for c, y, x in points(label)]

    rows: list[tuple[int, int, int, int]] = []
    name = '+'.join(records.splits)
    with (
        progress.shown('indexing classes in', 'indexed', name, len(records)) as advance,
        ThreadPoolExecutor(threads) as pool,
    ):
        for found in pool.map(index_record, range(len(records))):
            rows += found
            advance(1)
    if not rows:
        raise InputError(f'no labelled pixel in {"+".join(records.splits)}; nothing to train on')
    return ClassIndex(np.array(sorted(rows), np.int32).reshape(-1, 4))


def points(label: UInt8[np.ndarray, 'h w']) -> list[tuple[int, int, int]]:
    """Returns (class, y, x) of one pixel for each class in each cell of a label.

    Args:
        label: train ids.
    """
    found = []
    rows, columns = (np.linspace(0, n, min(GRID, n) + 1).astype(int) for n in label.shape)
    for top, bottom in zip(rows, rows[1:]):
        for left, right in zip(columns, columns[1:]):
            cell = label[top:bottom, left:right]
            for c in np.flatnonzero(np.bincount(cell.ravel(), minlength=IGNORE)[:IGNORE]):
                y, x = np.nonzero(cell == c)
                middle = len(y) // 2
                found.append((int(c), int(top + y[middle]), int(left + x[middle])))
    return found


def load_or_build(records: Records, directory: pathlib.Path, threads: int) -> ClassIndex:
    """Returns the index, read from disk if it was built before.

    Args:
        records: records to index.
        directory: folder of prepared data sets.
        threads: number of threads that decode labels.

    Raises:
        InputError: as `build`, or the directory cannot be written.
    """
    path = index_file(records, directory)
    staging.pull(path)
    if (saved := _read(path, records)) is not None:
        return saved
    places.check_writable(path.parent, prepare.FIELD)
    index = build(records, threads)
    with (
        places.writing(path, prepare.FIELD),
        atomic.replacing(path) as temporary,
        temporary.open('wb') as file,
    ):
        np.save(file, index.points)
    staging.push(path)
    return index


def index_file(records: Records, directory: pathlib.Path) -> pathlib.Path:
    """The file of the index.

    Args:
        records: records to index.
        directory: folder of prepared data sets.
    """
    whole = records.dataset.identity_of(*records.splits)
    identity = f'{whole} {"+".join(records.splits)} {len(records)} {GRID}'
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return directory / 'ggcf_jax_class_index' / f'{digest}.npy'


def _read(path: pathlib.Path, records: Records) -> ClassIndex | None:
    """The saved index; None where there is none, or a damaged one, which is built again."""
    try:
        points = np.array(np.load(path, mmap_mode='r'))  # mapped: a header may lie about the size
    except Exception:  # NumPy parses headers as Python, whose errors are of many kinds
        return None
    if points.dtype != np.int32 or points.ndim != 2 or points.shape[1] != 4 or not len(points):
        return None
    ends = (records.dataset.num_classes, len(records), MAX_SIDE, MAX_SIDE)
    in_order = (np.diff(points[:, 0] * np.int64(len(records)) + points[:, 1]) >= 0).all()
    if (points < 0).any() or (points >= ends).any() or not in_order:
        return None
    return ClassIndex(points)
