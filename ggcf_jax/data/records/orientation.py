"""EXIF orientation: how the stored pixels of a photograph are turned for people to look at."""

import io
import struct
import warnings
from collections.abc import Callable
from typing import BinaryIO

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

UPRIGHT = 1  # value of the tag for pixels that are stored as they are looked at
_TAG = 274
_PNG = b'\x89PNG\r\n\x1a\n'
# What turns stored pixels upright, by the value of the tag (TIFF 6.0, section 8).
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.flip(cv2.transpose(image), -1),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def read(file: BinaryIO) -> int:
    """The orientation that an image file asks for, 1 to 8; 1 if it asks for none.

    Only headers are read. Of JPEG, PNG, WebP and TIFF files; others have no orientation.

    Args:
        file: the image file, which is read from its beginning.
    """
    try:
        file.seek(0)
        if file.read(len(_PNG)) == _PNG:  # Pillow would decode pixels to find a chunk behind them
            value = _exif_orientation(_png_exif(file))
        else:
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                with Image.open(file) as image:
                    value = (
                        image.tag_v2.get(_TAG)  # type: ignore[attr-defined]  # of TIFF only
                        if image.format == 'TIFF'
                        else _exif_orientation(image.info.get('exif', b''))
                    )
    except Exception:  # Pillow's readers raise what they like for broken headers
        return UPRIGHT
    return value if value in _TURNS else UPRIGHT


def swaps_sides(orientation: int) -> bool:
    """Whether height and width of the upright image are width and height of the stored one."""
    return orientation >= 5


def upright(image: UInt8[np.ndarray, 'h w 3'], orientation: int) -> UInt8[np.ndarray, 'H W 3']:
    """Turns stored pixels as an orientation asks for.

    Args:
        image: pixels as stored.
        orientation: 1 to 8, see `read`.
    """
    return _TURNS[orientation](image) if orientation in _TURNS else image


def _exif_orientation(exif: bytes) -> int | None:
    tags = Image.Exif()
    tags.load(exif)
    return tags.get(_TAG)


def _png_exif(file: BinaryIO) -> bytes:
    """Content of the chunk eXIf, b'' if there is none; the file is behind its signature."""
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack('>I4s', head)
        if kind == b'eXIf':
            return b'Exif\0\0' + file.read(length)
        file.seek(length + 4, io.SEEK_CUR)
    return b''
