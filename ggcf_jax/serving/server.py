"""HTTP server of the page: http.server and one file of HTML.

GET / is the page, GET /model describes the model, GET /state says what it does now, and
GET /examples/0 is the first of its example pictures. POST /segment takes an image file and responds
with its classes; POST /attention takes {"id", "y", "x"}, a pixel of an image sent before, and
responds with where each head looks from there. Responses are JSON; errors are {"error": text}.
POST /clip takes a short video and responds with it overlaid, as mp4.

The server is for one person on one machine: it refuses requests in the name of foreign hosts (DNS
rebinding) or pages, limits what it reads, and computes one thing at a time.
"""

import dataclasses
import functools
import http
import importlib.resources
import ipaddress
import json
import socket
import sys
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ggcf_jax import json_files
from ggcf_jax.serving.answers import Answers, Refused

_READ_SECONDS = 30  # a connection that sends nothing for this long is closed
_POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; media-src blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@dataclasses.dataclass(frozen=True)
class _Content:
    """What a response holds.

    Attributes:
        body: its bytes.
        kind: its content type.
        told: further headers.
    """

    body: bytes
    kind: str
    told: Mapping[str, object] = dataclasses.field(default_factory=dict)


class Server(ThreadingHTTPServer):
    """Reads requests in threads of their own; `Answers` lets one at a time compute."""

    def __init__(self, answers: Answers, host: str, port: int, names: Sequence[str] = ()):
        """Starts to listen.

        Args:
            answers: responses of the model.
            host: name or address to listen on.
            port: port to listen on; 0 picks a free one.
            names: further names that the server is opened by, beside 'localhost', `host`, addresses
                and, where others can reach it, the machine's own name.

        Raises:
            OSError, OverflowError: host and port cannot be listened on.
        """
        super().__init__((host, port), _Handler)
        self.answers = answers
        self.page = importlib.resources.files('ggcf_jax.serving').joinpath('page.html').read_bytes()
        self.begun: set[threading.Thread] = set()
        known = {'localhost', host, *names}
        if not is_loopback(host):
            known |= {socket.gethostname(), socket.getfqdn()}
        self._names = {name.lower() for name in known}

    def allows(self, host: str) -> bool:
        """Whether a request with this Host header was meant for this server.

        A page whose own name is made to point here (DNS rebinding) sends that name.

        Args:
            host: value of the header.
        """
        try:
            name = urllib.parse.urlsplit(f'//{host}').hostname
            if name not in self._names:
                ipaddress.ip_address(name or '')
        except ValueError:
            return False
        return True

    def finish(self, seconds: float) -> None:
        """Waits until the requests that have begun are answered.

        Args:
            seconds: longest time to wait.
        """
        end = time.monotonic() + seconds
        for thread in list(self.begun):
            thread.join(max(0.0, end - time.monotonic()))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores dropped connections."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Reads one request and writes the response."""

    server: Server
    server_version = 'ggcf_jax'
    sys_version = ''
    timeout = _READ_SECONDS
    _unread: int | None = 0  # bytes of the body; None where the request does not say

    def do_GET(self) -> None:
        answers = self.server.answers
        self._respond_with(
            {
                '/': lambda: _Content(self.server.page, 'text/html; charset=utf-8'),
                '/model': lambda: _json(answers.about()),
                '/state': lambda: _json(answers.state()),
                **{
                    f'/examples/{index}': functools.partial(self._example, index)
                    for index in range(len(answers.about()['examples']))
                },
            }
        )

    def do_POST(self) -> None:
        answers = self.server.answers
        length = self.headers.get('Content-Length', '')
        # Of 15 digits, which is more than any limit: int() refuses thousands of them.
        self._unread = int(f'0{length.lstrip("0")[:15]}') if length.isdecimal() else None
        self._respond_with(
            {
                '/segment': lambda: _json(answers.segment(self._body(answers.max_bytes))),
                '/clip': functools.partial(self._clip, '.mp4'),
                '/clip.webm': functools.partial(self._clip, '.webm'),
                '/attention': lambda: _json(answers.attention(*self._query())),
            }
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: every click would be a line."""

    def _respond_with(self, pages: dict[str, Callable[[], _Content]]) -> None:
        """Responds with what the entry for this path returns."""
        self.server.begun.add(threading.current_thread())
        try:
            self._check_sender()
            if self.path not in pages:
                raise Refused(http.HTTPStatus.NOT_FOUND, f'There is nothing at {self.path}.')
            content = pages[self.path]()
        except Refused as error:
            self._refuse(error.status, str(error))
        except Exception as error:
            traceback.print_exc()
            self._refuse(
                http.HTTPStatus.INTERNAL_SERVER_ERROR,
                f'The model failed: {type(error).__name__}. The terminal says more.',
            )
        else:
            self._respond(http.HTTPStatus.OK, content)
        finally:
            self.server.begun.discard(threading.current_thread())

    def _example(self, index: int) -> _Content:
        return _Content(self.server.answers.example(index), 'image/png')

    def _clip(self, ending: str) -> _Content:
        answers = self.server.answers
        clip = answers.clip(self._body(answers.max_bytes), ending)
        told = {'Frames': clip.frames, 'Lost-Frames': clip.lost, 'Seconds': f'{clip.seconds:.3f}'}
        return _Content(clip.content, f'video/{ending[1:]}', told)

    def _check_sender(self) -> None:
        host = self.headers.get('Host', '')
        if not self.server.allows(host):
            raise Refused(
                http.HTTPStatus.FORBIDDEN,
                f'This server does not answer in the name of {host!r}: open it by its address, or '
                f'start it with --allow_host={host.partition(":")[0]}.',
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
            query = json_files.parse_object(self._body(1000))
            name, y, x = query['id'], query['y'], query['x']
            if not (isinstance(name, str) and type(y) is type(x) is int):
                raise ValueError
        except (ValueError, KeyError) as error:
            text = 'A query is {"id": text, "y": integer, "x": integer}.'
            raise Refused(http.HTTPStatus.BAD_REQUEST, text) from error
        return name, y, x

    def _refuse(self, status: http.HTTPStatus, text: str) -> None:
        # Closing on a browser that still sends would lose the answer: read on, within bounds.
        left = min(self._unread or 0, 4 * self.server.answers.max_bytes)
        while left > 0 and (piece := self.rfile.read(min(left, 2**16))):
            left -= len(piece)
        self._respond(status, _json({'error': text}))

    def _respond(self, status: http.HTTPStatus, content: _Content) -> None:
        self.send_response(status)
        self.send_header('Content-Type', content.kind)
        self.send_header('Content-Length', str(len(content.body)))
        for name, value in content.told.items():
            self.send_header(name, str(value))
        self.send_header('Content-Security-Policy', _POLICY)
        self.send_header('X-Content-Type-Options', 'nosniff')
        self.send_header('Cache-Control', 'no-store')
        if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header('Retry-After', '2')
        self.end_headers()
        self.wfile.write(content.body)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on this name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def _json(content: dict) -> _Content:
    return _Content(json.dumps(content).encode('utf-8'), 'application/json')
