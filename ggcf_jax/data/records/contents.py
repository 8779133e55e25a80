"""Digests of what files hold, whatever they are called, wherever they lie and whenever written.

Size and times of a file do not tell whether it was replaced: labels that are not compressed all
have one size, and copies keep the times of what they were made from. So files are read, but only
once: a memory in the folder of derived files has the digest of each by its path, size and times.
The time of the last change of a file (ctime) cannot be set by programs that copy.

Files of up to `WHOLE` bytes and labels are read whole, of larger images three pieces.
"""

import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO

from ggcf_jax import atomic, json_files
from ggcf_jax.data.records.finder import printable
from ggcf_jax.errors import InputError

WHOLE = 1 << 16  # bytes of the largest image that is read whole
FOLDER = 'ggcf_jax_contents'

_PIECE = 1 << 14  # bytes of each of the pieces of a larger one
_THREADS = 16
_YOUNG = 3.0  # seconds in which a file may change again without another time

_Stamp = tuple[int, int, int]  # size, time of the content, time of the last change, in ns
_Entry = tuple[_Stamp, str]
_Known = dict[str, _Entry]  # by kind and path of the file


def of_pairs(
    pairs: Sequence[tuple[pathlib.Path, pathlib.Path]], directory: pathlib.Path | None
) -> str:
    """A digest of the images and labels of a split, in their order.

    Args:
        pairs: image and label file of each record.
        directory: folder of derived files, where the digests of the files are remembered. If it
            cannot be written, or is None, they are computed again next time.

    Raises:
        InputError: a file cannot be read.
    """
    paths = [path.absolute() for pair in pairs for path in pair]
    if not paths:
        return ''
    memory = None
    if directory is not None:
        place = hashlib.sha256(os.fsencode(os.path.commonpath(paths)))
        memory = directory / FOLDER / f'{place.hexdigest()[:16]}.json'
    known = {} if memory is None else _read(memory)
    keys = [f'{("image", "label")[i % 2]} {path}' for i, path in enumerate(paths)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(_entry, paths, (known.get(key) for key in keys), keys))
    now = time.time_ns()
    settled = {
        key: (stamp, digest)
        for key, (stamp, digest) in zip(keys, found)
        if abs(now - stamp[2]) > _YOUNG * 1e9
    }
    if memory is not None and any(known.get(key) != entry for key, entry in settled.items()):
        with suppress(OSError):
            atomic.write(memory, json.dumps(known | settled).encode())
    names = (path.name for path in paths)
    return 'contents:' + combined(f'{n} {digest}' for n, (_, digest) in zip(names, found))


def combined(texts: Iterable[str]) -> str:
    """One digest of several texts, in their order.

    Args:
        texts: what may change.
    """
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode(errors='surrogateescape') + b'\n')
    return digest.hexdigest()[:16]


def _entry(path: pathlib.Path, known: _Entry | None, key: str) -> _Entry:
    """Stamp and digest of a file."""
    try:
        stat = path.stat()
        # First the stamp: of a file that changes now, the next look sees another one.
        stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if known is not None and known[0] == stamp:
            return known
        with path.open('rb') as file:
            return stamp, _digest(file, stat.st_size, whole=key.startswith('label'))
    except OSError as error:
        raise InputError(f'{printable(path)}: the file cannot be read: {error.strerror}') from error


def _digest(file: BinaryIO, size: int, *, whole: bool) -> str:
    digest = hashlib.sha256(f'{size}\n'.encode())
    if whole or size <= WHOLE:
        digest.update(file.read())
    else:
        for start in (0, size // 2, size - _PIECE):
            file.seek(start)
            digest.update(file.read(_PIECE))
    return digest.hexdigest()[:24]


def _read(memory: pathlib.Path) -> _Known:
    """The remembered digests; damage only means that files are read again."""
    with suppress(OSError, ValueError):
        content = json_files.parse_object(memory.read_bytes())
        return {
            key: ((entry[0][0], entry[0][1], entry[0][2]), entry[1])
            for key, entry in content.items()
            if _is_entry(entry)
        }
    return {}


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and json_files.is_list(entry[0], lambda x: type(x) is int)
        and len(entry[0]) == 3
        and json_files.is_text(entry[1])
    )
