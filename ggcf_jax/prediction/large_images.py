"""Images that are too large for the network go through it in overlapping parts.

Heads that see the whole part, such as GRID and FULL, find other scores for a pixel in each part
that holds it. Where parts overlap their probabilities are therefore averaged with weights that rise
and fall linearly across the overlap, so that no row or column of pixels is a cut.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from ggcf_jax.evaluation.inference import window_starts
from ggcf_jax.prediction.batches import Job, Prediction, Run, pad

# Most bytes of the probabilities that wait for the parts below; wider images and more classes get
# narrower overlaps for it.
_STRIP_BYTES = 2**29


@dataclasses.dataclass(frozen=True)
class Span:
    """The pixels along an axis that a part has a say in, in the coordinates of the axis.

    Attributes:
        start: first pixel of the part.
        first: first pixel that it has a say in.
        stop: pixel behind the last one.
        rising: number of first pixels that it shares with the part before.
        falling: number of last pixels that it shares with the part behind.
    """

    start: int
    first: int
    stop: int
    rising: int
    falling: int

    @property
    def inside(self) -> slice:
        """Its pixels in the coordinates of the part."""
        return slice(self.first - self.start, self.stop - self.start)

    @property
    def settled(self) -> slice:
        """Its pixels that no part behind has a say in."""
        return slice(self.first, self.stop - self.falling)


def spans(length: int, side: int, taper: int) -> list[Span]:
    """Cuts an axis into overlapping parts.

    Parts overlap by a quarter of their side or more. In the middle of what two of them share lie
    the pixels that both have a say in; every other pixel belongs to one part, and lies at least an
    eighth of the side, less half the taper, inside it unless that ends where the image does.

    Args:
        length: number of pixels along the axis.
        side: number of pixels of a part.
        taper: number of pixels that two neighbouring parts have a say in, at most a quarter of
            the side.
    """
    starts = [int(start) for start in window_starts(length, side, max(side - side // 4, 1))]
    middles = ((left + side + right) // 2 for left, right in itertools.pairwise(starts))
    zones = [(middle - taper // 2, middle - taper // 2 + taper) for middle in middles]
    firsts = [0, *(first for first, _ in zones)]
    stops = [*(stop for _, stop in zones), length]
    return [
        Span(
            start,
            first,
            stop,
            rising=taper if index else 0,
            falling=taper if index < len(starts) - 1 else 0,
        )
        for index, (start, first, stop) in enumerate(zip(starts, firsts, stops, strict=True))
    ]


def predict(
    run: Run,
    image: UInt8[np.ndarray, 'h w 3'],
    into: Prediction,
    job: Job,
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Fills in the labels and probabilities of an image of any size, part by part.

    Besides the arguments, `job.batch_size` parts with their probabilities are in memory, and the
    probabilities that wait for the parts to the right and below.

    Args:
        run: the network with probabilities, for images [job.batch_size, *job.size, 3].
        image: RGB; where it is smaller than a part it is padded.
        into: arrays at the image's size that are written; probabilities may be None.
        job: size of the parts, and number of parts that go through the network together.
        advance: called with the share of the parts that was finished since the last call.
    """
    blended: _Blended | None = None
    count = 0
    origins = list(itertools.product(*map(_starts, into.labels.shape, job.size)))
    for first in range(0, len(origins), job.batch_size):
        chunk = origins[first : first + job.batch_size]
        cut = [image[top : top + job.size[0], left : left + job.size[1]] for top, left in chunk]
        found = run(*pad(cut, job))
        assert found.probabilities is not None, 'parts are blended by their probabilities'
        if blended is None:
            blended = _Blended(into, job, found.probabilities.shape[-1])
        for i in range(len(chunk)):
            blended.add(count, found.labels[i], found.probabilities[i])
            count += 1
        advance(len(chunk) / len(origins))


class _Blended:
    """The image as parts are added to it, row by row from the left."""

    def __init__(self, into: Prediction, job: Job, classes: int):
        """
        Args:
            into: arrays that are written; probabilities may be None.
            job: size of the parts.
            classes: number of classes.
        """
        self._into = into
        height, width = into.labels.shape
        widest = _STRIP_BYTES // (4 * classes * width)
        taper = min(job.size[0] // 4, job.size[1] // 4, widest)
        rows, columns = (
            spans(length, side, taper) for length, side in zip((height, width), job.size)
        )
        self._parts = list(itertools.product(rows, columns))
        # What the parts above and the part to the left contribute to the pixels they share.
        shared = taper if len(rows) > 1 else 0
        self._above = np.zeros((shared, width, classes), np.float32)
        self._left = np.zeros((0, 0, classes), np.float32)

    def add(
        self,
        number: int,
        labels: UInt8[np.ndarray, 'side side'],
        probabilities: Float[np.ndarray, 'side side classes'],
    ) -> None:
        """Adds a part; parts are added in their order.

        Args:
            number: number of the part, from 0.
            labels: most probable class of each pixel of the part.
            probabilities: of each class at each pixel of the part.
        """
        rows, columns = self._parts[number]
        own = probabilities[rows.inside, columns.inside]
        width = columns.stop - columns.first
        middle = slice(columns.rising, width - columns.falling)
        # Along the columns: what is shared with the left is settled, the rest waits.
        left = own[:, : columns.rising] * _rise(columns.rising)[:, None]
        if columns.rising:
            left += self._left
        self._left = own[:, middle.stop :] * _rise(columns.falling)[::-1, None]
        own, labels = own[:, middle], labels[rows.inside, columns.inside][:, middle]

        # Along the rows, likewise; between the shared pixels the part alone decides.
        height = rows.stop - rows.first
        settled = columns.settled
        for shown, place in (
            (left, slice(settled.start, settled.start + columns.rising)),
            (own, slice(settled.start + columns.rising, settled.stop)),
        ):
            alone = slice(rows.rising, height - rows.falling)
            top = shown[: rows.rising] * _rise(rows.rising)[:, None, None]
            if rows.rising:
                top += self._above[:, place]
                self._write(rows.first, place, top, top.argmax(-1))
            self._write(
                rows.first + rows.rising,
                place,
                shown[alone],
                labels[alone] if shown is own else shown[alone].argmax(-1),
            )
            if rows.falling:
                fall = _rise(rows.falling)[::-1, None, None]
                self._above[:, place] = shown[alone.stop :] * fall

    def _write(
        self,
        first: int,
        columns: slice,
        probabilities: Float[np.ndarray, 'h w classes'],
        labels: np.ndarray,
    ) -> None:
        rows = slice(first, first + len(labels))
        self._into.labels[rows, columns] = labels
        if self._into.probabilities is not None:
            self._into.probabilities[rows, columns] = probabilities


def _starts(length: int, side: int) -> list[int]:
    return [span.start for span in spans(length, side, 0)]


def _rise(taper: int) -> Float[np.ndarray, ' taper']:
    """Weights of the part behind at the pixels that two parts share."""
    return (np.arange(taper, dtype=np.float32) + 0.5) / np.float32(max(taper, 1))
