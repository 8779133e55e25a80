"""Videos as sequences of images: reading ahead, painting and writing while the network works."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
from jaxtyping import UInt8

from ggcf_jax import buckets
from ggcf_jax.data.records.finder import printable
from ggcf_jax.errors import InputError

# Containers that are read; what is in them is OpenCV's to decode.
ENDINGS = (
    '.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv', '.ts', '.mts',
)  # fmt: skip
# OpenCV's own build encodes them everywhere: MPEG-4 part 2, and VP8, which browsers play.
_CODECS = {'.mp4': 'mp4v', '.webm': 'VP80'}
_GIVEN_UP = 30  # frames in a row that cannot be decoded, after which the video is over
_AHEAD = 2  # batches that are decoded, and batches that are written, beside the network's

Frame = UInt8[np.ndarray, 'h w 3']
Labels = UInt8[np.ndarray, 'h w']


def is_video(path: pathlib.Path) -> bool:
    """Whether a path is a file with the ending of a video.

    Args:
        path: the path.
    """
    return path.suffix.lower() in ENDINGS and path.is_file()


class Reader:
    """The frames of a video in their order, as RGB; those that are damaged are left out.

    Attributes:
        path: file of the video.
        size: (height, width) of its frames.
        rate: frames per second.
        count: number of frames that its header announces; 0 if it does not.
        lost: index of each frame that could not be decoded, between others that could.
        read: number of frames that were read.
    """

    def __init__(self, path: pathlib.Path):
        """Opens the file.

        Args:
            path: file of the video.

        Raises:
            InputError: OpenCV cannot read it.
        """
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        height, width = (
            int(self._capture.get(side))
            for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
        )
        if not self._capture.isOpened() or min(height, width) < 1:
            raise InputError(
                f'{printable(path)}: the video cannot be read; is the file damaged, or of a codec '
                'that OpenCV does not have? ffmpeg -i FILE out.mp4 converts it'
            )
        self.size = (height, width)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else 25.0
        self.count = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self.lost: list[int] = []
        self.read = 0
        self._next = 0

    def frames(self, number: int) -> list[Frame]:
        """Reads the next frames.

        Args:
            number: how many; fewer at the end, none behind it.
        """
        found: list[Frame] = []
        while len(found) < number and (frame := self._frame()) is not None:
            found.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        self.read += len(found)
        return found

    def _frame(self) -> Frame | None:
        """The next frame that can be decoded; None at the end."""
        lost: list[int] = []
        while True:
            decoded, frame = self._capture.read()
            index, self._next = self._next, self._next + 1
            if decoded and frame is not None and frame.shape[:2] == self.size:
                self.lost += lost
                return frame
            if self._next >= self.count or len(lost) >= _GIVEN_UP:
                return None
            lost.append(index)

    def close(self) -> None:
        """Closes the file."""
        self._capture.release()

    def report(self) -> Iterator[str]:
        """Yields a line for what could not be decoded."""
        name = printable(self.path)
        if self.lost:
            shown = ', '.join(map(str, self.lost[:5]))
            more = f' and {len(self.lost) - 5} more' if len(self.lost) > 5 else ''
            yield (
                f'{name}: {len(self.lost)} frames cannot be decoded and are skipped: {shown}{more}'
            )
        missing = self.count - self.read - len(self.lost)
        if missing > 0:
            yield f'{name}: the video ends {missing} frames before its header says'


@dataclasses.dataclass
class Writer:
    """A video that is written frame by frame; it is there whole or not at all.

    Attributes:
        path: file to write, which ends in .mp4 or .webm; in a bucket, uploaded when it is complete.
        size: (height, width) of the frames.
        rate: frames per second.
    """

    path: pathlib.Path
    size: tuple[int, int]
    rate: float

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Frame], None]]:
        """Yields a function that appends an RGB frame.

        Raises:
            InputError: OpenCV cannot write videos of this size here.
        """
        if not isinstance(self.path, buckets.BucketPath):
            with self._file(self.path) as append:
                yield append
            return
        with tempfile.TemporaryDirectory(prefix='ggcf_jax-video-') as folder:
            file = pathlib.Path(folder) / self.path.name
            with self._file(file) as append:
                yield append
            buckets.upload(file, self.path)

    @contextlib.contextmanager
    def _file(self, path: pathlib.Path) -> Iterator[Callable[[Frame], None]]:
        """`open` for a file on the disk."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'.{path.stem}.{secrets.token_hex(4)}.part{self.path.suffix}')
        height, width = self.size
        fourcc = cv2.VideoWriter.fourcc(*_CODECS[self.path.suffix])
        writer = cv2.VideoWriter(str(temporary), fourcc, self.rate, (width, height))
        try:
            if not writer.isOpened():
                raise InputError(
                    f'{self.path}: OpenCV cannot write a video of {height} x {width} pixels there'
                )

            def append(frame: Frame) -> None:
                writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

            yield append
            writer.release()
            os.replace(temporary, path)
        finally:
            writer.release()
            temporary.unlink(missing_ok=True)


def run(
    reader: Reader,
    network: Callable[[Sequence[Frame]], Sequence[Labels]],
    write: Callable[[int, Frame, Labels], None],
    *,
    batch: int,
    advance: Callable[[float], None],
) -> None:
    """Decodes, predicts and writes the frames of a video, each in a thread of its own.

    Args:
        reader: the video.
        network: frames -> labels of each.
        write: called with the number of each frame, the frame and its labels, in their order.
        batch: number of frames that go through the network together.
        advance: called with the number of frames that were written.
    """

    def finish(first: int, frames: Sequence[Frame], labels: Sequence[Labels]) -> None:
        for number, (frame, label) in enumerate(zip(frames, labels), first):
            write(number, frame, label)
        advance(len(frames))

    with ThreadPoolExecutor(1) as decoder, ThreadPoolExecutor(1) as encoder:
        reading = collections.deque(decoder.submit(reader.frames, batch) for _ in range(_AHEAD))
        writing: collections.deque[Future[None]] = collections.deque()
        done = 0
        try:
            while frames := reading.popleft().result():
                reading.append(decoder.submit(reader.frames, batch))
                labels = network(frames)
                writing.append(encoder.submit(finish, done, frames, labels))
                done += len(frames)
                while len(writing) > _AHEAD:
                    writing.popleft().result()
            for each in writing:
                each.result()
        finally:
            for pool in (decoder, encoder):
                pool.shutdown(cancel_futures=True)
