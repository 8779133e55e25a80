"""`inputs.jsonl` of an output folder: the content and the code that each result was made from.

A result is up to date if its image still has this content and the code is the same. The content is
known by a digest of the bytes; where a file still has the place, size and times that it had, the
digest is not computed again. Lines are appended when the files of an image are complete; a damaged
line only means that its image is computed again.

An object of a bucket cannot be appended to; there the file is written anew at most every `INTERVAL`
seconds, and at the end. Results without a line are computed again.
"""

import dataclasses
import json
import pathlib
import threading
import time
from typing import Any

from ggcf_jax import atomic, json_files
from ggcf_jax.buckets import BucketPath
from ggcf_jax.errors import InputError
from ggcf_jax.prediction.inputs import Encoded, Input

FILE_NAME = 'inputs.jsonl'
INTERVAL = 30.0  # seconds between two uploads

# Why an image with results is computed again.
CHANGED = 'whose input changed'
OTHER_CODE = 'that other code or libraries computed'
UNKNOWN = 'whose input was not recorded'


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a result was made from.

    Attributes:
        stamp: of the input's file, see `inputs.Encoded`; None where it has none.
        digest: of the input's content.
        code: digest of the code, see `code.digest`.
    """

    stamp: str | None
    digest: str
    code: str


class Ledger:
    """What the results in a folder were made from; threads may use it at once."""

    def __init__(self, folder: pathlib.Path, code: str):
        """Reads the file of a folder, if there is one.

        Args:
            folder: folder of the results.
            code: digest of the code that computes results now.
        """
        self._path = folder / FILE_NAME
        self._code = code
        self._lock = threading.Lock()
        self._written = time.monotonic()
        self._entries, self._is_written = _read(self._path)
        self.close()

    def outdated(self, image: Input) -> str | None:
        """Why the results of an image, which exist, have to be computed again; None if not.

        Args:
            image: an input with results in the folder.
        """
        entry = self._entries.get(image.name)
        if entry is None:
            return UNKNOWN
        if entry.code != self._code:
            return OTHER_CODE
        if entry.stamp is not None and entry.stamp == image.stamp():
            return None
        try:
            encoded = image.read()
        except InputError:
            return CHANGED
        present = self.entry(encoded)
        if present.digest != entry.digest:
            return CHANGED
        self.add(image.name, present)  # under its present stamp: the next look need not read it
        return None

    def entry(self, image: Encoded) -> Entry:
        """What results that are computed now from these bytes are made from.

        Args:
            image: bytes of an input.
        """
        return Entry(image.stamp, image.digest(), self._code)

    def add(self, name: str, entry: Entry) -> None:
        """Notes that the results of an image are complete.

        Args:
            name: name of the image.
            entry: what they were made from.
        """
        with self._lock:
            if self._entries.get(name) == entry:
                return
            self._entries[name] = entry
            if not isinstance(self._path, BucketPath):
                with self._path.open('a', encoding='utf-8') as file:
                    file.write(_line(name, entry))
                return
            self._is_written = False
            if time.monotonic() - self._written > INTERVAL:
                self._write()

    def close(self) -> None:
        """Writes what is not written yet."""
        with self._lock:
            if not self._is_written:
                self._write()

    def _write(self) -> None:
        lines = (_line(name, entry) for name, entry in self._entries.items())
        atomic.write(self._path, ''.join(lines).encode())
        self._written, self._is_written = time.monotonic(), True


def _line(name: str, entry: Entry) -> str:
    return json.dumps({'name': name} | dataclasses.asdict(entry)) + '\n'


def _read(path: pathlib.Path) -> tuple[dict[str, Entry], bool]:
    """The last entry of each name, and whether each line was whole and is one of them."""
    try:
        lines = path.read_bytes().split(b'\n')
    except FileNotFoundError:
        return {}, True
    found: dict[str, Entry] = {}
    clean = lines.pop() == b''  # a line that was cut off would swallow the next one
    for line in lines:
        try:
            content = json_files.parse_object(line)
            name = json_files.need(content, 'name', lambda x: isinstance(x, str), 'a text')
            clean &= name not in found
            found[name] = Entry(
                json_files.need(content, 'stamp', _is_text_or_none, 'a text'),
                json_files.need(content, 'digest', json_files.is_text, 'a text'),
                json_files.need(content, 'code', json_files.is_text, 'a text'),
            )
        except ValueError:
            clean = False
    return found, clean


def _is_text_or_none(value: Any) -> bool:
    return value is None or json_files.is_text(value)
