"""Buckets on loopback, with faults on demand: gcp-storage-emulator and moto behind one proxy.

The proxy adds what the emulator lacks, the precondition that an object does not exist, and does to
a request what a test asks for.
"""

import contextlib
import dataclasses
import http.client
import http.server
import json
import logging
import os
import threading
import time
import urllib.parse
from collections.abc import Callable

BUCKET = 'bucket'
SCHEMES = ('gs', 's3')


@dataclasses.dataclass
class Fault:
    """What happens to some requests.

    Attributes:
        kind: 'busy' answers 503; 'silent' never answers; 'cut' ends the connection in the middle
            of the answer; 'lost' in the middle of the request, which is not carried out; 'done'
            carries it out and answers 503; 'refused' answers 403; 'missing' 404; 'damaged' changes
            a byte of the answer; 'stale' answers a listing with the one that was given before.
        methods: HTTP methods of the requests.
        part: texts in their URL, or in the beginning of an upload that has the name there.
        times: number of requests.
        skip: number of requests before.
        call: called at each of these requests, before it is answered; one that is 'lost' has been
            read by half then.
    """

    kind: str
    methods: tuple[str, ...]
    part: str
    times: int
    skip: int
    call: Callable[[], object] | None = None
    done: int = 0

    def fits(self, method: str, url: str) -> bool:
        is_meant = all(part in url for part in self.part.split())
        return method in self.methods and is_meant and self.done < self.times


class Proxy:
    """One bucket service.

    Attributes:
        scheme: 'gs' or 's3'.
        url: address of the service.
        requests: (method, URL) of every request so far.
    """

    def __init__(self, scheme: str, backend: tuple[str, int]):
        self.scheme = scheme
        self.requests: list[tuple[str, str]] = []
        self.written = 0
        self._backend = backend
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._creating = threading.Lock()
        self._listings: dict[str, tuple] = {}
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def _any(self) -> None:
                proxy.handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _any

            def log_message(self, *unused: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *unused: object) -> None:
                pass  # clients that are killed

        self._server = Server(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @contextlib.contextmanager
    def fault(
        self,
        kind: str,
        methods: str,
        part: str = '',
        *,
        times: int = 1,
        skip: int = 0,
        call: Callable[[], object] | None = None,
    ):
        """Makes requests fail; yields the fault, whose `done` counts them."""
        fault = Fault(kind, tuple(methods.split()), part, times, skip, call)
        self._faults.append(fault)
        try:
            yield fault
        finally:
            self._faults.remove(fault)

    def environment(self) -> dict[str, str]:
        """What a program finds this service with."""
        if self.scheme == 'gs':
            return {
                'STORAGE_EMULATOR_HOST': self.url,
                'TENSORSTORE_GCS_HTTP_URL': self.url,
                'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
                'GOOGLE_CLOUD_PROJECT': 'test',
                'FSSPEC_GS': json.dumps({'token': 'anon', 'endpoint_url': self.url}),
            }
        return {
            'AWS_ENDPOINT_URL': self.url,
            'AWS_ACCESS_KEY_ID': 'test',
            'AWS_SECRET_ACCESS_KEY': 'test',
            'AWS_DEFAULT_REGION': 'us-east-1',
            'FSSPEC_S3': json.dumps({'endpoint_url': self.url, 'key': 'test', 'secret': 'test'}),
        }

    def handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        url = urllib.parse.unquote(request.path)
        size = int(request.headers.get('Content-Length') or 0)
        start = request.rfile.read(min(size, 600))  # which names the object of some uploads
        if b'"name"' in start:
            url += f' {start.decode(errors="replace")}'
        with self._lock:
            self.requests.append((request.command, url))
            fault = None
            for each in [each for each in self._faults if each.fits(request.command, url)]:
                if each.skip:
                    each.skip -= 1
                elif fault is None:
                    fault = each
                    fault.done += 1
        kind = fault.kind if fault else ''
        call = (fault and fault.call) or (lambda: None)
        if kind == 'lost':
            request.rfile.read((size - len(start)) // 2)
            call()
            request.close_connection = True
            return
        if request.headers.get('Transfer-Encoding') == 'chunked':
            body = self._chunks(request)
        else:
            body = start + request.rfile.read(size - len(start))
        codes = {'busy': 503, 'refused': 403, 'missing': 404}
        if kind == 'silent':
            call()
            time.sleep(30)
            request.close_connection = True
            return
        if kind in codes:
            call()
            self._answer(request, codes[kind], [], b'{}' if self.scheme == 'gs' else b'')
            return
        status, headers, content = self._forward(request, body)
        call()
        if request.command == 'GET' and self._is_listing(url):
            if kind == 'stale' and url in self._listings:
                status, headers, content = self._listings[url]
            self._listings[url] = status, headers, content
        if kind == 'done':
            status, headers, content = 503, [], b'{}'
        if kind == 'damaged' and content:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        self._answer(request, status, headers, content, cut=kind == 'cut')

    def _is_listing(self, url: str) -> bool:
        return 'prefix=' in url

    @staticmethod
    def _chunks(request: http.server.BaseHTTPRequestHandler) -> bytes:
        body = b''
        while size := int(request.rfile.readline().split(b';')[0], 16):
            body += request.rfile.read(size)
            request.rfile.readline()
        while request.rfile.readline().strip():
            pass
        return body

    def _forward(self, request: http.server.BaseHTTPRequestHandler, body: bytes) -> tuple:
        create = 'ifGenerationMatch=0' in request.path
        with self._creating if create else contextlib.nullcontext():
            if create and self._exists(request, body):
                return 412, [], b'{"error": {"code": 412, "message": "conditionNotMet"}}'
            path, headers = request.path, dict(request.headers.items())
            metadata, content = _parts(body) if 'uploadType=multipart' in path else ({}, b'')
            if (
                content
            ):  # whose bytes the emulator reads as lines of text; it takes no empty ones so
                body, name = content, urllib.parse.quote(metadata['name'], safe='')
                path = path.replace('uploadType=multipart', f'uploadType=media&name={name}')
                headers['Content-Type'] = 'application/octet-stream'
            connection = http.client.HTTPConnection(*self._backend, timeout=60)
            headers = {
                name: value
                for name, value in headers.items()
                if name.lower() not in ('transfer-encoding', 'content-length', 'connection')
            }
            headers['Content-Length'] = str(len(body))
            connection.request(request.command, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
        dropped = ('transfer-encoding', 'connection', 'content-length')
        kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in dropped]
        if request.command == 'HEAD':
            kept.append(('Content-Length', answer.getheader('Content-Length') or '0'))
        return answer.status, kept, content

    def _exists(self, request: http.server.BaseHTTPRequestHandler, body: bytes) -> bool:
        """Whether the object of an upload exists, by its name in the URL or in the metadata."""
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(request.path).query)
        if 'upload_id' in query:
            return False
        name = query['name'][0] if 'name' in query else _parts(body)[0]['name']
        connection = http.client.HTTPConnection(*self._backend, timeout=60)
        quoted = urllib.parse.quote(name, safe='')
        connection.request('GET', f'/storage/v1/b/{BUCKET}/o/{quoted}')
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status == 200

    def _answer(self, request, status: int, headers: list, content: bytes, *, cut: bool = False):
        try:
            request.send_response_only(status)
            for name, value in headers:
                request.send_header(name, value)
            if not any(name == 'Content-Length' for name, _ in headers):
                request.send_header('Content-Length', str(len(content)))
            request.end_headers()
            if request.command != 'HEAD':
                request.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                request.wfile.flush()
                request.close_connection = True
        except OSError:
            request.close_connection = True  # the client has gone


def _parts(body: bytes) -> tuple[dict, bytes]:
    """Metadata and content of an upload in two parts, as gcsfs sends it."""
    head, _, rest = body.partition(b'\n--==0==\n')
    content = rest.partition(b'\n\n')[2].removesuffix(b'\n--==0==--')
    return json.loads(head.partition(b'\n\n')[2]), content


def start_gcs() -> Proxy:
    from gcp_storage_emulator import server

    for name in ('gcp_storage_emulator', 'gcsfs', 'api.object', 'storage'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    emulator = server.create_server('127.0.0.1', 0, in_memory=True, default_bucket=BUCKET)
    emulator._api.daemon = True  # or it would keep the process from ending
    emulator.start()
    return Proxy('gs', ('127.0.0.1', emulator._api._httpd.server_address[1]))


def start_s3() -> Proxy:
    import urllib.request

    from moto.server import ThreadedMotoServer

    logging.getLogger('werkzeug').setLevel(logging.CRITICAL)
    server = ThreadedMotoServer('127.0.0.1', 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    make = urllib.request.Request(f'http://{host}:{port}/{BUCKET}', method='PUT')
    urllib.request.urlopen(make).close()
    return Proxy('s3', (host, port))


def start(scheme: str) -> Proxy:
    """Starts a service for the rest of this process, and points the libraries at it."""
    proxy = start_gcs() if scheme == 'gs' else start_s3()
    os.environ.update(proxy.environment())
    import fsspec

    fsspec.config.set_conf_env(fsspec.config.conf)
    return proxy
