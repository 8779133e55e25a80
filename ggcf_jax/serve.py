"""A web page to try a trained model on images of one's own: http.server and one file of HTML.

GET / is the page and GET /model what it is about. POST /segment takes an image file and answers
with its classes; POST /attention takes {"id", "y", "x"}, a pixel of an image that was sent, and
answers with where each head looks from there. Answers are JSON; errors are {"error": text}.

The server is for one person on one machine: it listens on the loopback interface unless told
otherwise, refuses requests in the name of foreign hosts (DNS rebinding) or pages, bounds what it
reads, and computes one thing at a time.
"""

import http
import importlib.resources
import ipaddress
import json
import pathlib
import sys
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from absl.flags import FlagValues
from ml_collections import ConfigDict

from ggcf_jax import config as config_lib
from ggcf_jax.distributed.preemption import stop_requests
from ggcf_jax.errors import InputError
from ggcf_jax.serving import viewer
from ggcf_jax.serving.answers import Answers, Refused

_READ_SECONDS = 30  # a connection that sends nothing for so long is closed
_LAST_SECONDS = 60  # that a request may take to end when the server is told to stop
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=serve`: reads `--host`, `--port` and `--checkpoint`."""
    serve_workdir(config, workdir, flags.checkpoint, flags.host, flags.port)
    return 0


class Server(ThreadingHTTPServer):
    """Requests are read in threads of their own; `Answers` lets one at a time compute."""

    def __init__(self, answers: Answers, host: str, port: int):
        """Args:
        host: name or address to listen on. port: 0 for any free one.
        """
        super().__init__((host, port), _Handler)
        self.answers = answers
        self.page = importlib.resources.files('ggcf_jax.serving').joinpath('page.html').read_bytes()
        self.begun: set[threading.Thread] = set()
        self._host = host

    def allows(self, host: str) -> bool:
        """Whether a request for this Host was meant for us.

        A page that makes its own name point here (DNS rebinding) sends that name.
        """
        try:
            name = urllib.parse.urlsplit(f'//{host}').hostname
            if name not in ('localhost', self._host.lower()):
                ipaddress.ip_address(name or '')
        except ValueError:
            return False
        return True

    def finish(self, seconds: float) -> None:
        """Waits until the requests that have begun are answered, so long at most."""
        end = time.monotonic() + seconds
        for thread in list(self.begun):
            thread.join(max(0.0, end - time.monotonic()))

    def handle_error(self, request, client_address) -> None:
        """Keeps quiet about browsers that hang up."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Reads one request, asks the server, writes the answer."""

    server: Server
    server_version = 'ggcf_jax'
    sys_version = ''
    timeout = _READ_SECONDS
    _unread: int | None = 0  # bytes of the body; None where the request does not say

    def do_GET(self) -> None:
        answers = self.server.answers
        self._answer_with(
            {
                '/': lambda: (self.server.page, 'text/html; charset=utf-8'),
                '/model': lambda: (_json(answers.about()), 'application/json'),
            }
        )

    def do_POST(self) -> None:
        answers = self.server.answers
        length = self.headers.get('Content-Length', '')
        self._unread = int(length) if length.isdecimal() else None
        self._answer_with(
            {
                '/segment': lambda: (
                    _json(answers.segment(self._body(answers.max_bytes))),
                    'application/json',
                ),
                '/attention': lambda: (
                    _json(answers.attention(*self._query())),
                    'application/json',
                ),
            }
        )

    def log_message(self, format, *arguments) -> None:
        """Says nothing: every click would be a line."""

    def _answer_with(self, works: dict[str, Callable[[], tuple[bytes, str]]]) -> None:
        """Answers with the content and kind that the work for this path gives."""
        self.server.begun.add(threading.current_thread())
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
        finally:
            self.server.begun.discard(threading.current_thread())

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
        left = min(self._unread or 0, 4 * self.server.answers.max_bytes)
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
    config_lib.check(config, devices=None)
    model = viewer.load(config, workdir, which)
    try:
        server = Server(Answers(model), host, port)
    except (OSError, OverflowError) as error:
        raise InputError(f'--host={host} --port={port} cannot be listened on: {error}') from error
    server.timeout = 0.5  # how often signals are looked for
    with server, stop_requests() as stop_requested:
        print(f'checkpoint of step {model.step}: http://{host}:{server.server_port}', flush=True)
        if not _is_loopback(host):
            print(f'warning: everyone who can reach {host} can use this server')
        while not stop_requested():
            server.handle_request()
        server.finish(_LAST_SECONDS)
        print(f'stopped by {stop_requested()}')


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def _json(content: dict) -> bytes:
    return json.dumps(content).encode('utf-8')
