"""A TensorBoard event file, written by the thread that calls: a full disk is an error there.

The thread of `tensorboardX.SummaryWriter` ends with a traceback when the disk is full, and then
nobody empties its queue, which the next events wait for.
"""

import pathlib
import socket
import time
from typing import Any

import numpy as np
from jaxtyping import UInt8

_FLUSH_EVERY = 10.0  # seconds between two flushes


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
        # Here and not at the top: it imports torch and boto3 where they are installed, which every
        # start of a program would wait for.
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
