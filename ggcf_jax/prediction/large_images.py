"""Images that are too large for the network go through it in overlapping parts."""

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from ggcf_jax.evaluation.inference import window_starts
from ggcf_jax.prediction.batches import Job, Prediction, Run, pad


def cores(length: int, side: int) -> list[tuple[int, slice]]:
    """Cuts an axis into overlapping parts, each pixel belonging to the core of exactly one.

    Parts overlap by a quarter of their side or more, and what two of them share is divided in the
    middle: every pixel lies at least an eighth of the side inside its part, unless that ends where
    the image does.

    Args:
        length: number of pixels along the axis.
        side: number of pixels of a part.

    Returns:
        (first pixel, core) of each part, in the coordinates of the axis.
    """
    starts = window_starts(length, side, max(side - side // 4, 1))
    borders = [(left + side + right) // 2 for left, right in itertools.pairwise(starts)]
    ends = [0, *borders, length]
    return [(start, slice(*ends[i : i + 2])) for i, start in enumerate(starts)]


def predict(
    run: Run,
    image: UInt8[np.ndarray, 'h w 3'],
    into: Prediction,
    job: Job,
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Fills in the labels and probabilities of an image of any size, part by part.

    Only `job.batch_size` parts are in memory besides the arguments.

    Args:
        run: the network, for images [job.batch_size, *job.size, 3].
        image: RGB; where it is smaller than a part it is padded.
        into: arrays at the image's size that are written; probabilities may be None.
        job: size of the parts, and number of parts that go through the network together.
        advance: called with the share of the parts that was finished since the last call.
    """
    axes = (cores(*axis) for axis in zip(into.labels.shape, job.size))
    parts = list(itertools.product(*axes))
    for first in range(0, len(parts), job.batch_size):
        chunk = parts[first : first + job.batch_size]
        cut = [
            image[top : top + job.size[0], left : left + job.size[1]]
            for (top, _), (left, _) in chunk
        ]
        found = run(*pad(cut, job))
        for i, ((top, rows), (left, columns)) in enumerate(chunk):
            inside = (
                i,
                slice(rows.start - top, rows.stop - top),
                slice(columns.start - left, columns.stop - left),
            )
            into.labels[rows, columns] = found.labels[inside]
            if into.probabilities is not None:
                assert found.probabilities is not None
                into.probabilities[rows, columns] = found.probabilities[inside]
        advance(len(chunk) / len(parts))
