"""A TensorBoard event file: records as in TFRecord files, each an `Event` in protobuf's encoding.

The messages are `tensorflow/core/util/event.proto` and `tensorflow/core/framework/summary.proto`,
of which scalars, images and the start of a session are needed: seven fields are less to load than
a library of them, which every start of a program would wait for.

It is written by the thread that calls, so that a full disk is an error there.
"""

import pathlib
import re
import socket
import struct
import time

import cv2
import numpy as np
from jaxtyping import UInt8

_FLUSH_EVERY = 10.0  # seconds between two flushes
_START = 1  # SessionLog.SessionStatus
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types of protobuf


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
        # TensorBoard reads the time in the name; a second file of one second has another number.
        name = f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{number}'
        self._file = (folder / name).open('wb')
        self._flushed = time.monotonic()
        self._write(step + 1, _field(3, _BYTES, b'brain.Event:2'))
        self._write(step + 1, _field(7, _BYTES, _field(1, _VARINT, _START)))

    def scalar(self, step: int, tag: str, value: float) -> None:
        """Adds a number.

        Args:
            step: training step that it belongs to.
            tag: its name.
            value: the number.
        """
        self._summary(step, tag, _field(2, _FLOAT, value))

    def image(self, step: int, tag: str, rgb: UInt8[np.ndarray, 'h w 3']) -> None:
        """Adds an image.

        Args:
            step: training step that it belongs to.
            tag: its name.
            rgb: the image.
        """
        height, width, channels = rgb.shape
        encoded = cv2.imencode('.png', rgb[..., ::-1])[1].tobytes()
        image = (
            _field(1, _VARINT, height)
            + _field(2, _VARINT, width)
            + _field(3, _VARINT, channels)
            + _field(4, _BYTES, encoded)
        )
        self._summary(step, tag, _field(4, _BYTES, image))

    def flush(self) -> None:
        """Hands what was added to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()

    def _summary(self, step: int, tag: str, value: bytes) -> None:
        # TensorBoard groups tags by their slashes and takes few other signs.
        name = re.sub(r'[^-/\w.]', '_', tag).lstrip('/').encode()
        self._write(step, _field(5, _BYTES, _field(1, _BYTES, _field(1, _BYTES, name) + value)))

    def _write(self, step: int, content: bytes) -> None:
        event = _field(1, _DOUBLE, time.time()) + _field(2, _VARINT, step) + content
        length = struct.pack('<Q', len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            self._file.flush()
            self._flushed = time.monotonic()


def _field(number: int, kind: int, value: float | bytes) -> bytes:
    """A field of a message: its number and wire type, and the value."""
    key = _varint(number << 3 | kind)
    if isinstance(value, bytes):
        return key + _varint(len(value)) + value
    if kind == _VARINT:
        return key + _varint(int(value))
    return key + struct.pack('<d' if kind == _DOUBLE else '<f', value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, with a mark on all but the last."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _masked_crc(content: bytes) -> bytes:
    """CRC-32C as TFRecord stores it: rotated, and a constant added."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _entry(index: int) -> int:
    for _ in range(8):
        index = index >> 1 ^ (0x82F63B78 if index & 1 else 0)  # Castagnoli's polynomial, reflected
    return index


_TABLE = tuple(map(_entry, range(256)))
