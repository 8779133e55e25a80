"""Local copies of data that lie in a bucket.

Records are read at random and again and again: what a run needs is copied once to a folder of this
machine, `cache()`, before the work starts. A copy is verified by size and hash, an interrupted one
goes on where it stopped, and a later start copies only what is new or has changed there. Processes
of one machine take turns.

A copy lies in `SCHEME/BUCKET/NAME` of the cache. It is a mirror: what the bucket no longer has is
removed, and what is prepared in it can be uploaded (`push`).
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ggcf_jax import atomic, buckets, json_files, places
from ggcf_jax.buckets import BucketPath, Info
from ggcf_jax.data.records import finder, progress
from ggcf_jax.errors import InputError

VARIABLE = 'GGCF_JAX_CACHE'

_STATE = f'{finder.OURS}copied.json'  # in every mirror: what was copied, by name
_ORIGIN = f'{finder.OURS}origin'  # in every mirror of a `data_dir`: the bucket path
_THREADS = 8
_SPARE = 1 << 30  # bytes of the disk that copies leave free


def cache() -> pathlib.Path:
    """The folder for copies: `$GGCF_JAX_CACHE`, by default `~/.cache/ggcf_jax`."""
    return places.expand(os.environ.get(VARIABLE) or '~/.cache/ggcf_jax', VARIABLE).absolute()


def local(
    path: str | os.PathLike[str],
    field: str,
    wanted: Callable[[str], bool] = lambda name: True,
) -> pathlib.Path:
    """A path on this machine: itself, or the copy of a file or folder in a bucket.

    Args:
        path: path of either kind.
        field: flag or field that it is the value of, for messages.
        wanted: whether a file is copied, by its name relative to `path`.

    Raises:
        InputError: there is no such object, or the disk has no room for the copy.
        BucketError: the bucket cannot be read.
    """
    there = places.expand(path, field)
    if not isinstance(there, BucketPath):
        return there
    found = buckets.tree(there)
    if found:
        target = _place(there)
        _copy(there, target, {name: each for name, each in found.items() if wanted(name)})
        return target
    try:
        only = buckets.info(there)
    except FileNotFoundError as error:
        raise InputError(f'{field}={there}: there is no such object or folder') from error
    _copy(there.parent, _place(there.parent), {there.name: only}, is_whole=False)
    return _place(there)


def mirror(path: str | os.PathLike[str], field: str) -> pathlib.Path:
    """The folder of this machine in which a folder of a bucket is mirrored; a local one is itself.

    Nothing is copied before `pull`.

    Args:
        path: folder of prepared data.
        field: flag or field that it is the value of, for messages.
    """
    there = places.expand(path, field)
    if not isinstance(there, BucketPath):
        return there
    folder = _place(there)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write(folder / _ORIGIN, str(there).encode())
    return folder


def origin(path: pathlib.Path) -> BucketPath | None:
    """The path in a bucket that a path below a `mirror` stands for; None if there is none.

    Args:
        path: local path, which need not exist.
    """
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            url = (folder / _ORIGIN).read_text()
            return buckets.parse(url) / path.relative_to(folder).as_posix()
    return None


def pull(
    path: pathlib.Path, mark: str = '', wanted: Callable[[str], bool] = lambda name: True
) -> bool:
    """Copies what the bucket of a mirror has of a file or folder; returns whether it has it.

    Args:
        path: path below a mirror; where it is none, nothing is done.
        mark: of a folder, name of the file that marks it as complete.
        wanted: of a folder, whether a file is copied, by its name relative to it.
    """
    there = origin(path)
    if there is None:
        return False
    if not mark:
        if not there.is_file():
            return False
        _copy(there.parent, path.parent, {there.name: buckets.info(there)}, is_whole=False)
        return True
    if not (there / mark).is_file():
        return False
    _copy(there, path, buckets.tree(there), wanted=wanted)
    return True


def push(path: pathlib.Path, mark: str = '') -> None:
    """Uploads a file or folder of a mirror; where it is none, nothing is done.

    Args:
        path: path below a mirror.
        mark: of a folder, name of the file that marks it as complete.

    Raises:
        BucketError: the bucket cannot be written.
    """
    there = origin(path)
    if there is None:
        return
    if not mark:
        buckets.upload(path, there)
        return
    buckets.upload_tree(path, there, last=mark)
    # The files here are those of the bucket now: they need not be copied back.
    state = {}
    for name, info in buckets.tree(there).items():
        with contextlib.suppress(FileNotFoundError):
            stat = (path / name).stat()
            if stat.st_size == info.size:
                state[name] = _Copied(info.version, stat.st_size, stat.st_mtime_ns)
    _note(path, state)


def check_writable(path: pathlib.Path) -> None:
    """Tries whether `push` may write, before something expensive is made.

    Args:
        path: path below a mirror; where it is none, nothing is done.

    Raises:
        BucketError: it may not.
    """
    there = origin(path)
    if there is not None:
        buckets.check_writable(there.parent)


@dataclasses.dataclass(frozen=True)
class _Copied:
    """A file of a mirror as it was when it was verified."""

    version: str
    size: int
    mtime_ns: int


def _place(path: BucketPath) -> pathlib.Path:
    return cache().joinpath(path.scheme, str(path).partition('://')[2])


def _copy(
    there: BucketPath,
    target: pathlib.Path,
    found: Mapping[str, Info],
    *,
    is_whole: bool = True,
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Makes the files of a folder equal to objects.

    Args:
        there: folder in the bucket.
        target: folder of this machine.
        found: what the bucket has, by name.
        is_whole: whether other files in the folder are removed.
        wanted: which of the objects are copied, by name.
    """
    for name in found:
        if '..' in pathlib.PurePosixPath(name).parts or name.startswith('/'):
            raise InputError(f'{there} holds an object {name!r}, which no file can be called')
    target.mkdir(parents=True, exist_ok=True)
    with _turn(target, there):
        state = _state(target)
        if is_whole:
            _remove_others(target, found)
        missing = {
            name: each
            for name, each in found.items()
            if wanted(name) and not _is_copied(target / name, each, state.get(name))
        }
        if not missing:
            return
        needed = sum(each.size for each in missing.values()) - sum(
            part.stat().st_size for part in target.rglob('.*.part')
        )
        free = shutil.disk_usage(target).free
        if needed > free - _SPARE:
            raise InputError(
                f'{there} has {_gigabytes(needed)} that {target} lacks, where '
                f'{_gigabytes(free)} are free, of which {_gigabytes(_SPARE)} stay so; make room, '
                f'or set {VARIABLE} to a folder on a larger disk'
            )
        _fetch(there, target, missing, state)


def _fetch(
    there: BucketPath, target: pathlib.Path, missing: Mapping[str, Info], state: dict[str, _Copied]
) -> None:
    total = sum(each.size for each in missing.values())
    lock = threading.Lock()
    done = 0

    with progress.shown('copying', 'copied', str(there), total, unit='bytes') as advance:

        def added(size: int) -> None:
            with lock:
                advance(size)

        def fetch(name: str) -> None:
            nonlocal done
            file, info = target / name, missing[name]
            file.parent.mkdir(parents=True, exist_ok=True)
            info = buckets.download(there / name, file, added, info)
            if info.modified:
                os.utime(file, (info.modified, info.modified))
            with lock:
                stat = file.stat()
                state[name] = _Copied(info.version, stat.st_size, stat.st_mtime_ns)
                done += 1
                if done % 64 == 0:
                    _note(target, state)

        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                futures = [pool.submit(fetch, name) for name in missing]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            _note(target, state)


@contextlib.contextmanager
def _turn(target: pathlib.Path, there: BucketPath) -> Iterator[None]:
    """Holds the lock of a mirror, which ends with the process."""
    with target.with_name(f'{finder.OURS}{target.name}.lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'waiting for another process that copies {there}', flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_copied(file: pathlib.Path, info: Info, copied: _Copied | None) -> bool:
    if copied is None or copied.version != info.version or copied.size != info.size:
        return False
    try:
        stat = file.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (copied.size, copied.mtime_ns)


def _state(target: pathlib.Path) -> dict[str, _Copied]:
    """What was copied to a mirror; what cannot be read is copied again."""
    try:
        content = json_files.parse_object((target / _STATE).read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: _Copied(*each) for name, each in content.items() if _is_entry(each)}


def _is_entry(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 3):
        return False
    return json_files.is_text(value[0]) and all(type(x) is int for x in value[1:])


def _note(target: pathlib.Path, state: Mapping[str, _Copied]) -> None:
    content = {name: dataclasses.astuple(each) for name, each in state.items()}
    atomic.write(target / _STATE, json.dumps(content).encode())


def _remove_others(target: pathlib.Path, found: Mapping[str, Info]) -> None:
    """Removes files that the bucket does not have; the beginnings of those to come stay."""
    for file in target.rglob('*'):
        name = file.relative_to(target).as_posix()
        ours = file.name in (_STATE, _ORIGIN) or file.name.endswith(('.part', '.lock'))
        if file.is_file() and name not in found and not ours:
            file.unlink()


def _gigabytes(size: int) -> str:
    return f'{size / 1e9:.3g} GB'
