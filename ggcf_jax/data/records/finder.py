"""Finding image files in a folder without dropping or adding any without a word."""

import os
import pathlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ggcf_jax.errors import InputError

OURS = '.ggcf_jax-'  # beginning of the names of files of our own, which nobody asks about

# Names of files and folders that systems and programs leave beside images.
_LEFTOVERS = ('thumbs.db', 'desktop.ini', '__macosx', '@eadir', 'lost+found')
_SHOWN = 3  # number of names that a message lists


class Found(NamedTuple):
    """What a folder holds.

    Attributes:
        files: files of the wanted extensions, sorted by their path.
        left_out: reason -> files or folders that are no part of `files`.
    """

    files: list[pathlib.Path]
    left_out: dict[str, list[pathlib.Path]]


def find(folder: pathlib.Path, extensions: Sequence[str]) -> Found:
    """Finds the files of some extensions in a folder and all folders inside, through links, too.

    Hidden files and folders (`._x.jpg` of macOS, `.ipynb_checkpoints`), what systems leave behind
    (`Thumbs.db`), other extensions and links that lead nowhere are left out.

    Args:
        folder: folder to search.
        extensions: endings of the wanted files, in lower case; upper case is as good.

    Raises:
        InputError: a folder cannot be read.
    """
    found = Found([], defaultdict(list))
    links = [folder]
    seen: set[str] = set()
    # Links come after all that lies in the folder itself, so that they lead to nothing twice.
    while links:
        folder = links.pop(0)
        if os.path.realpath(folder) in seen:
            found.left_out['links to folders that are read already'].append(folder)
            continue
        for parent, folders, names in os.walk(folder, onerror=_refuse):
            place = pathlib.Path(parent)
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            kept = []
            for name in sorted(folders):
                if reason := _reason(name):
                    found.left_out[reason].append(place / name)
                elif (place / name).is_symlink():
                    links.append(place / name)
                else:
                    kept.append(name)
            folders[:] = kept
            for name in names:
                if name.startswith(OURS):
                    continue
                reason = _reason(name) or _reason_of_file(place / name, extensions)
                (found.left_out[reason] if reason else found.files).append(place / name)
    found.files.sort()
    return Found(found.files, {reason: sorted(paths) for reason, paths in found.left_out.items()})


def _refuse(error: OSError) -> None:
    raise InputError(f'{printable(error.filename)}: the folder cannot be read: {error.strerror}')


def _reason(name: str) -> str:
    """Why a file or folder of this name is left out; '' if it is not."""
    if name.startswith('.'):
        return 'hidden'
    return 'leftovers of systems' if name.lower() in _LEFTOVERS else ''


def _reason_of_file(path: pathlib.Path, extensions: Sequence[str]) -> str:
    if path.suffix.lower() not in extensions:
        return f'other than {" ".join(extensions)}'
    return '' if path.is_file() else 'links that lead nowhere'


def describe(left_out: dict[str, list[pathlib.Path]]) -> Iterator[str]:
    """Yields a line for each reason: '2 hidden (._a.jpg, .DS_Store)'.

    Args:
        left_out: reason -> what is left out.
    """
    for reason, paths in left_out.items():
        yield f'{len(paths)} {reason} ({listed(path.name for path in paths)})'


def listed(names: Iterable[object]) -> str:
    """The first names and the number of the others: 'a, b, c and 5 more'.

    Args:
        names: what is listed.
    """
    known = [printable(name) for name in names]
    more = len(known) - _SHOWN
    return ', '.join(known[:_SHOWN]) + (f' and {more} more' if more > 0 else '')


def printable(name: object) -> str:
    """A path or name in one line: bytes that are no UTF-8, line breaks and the like are escaped.

    Args:
        name: what is shown.
    """
    text = os.fsencode(str(name)).decode('utf-8', 'backslashreplace')
    if text.isprintable():
        return text
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def name_of(path: pathlib.Path) -> str:
    """The name of a file without its extension; bytes that are no UTF-8 become `%E4` and the like.

    Args:
        path: path of the file.
    """
    text = os.fsencode(path.stem).decode('utf-8', 'surrogateescape')
    return ''.join(f'%{ord(c) - 0xDC00:02X}' if '\udc80' <= c <= '\udcff' else c for c in text)


def composed(name: str) -> str:
    """A name with its accents in one form (NFC): macOS writes them in another than Linux.

    Args:
        name: name of a file.
    """
    return unicodedata.normalize('NFC', name)


def existing(path: pathlib.Path) -> pathlib.Path | None:
    """The file of this path, or one whose name differs in the form of its accents alone.

    Args:
        path: path as it is written somewhere.
    """
    if path.is_file():
        return path
    if not path.parent.is_dir():
        return None
    wanted = composed(path.name)
    same = (other for other in path.parent.iterdir() if composed(other.name) == wanted)
    return next((other for other in same if other.is_file()), None)
