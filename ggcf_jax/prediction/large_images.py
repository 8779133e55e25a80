"""Images that are too large for the network go through it in overlapping parts."""

import itertools
from collections.abc import Callable

import numpy as np

from ggcf_jax.data.transforms import MEAN_COLOR
from ggcf_jax.evaluation.inference import window_starts

# uint8 [b, h, w, 3] -> labels uint8 [b, h, w] and probabilities [b, h, w, C] or None.
Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


def cores(length: int, side: int) -> list[tuple[int, slice]]:
    """The parts of an axis: (first pixel, the pixels that are taken from this part).

    Parts overlap by a quarter of their side or more, and what two of them share is divided in the
    middle: every pixel is taken once, and lies at least an eighth of the side inside of its part
    unless that ends where the image does.
    """
    starts = window_starts(length, side, max(side - side // 4, 1))
    borders = [(left + side + right) // 2 for left, right in itertools.pairwise(starts)]
    ends = [0, *borders, length]
    return [(start, slice(*ends[i : i + 2])) for i, start in enumerate(starts)]


def predict(
    run: Run,
    image: np.ndarray,
    side: int,
    batch_size: int,
    labels: np.ndarray,
    probabilities: np.ndarray | None,
) -> None:
    """Fills in the labels and probabilities of an image of any size, part by part.

    Only `batch_size` parts are in memory besides the arguments.

    Args:
        run: the network, for images [batch_size, side, side, 3].
        image: uint8 [h, w, 3]; where it is smaller than a part it is padded.
        side: height and width of the parts.
        batch_size: parts that go through the network together.
        labels: uint8 [h, w], written.
        probabilities: float [h, w, C], written; or None.
    """
    height, width = labels.shape
    parts = list(itertools.product(cores(height, side), cores(width, side)))
    for first in range(0, len(parts), batch_size):
        chunk = parts[first : first + batch_size]
        batch = np.empty((batch_size, side, side, 3), np.uint8)
        batch[:] = MEAN_COLOR
        for place, ((top, _), (left, _)) in zip(batch, chunk):
            part = image[top : top + side, left : left + side]
            place[: part.shape[0], : part.shape[1]] = part
        found, shares = run(batch)
        for i, ((top, rows), (left, columns)) in enumerate(chunk):
            inside = (
                slice(rows.start - top, rows.stop - top),
                slice(columns.start - left, columns.stop - left),
            )
            labels[rows, columns] = found[i][inside]
            if probabilities is not None:
                probabilities[rows, columns] = shares[i][inside]
