"""Objects in a bucket, `gs://` or `s3://`, in the place of files.

`BucketPath` is an `etils.epath` path with the methods of `pathlib.Path` that this package uses.
What a bucket has instead of a file system:

- An object appears whole, or not at all, and is replaced whole; nothing can be appended to it.
- It can be created on the condition that there is none of its name (`create`).
- Folders are parts of names. They need not be made, and cannot be renamed at once: `move_tree` and
  `remove_tree` work object by object, in an order in which no half of a folder looks complete.

A request that fails for a reason that may pass (a busy or unreachable server, a time-out, a broken
connection) is repeated, at growing intervals, for `PATIENCE` seconds. Then, and at once where
repeating is of no use, `BucketError` says what failed. Listings are never kept in memory.
"""

import base64
import concurrent.futures
import contextlib
import dataclasses
import datetime
import errno
import functools
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import random
import re
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from etils.epath.gpath import PosixGPath

from ggcf_jax import json_files
from ggcf_jax.errors import InputError

MANIFEST = 'objects.json'  # the names of the files of a folder, since a listing may lag behind
PATIENCE = 300.0  # seconds for which a request is repeated
LONGEST_PAUSE = 30.0  # seconds between two attempts
REQUEST_TIMEOUT = 120.0  # seconds until an unanswered request counts as failed
_ATTEMPTS = 3  # at an object that changes while it is read, or is damaged on its way
_CHUNK = 16 << 20  # bytes that are read at once
_THREADS = 8  # transfers at a time

# Scheme -> the library that fsspec needs for it, and the extra of this package that brings it.
_LIBRARIES = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}
_URL = re.compile(r'(gs|s3):/')

_T = TypeVar('_T')


class BucketError(OSError):
    """A bucket that cannot be used: refused, or not reached in all of `PATIENCE`.

    The message is for the user; `main.py` prints it alone.
    """


class NotThere(BucketError, FileNotFoundError):
    """No such object, or no such bucket."""


@dataclasses.dataclass(frozen=True)
class Info:
    """What a listing says of an object.

    Attributes:
        size: bytes.
        version: text that changes when the object is written again.
        md5: hexadecimal MD5 of its content; '' where the service has none, as for objects that
            were uploaded in parts.
        modified: when it was written, in seconds since 1970; 0 where the service does not say.
    """

    size: int
    version: str
    md5: str
    modified: int = 0


class BucketPath(PosixGPath):
    """A path in a bucket. Every method asks the bucket; nothing is remembered."""

    def exists(self) -> bool:
        return _call(self, lambda fs: fs.exists(str(self)))

    def is_file(self) -> bool:
        return _call(self, lambda fs: fs.isfile(str(self)))

    def is_dir(self) -> bool:
        return _call(self, lambda fs: fs.isdir(str(self)))

    def iterdir(self) -> 'Iterator[BucketPath]':
        found = _call(self, lambda fs: fs.ls(str(self), detail=False))
        names = {name.rstrip('/').rpartition('/')[2] for name in found if not self._is(name)}
        yield from (self / name for name in sorted(names))

    def glob(self, pattern: str) -> 'Iterator[BucketPath]':
        """The objects that match a pattern of as many parts; folders are none."""
        depth = len(pathlib.PurePosixPath(pattern).parts)
        for name in tree(self):
            relative = pathlib.PurePosixPath(name)
            if len(relative.parts) == depth and relative.match(pattern):
                yield self / name

    def rglob(self, pattern: str) -> 'Iterator[BucketPath]':
        """The objects below whose names match a pattern."""
        for name in tree(self):
            if pathlib.PurePosixPath(name).match(pattern):
                yield self / name

    def read_bytes(self) -> bytes:
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._content()
            except NotThere:
                if not self.is_file():
                    raise  # otherwise the service contradicts itself: once more
        return self._content()

    def _content(self) -> bytes:
        return _call(self, lambda fs: fs.cat_file(str(self)))

    def read_text(self, encoding: str = 'utf-8') -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> int:
        _call(self, lambda fs: fs.pipe_file(str(self), bytes(data)))
        return len(data)

    def write_text(self, data: str, encoding: str = 'utf-8') -> int:
        return self.write_bytes(data.encode(encoding))

    def open(self, mode: str = 'r', **options: Any) -> Any:
        """Opens an object that is small enough for the memory, to read its bytes."""
        if mode != 'rb' or options:
            raise ValueError(f'{self}: objects of a bucket are opened to read bytes only')
        return io.BytesIO(self.read_bytes())

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            _call(self, lambda fs: fs.rm_file(str(self)))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder is there as long as there are objects in it."""

    def rmdir(self) -> None:
        """Does nothing, as `mkdir`."""

    def rename(self, target: Any) -> 'BucketPath':
        raise ValueError(f'{self}: a bucket cannot rename; see move_tree')

    def replace(self, target: Any) -> 'BucketPath':
        raise ValueError(f'{self}: a bucket cannot rename; see move_tree')

    def stat(self) -> Any:
        """Has `st_size` alone."""
        return types.SimpleNamespace(st_size=info(self).size)

    def expanduser(self) -> 'BucketPath':
        return self

    def resolve(self, strict: bool = False) -> 'BucketPath':
        return self

    def absolute(self) -> 'BucketPath':
        return self

    def is_absolute(self) -> bool:
        return True

    @property
    def scheme(self) -> str:
        return str(self).partition(':')[0]

    @property
    def bucket(self) -> str:
        return str(self).partition('://')[2].partition('/')[0]

    def _is(self, name: str) -> bool:
        """Whether a listing names this path: some programs make objects for folders."""
        return name.rstrip('/') == str(self).partition('://')[2].rstrip('/')


def is_bucket(path: object) -> bool:
    """Whether a path, or a text that names one, is that of a bucket."""
    return isinstance(path, BucketPath) or (
        isinstance(path, str | os.PathLike) and _URL.match(os.fspath(path)) is not None
    )


def parse(url: str) -> BucketPath:
    """The path that `gs://bucket/name` or `s3://bucket/name` means.

    Raises:
        InputError: there is no name of a bucket, or the library for it is not installed.
    """
    scheme, _, rest = url.partition(':')
    if not rest.startswith('//'):
        raise InputError(
            f'{url!r} has lost a slash, as in pathlib.Path; give {scheme}:/{rest} as a text'
        )
    if not rest.strip('/'):
        raise InputError(f'{url!r} names no bucket; give {scheme}://BUCKET/FOLDER')
    library, extra = _LIBRARIES[scheme]
    if importlib.util.find_spec(library) is None:
        raise InputError(
            f'{url}: {scheme}:// needs {library}, which is not installed: '
            f"pip install 'ggcf_jax[{extra}]'"
        )
    return BucketPath(url)


def local_or_not(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path as it is meant: in a bucket where it begins with `gs://` or `s3://`, else local."""
    if isinstance(path, BucketPath):
        return path
    return parse(os.fspath(path)) if is_bucket(path) else pathlib.Path(path)


def info(path: BucketPath) -> Info:
    """Size, version and hash of an object.

    Raises:
        NotThere: there is no such object.
    """
    return _info(_call(path, lambda fs: fs.info(str(path))))


def tree(path: BucketPath) -> dict[str, Info]:
    """All objects below a folder, by their name relative to it, sorted; {} where there is none."""
    try:
        found = _call(path, lambda fs: fs.find(str(path), detail=True))
    except FileNotFoundError:
        return {}
    start = f'{str(path).partition("://")[2].rstrip("/")}/'
    return {
        name.removeprefix(start): _info(entry)
        for name, entry in sorted(found.items())
        if name.startswith(start) and not name.endswith('/')
    }


def create(path: BucketPath, content: bytes) -> bool:
    """Writes an object if there is none of its name; returns whether it was written.

    Args:
        path: the object.
        content: what it shall hold; unlike that of any other writer.
    """
    try:
        _call(path, lambda fs: fs.pipe_file(str(path), content, mode='create'))
    except FileExistsError:
        # A request that was answered with an error may have been carried out all the same.
        return path.read_bytes() == content
    return True


def upload(file: pathlib.Path, path: BucketPath) -> None:
    """Copies a file into the bucket; the object appears when all of it is there.

    Raises:
        BucketError: the bucket cannot be written, or holds other bytes than were sent.
    """
    _call(path, lambda fs: fs.put_file(str(file), str(path)))
    found, digest = info(path), ''
    if found.md5:
        with file.open('rb') as opened:
            digest = hashlib.file_digest(opened, 'md5').hexdigest()
    if found.size != file.stat().st_size or found.md5 != digest:
        raise BucketError(f'{path} does not hold what was sent; the transfer was damaged')


def upload_tree(folder: pathlib.Path, path: BucketPath, *, last: str) -> None:
    """Copies the files of a folder into the bucket, and their names into `MANIFEST`.

    Args:
        folder: folder to copy.
        path: folder in the bucket.
        last: name of the file that marks the rest as complete. It is removed from the bucket
            first, and written when all others are there.
    """
    (path / last).unlink(missing_ok=True)
    names = [file.relative_to(folder).as_posix() for file in folder.rglob('*') if not file.is_dir()]
    _together(lambda name: upload(folder / name, path / name), set(names) - {last})
    (path / MANIFEST).write_bytes(json.dumps(sorted(names)).encode())
    upload(folder / last, path / last)


def download(
    path: BucketPath,
    file: pathlib.Path,
    advance: Callable[[int], object] = id,
    found: Info | None = None,
) -> Info:
    """Copies an object into a file, and verifies size and hash.

    A transfer that was interrupted goes on where it stopped, unless the object was written again.

    Args:
        path: the object.
        file: file to write; while it is not complete, a file beside it holds the beginning.
        advance: called with each number of bytes that was added.
        found: what a listing said of the object; None asks for it.

    Returns:
        What the bucket says of the object that was copied.

    Raises:
        BucketError: the object cannot be read, or changes all the time.
    """
    for attempt in range(_ATTEMPTS):
        found = found if found and not attempt else info(path)
        version = hashlib.sha256(found.version.encode()).hexdigest()[:12]
        part = file.with_name(f'.{file.name[:200]}.{version}.part')
        try:
            _continue(path, part, found.size, advance)
        except NotThere:  # although there was an object just now
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            # A hash says that all parts are of one version.
            is_one = bool(found.md5) or info(path).version == found.version
            if _is_intact(part, found) and is_one:
                part.replace(file)
                return found
        advance(-part.stat().st_size)
        if part.stat().st_size >= found.size:
            part.unlink()
    raise BucketError(f'{path} has not the hash that its bucket states; it is written again often')


def _continue(
    path: BucketPath, part: pathlib.Path, size: int, advance: Callable[[int], object]
) -> None:
    """Adds to a file what it lacks of an object."""
    with part.open('ab') as opened:
        start = opened.tell()
        advance(start)
        while start < size:
            stop = min(start + _CHUNK, size)
            opened.write(_call(path, functools.partial(_range, str(path), start, stop)))
            advance(stop - start)
            start = stop


def download_tree(path: BucketPath, folder: pathlib.Path) -> None:
    """Copies the files that `upload_tree` copied back; of another folder, all objects."""

    def one(name: str) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        download(path / name, file)

    _together(one, _manifest(path) or tree(path))


@contextlib.contextmanager
def fetched(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a file on the disk: the path itself, or a copy of an object."""
    if not isinstance(path, BucketPath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix='ggcf_jax-') as folder:
        copy = pathlib.Path(folder) / path.name
        download(path, copy)
        yield copy


def remove_tree(path: pathlib.PurePath, *, first: str) -> None:
    """Removes all objects below a folder.

    Args:
        path: the folder.
        first: name of the object that marks the others as complete: without it they count as
            absent, whenever the removal is interrupted.
    """
    path = BucketPath(path)
    (path / first).unlink(missing_ok=True)
    _together(lambda name: (path / name).unlink(missing_ok=True), {*tree(path), *_manifest(path)})


def move_tree(path: BucketPath, target: pathlib.PurePath, *, mark: str) -> None:
    """Gives the objects below a folder other names: copies them all, then removes the first ones.

    Args:
        path: the folder.
        target: its new name.
        mark: name of the object that marks the others as complete.
    """

    def copy(name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # a listing may lag behind
            _call(path, lambda fs: fs.cp_file(str(path / name), str(target / name)))

    _together(copy, {*tree(path), *_manifest(path)})
    remove_tree(path, first=mark)


def check_writable(path: BucketPath) -> None:
    """Writes an object below a path and removes it again.

    Raises:
        BucketError: that is not allowed, or there is no such bucket.
    """
    probe = path / f'.ggcf_jax-may-write-{os.getpid()}-{random.getrandbits(32):08x}'
    try:
        probe.write_bytes(b'')
    except FileNotFoundError as error:
        raise NotThere(f'there is no bucket {path.scheme}://{path.bucket}') from error
    probe.unlink(missing_ok=True)


def _manifest(path: BucketPath) -> list[str]:
    """Names of the files that `upload_tree` copied to a folder; [] where it did not."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        names = json_files.parse_list((path / MANIFEST).read_bytes(), json_files.is_text)
        return [*names, MANIFEST]
    return []


def _range(name: str, start: int, stop: int, fs: Any) -> bytes:
    data = fs.cat_file(name, start=start, end=stop)
    if len(data) != stop - start:
        raise ConnectionError(f'{len(data)} of {stop - start} bytes came')
    return data


def _is_intact(file: pathlib.Path, found: Info) -> bool:
    if file.stat().st_size != found.size:
        return False
    if not found.md5:
        return True
    with file.open('rb') as opened:
        return hashlib.file_digest(opened, 'md5').hexdigest() == found.md5


def _together(call: Callable[[str], object], names: Iterable[str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for future in [pool.submit(call, name) for name in names]:
            future.result()


def _info(entry: dict[str, Any]) -> Info:
    """From what gcsfs or s3fs tells of an object."""
    etag = str(entry.get('ETag', '')).strip('"')
    if 'md5Hash' in entry:
        md5 = base64.b64decode(entry['md5Hash'] or '').hex()
    else:
        md5 = etag if re.fullmatch('[0-9a-f]{32}', etag) and not _is_encrypted(entry) else ''
    version = str(entry.get('generation') or etag or entry.get('mtime') or '')
    when = entry.get('mtime') or entry.get('LastModified')
    modified = int(when.timestamp()) if isinstance(when, datetime.datetime) else 0
    return Info(int(entry.get('size') or 0), version, md5, modified)


def _is_encrypted(entry: dict[str, Any]) -> bool:
    """Whether the ETag is none of the content: keys of a key service."""
    return 'kms' in str(entry.get('ServerSideEncryption', '')).lower()


def _filesystem(path: BucketPath) -> Any:
    """fsspec keeps one for the process; what the user configured in fsspec holds."""
    import fsspec

    options: dict[str, Any] = {'use_listings_cache': False}
    if path.scheme == 'gs':
        options |= {'consistency': 'md5', 'requests_timeout': REQUEST_TIMEOUT}
    else:
        options |= {
            'config_kwargs': {'read_timeout': REQUEST_TIMEOUT, 'connect_timeout': REQUEST_TIMEOUT}
        }
    return fsspec.filesystem(path.scheme, **options)


def _call(path: BucketPath, operation: Callable[[Any], _T]) -> _T:
    """Carries out an operation, again and again where that may help."""
    deadline = time.monotonic() + PATIENCE
    pause, damaged = 0.5, 0
    while True:
        try:
            return operation(_filesystem(path))
        except Exception as error:
            told, is_final = _told(error, path)
            if told is None:
                raise
            damaged += 'Checksum' in type(error).__name__
            if is_final or damaged == _ATTEMPTS or time.monotonic() + pause > deadline:
                raise told from error
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, LONGEST_PAUSE)


# Libraries whose exceptions tell of the transfer; any other exception is a fault of a program.
_OF_TRANSFER = (
    'aiobotocore', 'aiohttp', 'asyncio', 'botocore', 'fsspec', 'gcsfs', 'google', 'requests',
    's3fs', 'urllib3',
)  # fmt: skip
_PASSES = (408, 429, *range(500, 600))  # HTTP codes


def _told(error: Exception, path: BucketPath) -> tuple[Exception | None, bool]:
    """What an exception of a library means, None for nothing; and whether it is final."""
    if isinstance(error, FileNotFoundError):
        return NotThere(errno.ENOENT, 'there is no such object', str(path)), True
    if isinstance(error, FileExistsError):
        return error, True
    kind = f'{type(error).__module__}.{type(error).__name__}'
    of_transfer = isinstance(error, OSError) or kind.partition('.')[0] in _OF_TRANSFER
    if not of_transfer and not isinstance(error, TimeoutError):
        return None, True
    text = ' '.join(str(error).split()) or type(error).__name__
    stated = str(getattr(error, 'code', None) or getattr(error, 'status', None))
    code = int(stated) if stated.isdigit() else None
    refused = (
        isinstance(error, PermissionError)
        or code in (401, 403)
        or 'Credential' in kind
        or text.startswith('Forbidden')
    )
    if refused:
        return BucketError(f'{path}: access is refused ({text:.200})'), True
    told = BucketError(f'{path}: the service fails ({type(error).__name__}: {text:.200})')
    return told, code is not None and code not in _PASSES
