"""A TensorBoard event file, written by the thread that calls: a full disk is an error there.

The thread of `tensorboardX.SummaryWriter` ends with a traceback when the disk is full, and then
nobody empties its queue, which the next events wait for.
"""

import contextlib
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

_FLUSH_EVERY = 10.0  # seconds between two flushes
# What tensorboardX imports where it is installed, for arrays and places that it never gets here:
# seconds and 200 MB in every process of a run.
_UNUSED = frozenset({'torch', 'boto3', 'google.cloud.storage'})


class _Hiding:
    """A finder of modules for `sys.meta_path`: those of a set are not found in this thread."""

    def __init__(self, names: Collection[str]):
        self._names = names
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in self._names and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f'{name} is hidden here', name=name)


@contextlib.contextmanager
def _without(names: Collection[str]) -> Iterator[None]:
    """Imports in the block, and in no other thread, find these modules only if they are loaded."""
    finder = _Hiding(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class EventFile:
    """Appends events to a new file of a folder."""

    def __init__(self, folder: pathlib.Path, step: int, number: int):
        """
        Args:
            folder: directory of the run, or where its files grow before they are uploaded.
            step: step that the run resumes from. TensorBoard hides what earlier files have after
                it.
            number: number of the file in the run.

        Raises:
            OSError: the file cannot be written; so do the other methods.
        """
        with _without(_UNUSED):  # only here, so that modes that write no events do not wait for it
            from tensorboardX import summary
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import RecordWriter

        self._summaries, self._messages = summary, event_pb2
        # TensorBoard reads the time in the name; a second file of one second has another number.
        name = f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{number}'
        self._file = RecordWriter(str(folder / name))
        self._closed = False
        self._flushed = time.monotonic()
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(step=step + 1, file_version='brain.Event:2'))
        self._write(event_pb2.Event(step=step + 1, session_log=start))

    def scalar(self, step: int, tag: str, value: float) -> None:
        """Adds a number.

        Args:
            step: training step that it belongs to.
            tag: its name.
            value: the number.
        """
        self._add(step, self._summaries.scalar(tag, value))

    def image(self, step: int, tag: str, rgb: UInt8[np.ndarray, 'h w 3']) -> None:
        """Adds an image.

        Args:
            step: training step that it belongs to.
            tag: its name.
            rgb: the image.
        """
        self._add(step, self._summaries.image(tag, rgb, dataformats='HWC'))

    def flush(self) -> None:
        """Hands what was added to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._file.close()

    def _add(self, step: int, summary: Any) -> None:
        self._write(self._messages.Event(step=step, summary=summary))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            self._file.flush()
            self._flushed = time.monotonic()
