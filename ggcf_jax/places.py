"""Paths that users name, and whether their places can be written, which is tried before the work.

Everything that is a path in a flag, a field of the configuration or an argument of the Python API
becomes one by `expand`. Whatever is written where a user says so is first tried by
`check_writable`, and written inside `writing`, so that a place that cannot be written is one
sentence with the flag that names another.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from ggcf_jax import buckets
from ggcf_jax.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TRIED = 1 << 16  # bytes: an empty file can be made on a disk that is full


def expand(text: str | os.PathLike, name: str = '') -> pathlib.Path:
    """Makes a path of a text; `~` and `~user` at its beginning are home directories.

    `gs://` and `s3://` are paths in buckets (`buckets`), which have the methods of local ones.

    Shells do so in arguments of their own, but not behind the equals sign of `--flag=~/folder`.

    Args:
        text: the text, or a path.
        name: flag or field that it is the value of, for the error message.

    Raises:
        InputError: there is no such home directory, no name of a bucket, or the library for buckets
            is not installed.
    """
    try:
        return buckets.local_or_not(text).expanduser()
    except RuntimeError as error:
        where = f'{name}={os.fspath(text)}' if name else os.fspath(text)
        raise InputError(
            f'{where}: there is no such home directory; write the path in full, or set HOME'
        ) from error


def check_writable(folder: pathlib.Path, name: str, *, needed: int = 0) -> None:
    """Tries to write into a folder, or where it would be made; leaves nothing behind.

    Args:
        folder: folder that is written to, which need not exist.
        name: flag or field that names the place, such as '--output'.
        needed: bytes that are going to be written there, as far as they are known.

    Raises:
        InputError: it cannot be written, or has less space.
    """
    with writing(folder, name):
        if isinstance(folder, buckets.BucketPath):
            buckets.check_writable(folder)
            return
        there = _nearest(folder.absolute())
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(bytes(_TRIED))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # without the name of the file, which nobody has seen
            raise OSError(error.errno, error.strerror) from error
        free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f'{folder}: {_megabytes(needed)} are going to be written there, where '
            f'{_megabytes(free)} are free; make room, or give another {_flag(name)}'
        )


def _nearest(path: pathlib.Path) -> pathlib.Path:
    """The path, or the nearest above it that exists."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _nearest(path.parent)
    return path


@contextlib.contextmanager
def writing(place: pathlib.Path, name: str) -> Iterator[None]:
    """Turns a failure to write into an error that names the place and the flag.

    Args:
        place: file or folder that is written.
        name: flag or field that names it, such as '--output'.

    Raises:
        InputError: writing raised an OSError.
    """
    try:
        yield
    except OSError as error:
        cure = (
            f'make room there, or give another {_flag(name)}'
            if error.errno in _FULL
            else f'give another {_flag(name)}, or the permission to write there'
        )
        raise InputError(f'{place} cannot be written ({error}); {cure}') from error


def _flag(name: str) -> str:
    return name if name.startswith('-') else f'--{name}'


def _megabytes(size: int) -> str:
    return f'{size / 1e6:,.1f} MB'
