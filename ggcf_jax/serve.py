"""A web page to try a trained model on images of one's own: http.server and one file of HTML.

GET / is the page and GET /model what it is about. POST /segment takes an image file and answers
with its classes; POST /attention takes {"id", "y", "x"}, a pixel of an image that was sent, and
answers with where each head looks from there. Answers are JSON; errors are {"error": text}.

The server is for one person on one machine: it listens on the loopback interface unless told
otherwise, refuses requests in the name of foreign hosts (DNS rebinding) or pages, bounds what it
reads, and computes one thing at a time.
"""

import base64
import collections
import contextlib
import http
import importlib.resources
import io
import ipaddress
import json
import pathlib
import secrets
import sys
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import matplotlib
import numpy as np
from PIL import Image

from ggcf_jax import viewer as viewer_lib
from ggcf_jax.data import codec
from ggcf_jax.data.codec import IGNORE
from ggcf_jax.errors import InputError
from ggcf_jax.interrupt import stop_requests
from ggcf_jax.viewer import Viewer
from ggcf_jax.visualize import colorize

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 2**22  # 2048 x 2048: a FULL head sees 65,536 positions then
_IMAGES = 8  # that can still be asked about, the latest
_READ_SECONDS = 30  # a connection that sends nothing for so long is closed
_LAST_SECONDS = 60  # that a computation may take to end when the server is told to stop
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: http.HTTPStatus, text: str):
        super().__init__(text)
        self.status = status


class Server(ThreadingHTTPServer):
    """The server of one model.

    Requests are read in threads of their own; only one at a time computes, and another one is told
    at once that the model is busy.
    """

    def __init__(
        self,
        viewer: Viewer,
        host: str,
        port: int,
        *,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
    ):
        """Args:
        host: name or address to listen on. port: 0 for any free one.
        max_bytes: of a file. max_pixels: of an image.
        """
        super().__init__((host, port), _Handler)
        self.viewer = viewer
        self.host = host
        self.max_bytes = max_bytes
        self.max_pixels = max_pixels
        self.page = importlib.resources.files('ggcf_jax').joinpath('serve.html').read_bytes()
        self.computing = threading.Lock()
        self._images: collections.OrderedDict[str, tuple[np.ndarray, np.ndarray]] = (
            collections.OrderedDict()
        )

    def about(self) -> dict:
        """What the page is about."""
        return {
            'name': self.viewer.name,
            'classes': self.viewer.classes,
            'colors': self.viewer.colors,
            'heads': self.viewer.heads,
            'step': self.viewer.step,
            'plan': self.viewer.plan,
            'stride': self.viewer.stride,
            'max_bytes': self.max_bytes,
            'max_pixels': self.max_pixels,
        }

    def segment(self, content: bytes) -> dict:
        """The classes of an image file; it can be asked about afterwards."""
        image = self._decode(content)
        with self._alone():
            began = time.perf_counter()
            labels = self.viewer.segment(image)
            seconds = time.perf_counter() - began
            name = secrets.token_urlsafe(12)
            self._images[name] = (image, labels)
            while len(self._images) > _IMAGES:
                self._images.popitem(last=False)
        counts = np.bincount(labels.reshape(-1), minlength=len(self.viewer.classes))
        return {
            'id': name,
            'height': image.shape[0],
            'width': image.shape[1],
            'image': _png_url(image[..., ::-1]),
            'overlay': _png_url(colorize(labels, self.viewer.colors, IGNORE)[..., ::-1]),
            'shares': (counts / labels.size).tolist(),
            'seconds': seconds,
        }

    def attention(self, name: str, y: int, x: int) -> dict:
        """Where each head looks from a pixel: pictures of the map, and where on the image it lies.

        The box is [left, top, width, height] in pixels: position i is the middle of its square.
        """
        if not self.viewer.heads:
            raise Refused(http.HTTPStatus.CONFLICT, 'This model has no attention heads.')
        with self._alone():
            if name not in self._images:
                raise Refused(http.HTTPStatus.GONE, 'This image is no longer kept: send it again.')
            image, labels = self._images[name]
            height, width = labels.shape
            if not (0 <= y < height and 0 <= x < width):
                raise Refused(
                    http.HTTPStatus.BAD_REQUEST,
                    f'Pixel ({y}, {x}) lies outside of the image of {height} x {width}.',
                )
            weights = self.viewer.attend(image, (y, x))
        stride = self.viewer.stride
        rows, columns = weights.shape[1:]
        return {
            'y': y,
            'x': x,
            'label': int(labels[y, x]),
            'box': [-stride / 2, -stride / 2, columns * stride, rows * stride],
            'heads': [
                {'graph': graph, 'largest': float(w.max()), 'heat': _png_url(_heat(w))}
                for graph, w in zip(self.viewer.heads, weights)
            ],
        }

    def allows(self, host: str) -> bool:
        """Whether a request for this Host was meant for us.

        A page that makes its own name point here (DNS rebinding) sends that name.
        """
        name = urllib.parse.urlsplit(f'//{host}').hostname
        if name in ('localhost', self.host.lower()):
            return True
        try:
            ipaddress.ip_address(name or '')
        except ValueError:
            return False
        return True

    def handle_error(self, request, client_address) -> None:
        """Keeps quiet about browsers that hang up."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuses at once where another request computes."""
        if not self.computing.acquire(blocking=False):
            raise Refused(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                'The model is busy with another request: try again in a moment.',
            )
        try:
            yield
        finally:
            self.computing.release()

    def _decode(self, content: bytes) -> np.ndarray:
        """The image, upright, refusing what is too large before it is unpacked."""
        bad = http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        if not content:
            raise Refused(http.HTTPStatus.BAD_REQUEST, 'The file is empty.')
        try:
            width, height = Image.open(io.BytesIO(content)).size
        except Image.DecompressionBombError as error:
            raise self._too_many_pixels('far more than') from error
        except Exception as error:  # Pillow's readers raise what they like for broken headers
            raise Refused(bad, 'This is not an image that can be read: try PNG or JPEG.') from error
        if width * height > self.max_pixels:
            raise self._too_many_pixels(f'{width} x {height}, more than')
        try:
            return codec.decode_upright(content, 'this file')
        except InputError as error:
            raise Refused(bad, f'The image cannot be used. {error}') from error

    def _too_many_pixels(self, size: str) -> Refused:
        return Refused(
            http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f'The image is too large: {size} {self.max_pixels:,} pixels. Make it smaller first.',
        )


class _Handler(BaseHTTPRequestHandler):
    """Reads one request, asks the server, writes the answer."""

    server: Server
    server_version = 'ggcf_jax'
    sys_version = ''
    timeout = _READ_SECONDS
    _unread: int | None = 0  # bytes of the body; None where the request does not say

    def do_GET(self) -> None:
        server = self.server
        self._answer_with(
            {
                '/': lambda: (server.page, 'text/html; charset=utf-8'),
                '/model': lambda: (_json(server.about()), 'application/json'),
            }
        )

    def do_POST(self) -> None:
        server = self.server
        length = self.headers.get('Content-Length', '')
        self._unread = int(length) if length.isdecimal() else None
        self._answer_with(
            {
                '/segment': lambda: (
                    _json(server.segment(self._body(server.max_bytes))),
                    'application/json',
                ),
                '/attention': lambda: (
                    _json(server.attention(*self._query())),
                    'application/json',
                ),
            }
        )

    def log_message(self, format, *arguments) -> None:
        """Says nothing: every click would be a line."""

    def _answer_with(self, works: dict[str, Callable[[], tuple[bytes, str]]]) -> None:
        """Answers with the content and kind that the work for this path gives."""
        try:
            self._check_sender()
            if self.path not in works:
                raise Refused(http.HTTPStatus.NOT_FOUND, f'There is nothing at {self.path}.')
            content, kind = works[self.path]()
        except Refused as error:
            self._refuse(error.status, str(error))
        except Exception as error:
            traceback.print_exc()
            self._refuse(
                http.HTTPStatus.INTERNAL_SERVER_ERROR,
                f'The model failed: {type(error).__name__}. The terminal says more.',
            )
        else:
            self._answer(http.HTTPStatus.OK, content, kind)

    def _check_sender(self) -> None:
        host = self.headers.get('Host', '')
        if not self.server.allows(host):
            raise Refused(
                http.HTTPStatus.FORBIDDEN,
                f'This server does not answer in the name of {host!r}; open it by its address.',
            )
        origin = self.headers.get('Origin')
        if origin is not None and urllib.parse.urlsplit(origin).netloc != host:
            raise Refused(http.HTTPStatus.FORBIDDEN, f'Requests from {origin} are refused.')

    def _body(self, most: int) -> bytes:
        if self._unread is None:
            raise Refused(http.HTTPStatus.LENGTH_REQUIRED, 'The request must say its length.')
        if self._unread > most:
            raise Refused(
                http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f'The file is too large: {self._unread:,} bytes, more than {most:,}.',
            )
        length, self._unread = self._unread, 0
        body = self.rfile.read(length)
        if len(body) < length:
            raise Refused(http.HTTPStatus.BAD_REQUEST, 'The upload broke off.')
        return body

    def _query(self) -> tuple[str, int, int]:
        try:
            query = json.loads(self._body(1000))
            name, y, x = query['id'], query['y'], query['x']
            if not (isinstance(name, str) and type(y) is type(x) is int):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            text = 'A query is {"id": text, "y": integer, "x": integer}.'
            raise Refused(http.HTTPStatus.BAD_REQUEST, text) from error
        return name, y, x

    def _refuse(self, status: http.HTTPStatus, text: str) -> None:
        # Closing on a browser that still sends would lose the answer: read on, within bounds.
        left = min(self._unread or 0, 4 * self.server.max_bytes)
        while left > 0 and (piece := self.rfile.read(min(left, 2**16))):
            left -= len(piece)
        self._answer(status, _json({'error': text}), 'application/json')

    def _answer(self, status: http.HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(content)))
        self.send_header('Content-Security-Policy', _POLICY)
        self.send_header('X-Content-Type-Options', 'nosniff')
        self.send_header('Cache-Control', 'no-store')
        if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header('Retry-After', '2')
        self.end_headers()
        self.wfile.write(content)


def serve_workdir(
    config, workdir: str | pathlib.Path, which: str | int, host: str, port: int
) -> None:
    """Serves a checkpoint of a run until Ctrl-C or SIGTERM.

    Args:
        config: of the run. workdir: of the run. which: checkpoint, 'best', 'latest' or a step.
        host: name or address to listen on. port: to listen on, 0 for any free one.

    Raises:
        InputError: no such run or checkpoint, or a host and port that cannot be listened on.
    """
    viewer = viewer_lib.load(config, workdir, which)
    try:
        server = Server(viewer, host, port)
    except (OSError, OverflowError) as error:
        raise InputError(f'--host={host} --port={port} cannot be listened on: {error}') from error
    server.timeout = 0.5  # how often signals are looked for
    with server, stop_requests() as stop_requested:
        print(f'checkpoint of step {viewer.step}: http://{host}:{server.server_port}', flush=True)
        if not _is_loopback(host):
            print(f'warning: everyone who can reach {host} can use this server')
        while not stop_requested():
            server.handle_request()
        # What is being computed still gets its answer.
        if server.computing.acquire(timeout=_LAST_SECONDS):
            server.computing.release()
        print(f'stopped by {stop_requested()}')


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def _heat(weights: np.ndarray) -> np.ndarray:
    """BGRA picture uint8 [h, w, 4] of weights, the largest opaque."""
    shares = weights / weights.max()
    picture = matplotlib.colormaps['inferno'](shares)
    picture[..., 3] = np.sqrt(shares)
    return np.round(255 * picture).astype(np.uint8)[..., [2, 1, 0, 3]]


def _png_url(picture: np.ndarray) -> str:
    """A data URL of a BGR or BGRA picture."""
    quick = (cv2.IMWRITE_PNG_COMPRESSION, 1)
    content = cv2.imencode('.png', picture, quick)[1].tobytes()
    return 'data:image/png;base64,' + base64.b64encode(content).decode('ascii')


def _json(content: dict) -> bytes:
    return json.dumps(content).encode('utf-8')
