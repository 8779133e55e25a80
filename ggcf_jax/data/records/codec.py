"""Image and label files: decoding them, and refusing what would be silently wrong."""

import contextlib
import dataclasses
import io
import struct
from typing import Protocol

import cv2
import imagecodecs
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ggcf_jax.data.records import orientation
from ggcf_jax.errors import InputError

IGNORE = 255  # train id of pixels that are neither trained on nor counted
NOT_ALLOWED = 254  # entry of a label map for raw values that must not occur

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8'
_TIFF = (b'II*\0', b'MM\0*')
_GREY, _RGB, _PALETTE = 0, 2, 3  # colour types of PNG


class WindowedImage(Protocol):
    """An image of which `image[rows, columns]`, two slices without a step, gives the pixels.

    An array is one; `jpeg_tiles.TiledImage` decodes only what the window touches.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width, 3)."""
        ...

    def __getitem__(self, window: tuple[slice, slice], /) -> UInt8[np.ndarray, 'h w 3']:
        """Returns the RGB pixels of a window.

        Args:
            window: slice of rows, slice of columns.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class FileDecoder:
    """Decodes image files (PNG, JPEG and the other formats of OpenCV) with PNG labels.

    Attributes:
        label_map: raw label value -> train id, `IGNORE` or `NOT_ALLOWED`.
    """

    label_map: UInt8[np.ndarray, '256']

    def image(self, data: bytes, name: str) -> UInt8[np.ndarray, 'h w 3']:
        """Decodes an image, see `decode_image`."""
        return decode_image(data, name)

    def label(self, data: bytes, name: str) -> UInt8[np.ndarray, 'h w']:
        """Decodes a label to train ids, see `decode_label` and `map_labels`."""
        return map_labels(decode_label(data, name), self.label_map, name)

    def label_size(self, data: bytes, name: str) -> tuple[int, int]:
        """Returns (height, width) of a label, see `label_size`."""
        return label_size(data, name)


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, 'h w 3']:
    """Decodes an image to RGB.

    Grey becomes RGB, 16 bits become 8, transparency is dropped and EXIF rotation is ignored, as
    labels have none.

    Args:
        data: content of the image file.
        name: name of the image, for error messages.

    Raises:
        InputError: not an image, or a truncated one.
    """
    # Decoders silently fill what is missing of a truncated file with grey.
    if is_complete(data):
        with contextlib.suppress(imagecodecs.PngError, imagecodecs.Jpeg8Error):
            image = _decode_usual(data)
            if image is None:
                image = _decode_any(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
                if image is not None and data.startswith(_TIFF):  # which libtiff turns regardless
                    image = orientation.as_stored(image, orientation.read(io.BytesIO(data)))
            if image is not None:
                return image
    raise undecodable(name)


def decode_upright(data: bytes, name: str) -> UInt8[np.ndarray, 'h w 3']:
    """Decodes an image and turns it as EXIF says: for images without labels, such as photographs.

    Args:
        data: content of the image file.
        name: name of the image, for error messages.

    Raises:
        InputError: not an image, or a truncated one.
    """
    return orientation.upright(decode_image(data, name), orientation.read(io.BytesIO(data)))


def undecodable(name: str) -> InputError:
    """Returns the error to raise for an image that cannot be decoded.

    Args:
        name: name of the image.
    """
    return InputError(f'{name}: the image cannot be decoded; is the file damaged?')


def _decode_any(data: bytes, flags: int) -> np.ndarray | None:
    """Decodes any format of OpenCV; None if it cannot."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _decode_usual(data: bytes) -> np.ndarray | None:
    """Decodes an 8-bit RGB PNG or a colour JPEG; None for anything else.

    The pixels are those of OpenCV, but imagecodecs comes with newer, faster libraries.
    """
    if data.startswith(_PNG) and (data[24], data[25]) == (8, _RGB):
        # A colour that is marked as transparent adds a fourth channel.
        return np.ascontiguousarray(imagecodecs.png_decode(data)[..., :3])
    if data.startswith(_JPEG):
        image = imagecodecs.jpeg8_decode(data)
        return image if image.shape[2:] == (3,) else None
    return None


def decode_label(data: bytes, name: str) -> UInt8[np.ndarray, 'h w']:
    """Decodes a label to its raw values; those of a palette PNG are the palette indices.

    Args:
        data: content of the label file.
        name: name of the label, for error messages.

    Raises:
        InputError: not a PNG, a truncated one, or one whose pixels are not 8-bit class ids.
    """
    bits, colors = _png_format(data, name)
    if colors == _PALETTE:  # OpenCV would give the colours
        label: np.ndarray | None = np.asarray(Image.open(io.BytesIO(data)))
    elif (bits, colors) == (8, _GREY):
        label = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    else:
        kind = 'grey' if colors == _GREY else 'colour'
        raise InputError(
            f'{name}: the label is a {bits}-bit {kind} PNG; labels must be 8-bit single-channel '
            '(or palette) PNG files of class ids'
        )
    if label is None:
        raise InputError(f'{name}: the label cannot be decoded; is the file damaged?')
    return label


def label_size(data: bytes, name: str) -> tuple[int, int]:
    """Returns (height, width) of a label PNG, from its header alone.

    Args:
        data: content of the label file.
        name: name of the label, for error messages.

    Raises:
        InputError: not a PNG, or a truncated one.
    """
    _png_format(data, name)
    width, height = struct.unpack('>II', data[16:24])
    return height, width


def _png_format(data: bytes, name: str) -> tuple[int, int]:
    """Returns (bits per channel, colour type) of a complete PNG."""
    if not data.startswith(_PNG):
        raise InputError(f'{name}: the label is not a PNG; other formats change class ids')
    if not is_complete(data):
        raise InputError(f'{name}: the label cannot be decoded; is the file damaged?')
    return data[24], data[25]


def is_complete(data: bytes) -> bool:
    """Returns whether a PNG or JPEG has its end marker, or another format any bytes.

    Args:
        data: content of the image file.
    """
    if data.startswith(_PNG):
        return b'IEND' in data[-64:]
    if data.startswith(_JPEG):
        # The end marker follows the last scan; an embedded preview has one of its own.
        scan = data.rfind(b'\xff\xda')
        return scan > 0 and data.find(b'\xff\xd9', scan) > 0
    return bool(data)


def map_labels(
    raw: UInt8[np.ndarray, 'h w'], label_map: UInt8[np.ndarray, '256'], name: str
) -> UInt8[np.ndarray, 'h w']:
    """Maps raw label values to train ids.

    Args:
        raw: label values as stored.
        label_map: raw label value -> train id, `IGNORE` or `NOT_ALLOWED`.
        name: name of the label, for error messages.

    Raises:
        InputError: a value that is `NOT_ALLOWED`.
    """
    mapped = cv2.LUT(raw, label_map)
    if (mapped == NOT_ALLOWED).any():
        bad = np.unique(raw[mapped == NOT_ALLOWED])
        raise InputError(
            f'{name}: label values {bad.tolist()} are outside the allowed '
            f'{np.flatnonzero(label_map != NOT_ALLOWED).tolist()}; correct the label file'
        )
    return mapped


def check_sizes(image: WindowedImage, label: UInt8[np.ndarray, 'h w'], name: str) -> None:
    """Refuses an image and a label of different sizes.

    Args:
        image: image, decoded or not.
        label: its label.
        name: name of the image, for the error message.

    Raises:
        InputError: the sizes differ.
    """
    if image.shape[:2] == label.shape:
        return
    rotated = image.shape[:2] == label.shape[::-1]
    hint = '; EXIF data may ask for a rotation: save the image rotated' if rotated else ''
    raise InputError(
        f'{name}: the image is {image.shape[0]} x {image.shape[1]} but its label is '
        f'{label.shape[0]} x {label.shape[1]}; both must have the same size{hint}'
    )
