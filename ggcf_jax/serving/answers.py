"""Requests that the page can make, and their JSON responses with pictures inside."""

import base64
import collections
import contextlib
import dataclasses
import http
import pathlib
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from ggcf_jax.data.records import codec
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.display.pictures import colorize, encode_palette_png
from ggcf_jax.errors import InputError
from ggcf_jax.prediction import video
from ggcf_jax.serving.viewer import Viewer

MAX_BYTES = 32 * 2**20
MAX_FRAMES = 300  # of a video: ten seconds
# Videos begin so: others, such as playlists, could name files of this machine.
_CONTAINERS = ((4, b'ftyp'), (8, b'AVI '), (0, b'\x1a\x45\xdf\xa3'))  # mp4 and mov, avi, mkv
MAX_PIXELS = 2**22  # 2048 x 2048: a FULL head sees 65,536 positions then
_IMAGES = 8  # most recent images that can still be asked about
_SIZES = (
    8  # most recent sizes of images that count as compiled; the model keeps twice as many programs
)
_PATIENCE = 5.0  # seconds without a request before the next size is prepared

Size = tuple[int, int]


class Refused(Exception):
    """A request whose response is an error."""

    def __init__(self, status: http.HTTPStatus, text: str):
        """
        Args:
            status: HTTP status of the response.
            text: message for the person at the page.
        """
        super().__init__(text)
        self.status = status


@dataclasses.dataclass(frozen=True)
class _Work:
    """What the model computes now.

    Attributes:
        what: 'classes', 'attention', 'video' or 'preparation'.
        size: (height, width) of the image.
        compiling: whether it is the first image of this size, whose program is compiled first.
        began: time at which it began.
    """

    what: str
    size: Size
    compiling: bool
    began: float


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video overlaid with the colours of the classes.

    Attributes:
        content: bytes of the file.
        frames: number of its frames.
        lost: number of frames of the video that could not be decoded.
        seconds: how long it took.
    """

    content: bytes
    frames: int
    lost: int
    seconds: float


class Answers:
    """Responses of one model about images, computed one at a time.

    Attributes:
        max_bytes: largest size of an image file.
    """

    def __init__(self, viewer: Viewer, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS):
        """
        Args:
            viewer: the model.
            max_bytes: largest size of an image file.
            max_pixels: largest number of pixels of an image.
        """
        self.max_bytes = max_bytes
        # One request at a time has `_asked`; it waits for a preparation, which has `_computing`.
        self._asked = threading.Lock()
        self._computing = threading.Lock()
        self._viewer = viewer
        self._max_pixels = max_pixels
        self._work: _Work | None = None
        self._last_request = -_PATIENCE
        # Sizes whose programs are compiled, the least recently used first, and those to prepare.
        self._ready: collections.OrderedDict[Size, None] = collections.OrderedDict()
        self._pending: list[Size] = []
        # Image and labels by the name that the page knows them by, the oldest first.
        self._images: collections.OrderedDict[str, tuple[np.ndarray, np.ndarray]] = (
            collections.OrderedDict()
        )

    def about(self) -> dict[str, Any]:
        """Describes the model."""
        return {
            'name': self._viewer.name,
            'classes': self._viewer.classes,
            'colors': self._viewer.colors,
            'heads': self._viewer.heads,
            'step': self._viewer.step,
            'plan': self._viewer.plan,
            'stride': self._viewer.stride,
            'max_bytes': self.max_bytes,
            'max_pixels': self._max_pixels,
            'max_frames': MAX_FRAMES,
            'examples': [example.name for example in self._viewer.examples],
        }

    def state(self) -> dict[str, Any]:
        """What is being computed, which sizes are compiled, and which will be."""
        work = self._work
        now = None
        if work is not None:
            height, width = work.size
            now = {
                'what': work.what,
                'height': height,
                'width': width,
                'compiling': work.compiling,
                'seconds': time.monotonic() - work.began,
            }
        return {'now': now, 'ready': list(self._ready), 'pending': list(self._pending)}

    def example(self, index: int) -> bytes:
        """The PNG file of an example picture."""
        return self._viewer.examples[index].content

    def prepare(self, sizes: Sequence[Size], stopped: Callable[[], object]) -> None:
        """Compiles the programs for images of some sizes, when nothing is asked meanwhile.

        A request that comes while one is compiled waits for it, and is computed before the next.

        Args:
            sizes: (height, width) of each.
            stopped: whether to end before the next size.
        """
        self._pending = list(dict.fromkeys(sizes))
        while self._pending and not stopped():
            if self._asked.locked() or time.monotonic() - self._last_request < _PATIENCE:
                time.sleep(0.2)
                continue
            size = self._pending[0]
            image = np.zeros((*size, 3), np.uint8)
            with self._computing, self._working('preparation', size):
                self._viewer.segment(image)
                if self._viewer.heads:
                    self._viewer.attend(image, (0, 0))
            self._pending.pop(0)
        self._pending = []

    def segment(self, content: bytes) -> dict[str, Any]:
        """The classes of an image file; `attention` can be asked for its id afterwards.

        Args:
            content: bytes of the image file; EXIF orientation is applied.

        Raises:
            Refused: not an image that can be used, or the model is busy.
        """
        image = self._decode(content)
        with self._alone('classes', image.shape[:2]):
            began = time.perf_counter()
            labels = self._viewer.segment(image)
            seconds = time.perf_counter() - began
            name = secrets.token_urlsafe(12)
            self._images[name] = (image, labels)
            while len(self._images) > _IMAGES:
                self._images.popitem(last=False)
        counts = np.bincount(labels.reshape(-1), minlength=len(self._viewer.classes))
        return {
            'id': name,
            'height': image.shape[0],
            'width': image.shape[1],
            'image': _png_url(image[..., ::-1]),
            'overlay': _png_url(colorize(labels, self._viewer.colors, IGNORE)[..., ::-1]),
            'labels': _url(encode_palette_png(labels, dict(enumerate(self._viewer.colors)))),
            'shares': (counts / labels.size).tolist(),
            'seconds': seconds,
        }

    def attention(self, name: str, y: int, x: int) -> dict[str, Any]:
        """Where each head looks from a pixel: pictures of the map, and where on the image it lies.

        The box is [left, top, width, height] in pixels: position i is the middle of its square.

        Args:
            name: id of an image, from the response of `segment`.
            y: row of the pixel.
            x: column of the pixel.

        Raises:
            Refused: no such image or pixel, no heads, or the model is busy.
        """
        if not self._viewer.heads:
            raise Refused(http.HTTPStatus.CONFLICT, 'This model has no attention heads.')
        if name not in self._images:
            raise Refused(http.HTTPStatus.GONE, 'This image is no longer kept: send it again.')
        image, labels = self._images[name]
        with self._alone('attention', labels.shape):
            height, width = labels.shape
            if not (0 <= y < height and 0 <= x < width):
                raise Refused(
                    http.HTTPStatus.BAD_REQUEST,
                    f'Pixel ({y}, {x}) lies outside of the image of {height} x {width}.',
                )
            weights = self._viewer.attend(image, (y, x))
        stride = self._viewer.stride
        corner = self._viewer.first - stride / 2
        rows, columns = weights.shape[1:]
        return {
            'y': y,
            'x': x,
            'label': int(labels[y, x]),
            'box': [corner, corner, columns * stride, rows * stride],
            'heads': [
                {'graph': graph, 'largest': float(w.max()), 'heat': _png_url(_heat(w))}
                for graph, w in zip(self._viewer.heads, weights)
            ],
        }

    def clip(self, content: bytes, ending: str) -> Clip:
        """A short video overlaid with the colours of the classes.

        Args:
            content: bytes of the video file.
            ending: format of the response, '.mp4' or '.webm', which browsers play.

        Raises:
            Refused: not a video that can be used, one that is too long, or the model is busy.
        """
        if not any(content[at:].startswith(mark) for at, mark in _CONTAINERS):
            raise Refused(
                http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                'The video cannot be used: it is neither mp4, mov, avi, mkv nor webm.',
            )
        with tempfile.TemporaryDirectory() as name:
            source, target = pathlib.Path(name, 'video'), pathlib.Path(name, f'overlay{ending}')
            source.write_bytes(content)
            try:
                reader = video.Reader(source)
            except InputError as error:
                text = 'The video cannot be read: is it damaged, or of a codec without decoder?'
                raise Refused(http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text) from error
            began = time.perf_counter()
            with contextlib.closing(reader):
                self._paint_clip(reader, video.Writer(target, reader.size, reader.rate))
                seconds = time.perf_counter() - began
                return Clip(target.read_bytes(), reader.read, len(reader.lost), seconds)

    def _paint_clip(self, reader: video.Reader, writer: video.Writer) -> None:
        height, width = reader.size
        if height * width > self._max_pixels:
            raise Refused(
                http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f'The video is too large: frames of {height} x {width}, more than '
                f'{self._max_pixels:,} pixels; --mode=predict takes any.',
            )
        too_long = Refused(
            http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f'The video is too long: more than {MAX_FRAMES} frames; cut it, or use --mode=predict, '
            'which takes any.',
        )
        if reader.count > MAX_FRAMES:
            raise too_long
        with self._alone('video', reader.size), writer.open() as append:
            while frames := reader.frames(1):
                if reader.read > MAX_FRAMES:  # a header need not say the truth
                    raise too_long
                painted = colorize(self._viewer.segment(frames[0]), self._viewer.colors, IGNORE)
                append(cv2.addWeighted(frames[0], 0.5, painted, 0.5, 0))

    @contextlib.contextmanager
    def _alone(self, what: str, size: Size) -> Iterator[None]:
        """Refuses at once while another request is being computed; waits for a preparation."""
        self._last_request = time.monotonic()
        if not self._asked.acquire(blocking=False):
            raise Refused(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                'The model is busy with another request: try again in a moment.',
            )
        try:
            with self._computing, self._working(what, size):
                yield
        finally:
            self._last_request = time.monotonic()
            self._asked.release()

    @contextlib.contextmanager
    def _working(self, what: str, size: Size) -> Iterator[None]:
        """Lets `state` tell what is computed."""
        self._work = _Work(what, size, size not in self._ready, time.monotonic())
        try:
            yield
            self._ready[size] = None
            self._ready.move_to_end(size)
            while len(self._ready) > _SIZES:
                self._ready.popitem(last=False)
        finally:
            self._work = None

    def _decode(self, content: bytes) -> np.ndarray:
        """Decodes an image upright; one that is too large is refused before it is decoded."""
        if not content:
            raise Refused(http.HTTPStatus.BAD_REQUEST, 'The file is empty.')
        try:
            return codec.decode_upright(
                content,
                'this file',
                max_pixels=self._max_pixels,
                bits=self._viewer.image_bits,
            )
        except codec.TooLarge as error:
            raise Refused(
                http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f'The image is too large. {error}'
            ) from error
        except InputError as error:
            text = f'The image cannot be used. {error}'
            raise Refused(http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text) from error


def _heat(weights: np.ndarray) -> np.ndarray:
    """BGRA picture uint8 [h, w, 4] of weights, the largest opaque."""
    import matplotlib  # when it is needed: a start waits for it long enough

    shares = weights / weights.max()
    picture = matplotlib.colormaps['inferno'](shares)
    picture[..., 3] = np.sqrt(shares)
    return np.round(255 * picture).astype(np.uint8)[..., [2, 1, 0, 3]]


def _png_url(picture: np.ndarray) -> str:
    """A data URL of a BGR or BGRA picture."""
    quick = (cv2.IMWRITE_PNG_COMPRESSION, 1)
    return _url(cv2.imencode('.png', picture, quick)[1].tobytes())


def _url(png: bytes) -> str:
    return 'data:image/png;base64,' + base64.b64encode(png).decode('ascii')
