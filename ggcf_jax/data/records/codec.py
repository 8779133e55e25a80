"""Encoded images and labels: decoding them, and refusing what would be silently wrong."""

import contextlib
import io
import struct

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from ggcf_jax.errors import InputError

IGNORE = 255  # train id of pixels that are neither trained on nor counted
NOT_ALLOWED = 254  # entry of a label map for raw values that must not occur

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8'
_GREY, _RGB, _PALETTE = 0, 2, 3  # colour types of PNG


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes an image to uint8 [h, w, 3] RGB.

    Grey becomes RGB, 16 bits become 8, transparency is dropped and EXIF rotation ignored, as
    labels have none.

    Raises:
        InputError: not an image, or one that breaks off; `name` is in the message.
    """
    # Decoders fill what is missing of a cut-off file with grey and say nothing.
    if is_complete(data):
        with contextlib.suppress(imagecodecs.PngError, imagecodecs.Jpeg8Error):
            image = _decode_usual(data)
            if image is None:
                image = _decode_any(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
            if image is not None:
                return image
    raise undecodable(name)


def decode_upright(data: bytes, name: str) -> np.ndarray:
    """As `decode_image`, turned as EXIF says: for images without labels, such as photographs."""
    image = _decode_any(data, cv2.IMREAD_COLOR_RGB) if is_complete(data) else None
    if image is None:
        raise undecodable(name)
    return image


def undecodable(name: str) -> InputError:
    """The error to raise for the image called `name`."""
    return InputError(f'{name}: the image cannot be decoded; is the file damaged?')


def _decode_any(data: bytes, flags: int) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _decode_usual(data: bytes) -> np.ndarray | None:
    """An 8-bit RGB PNG or a colour JPEG, faster than OpenCV does it; None if it is something else.

    The pixels are the same. imagecodecs comes with newer libraries.
    """
    if data.startswith(_PNG) and (data[24], data[25]) == (8, _RGB):
        # A colour that is marked as transparent makes a fourth channel.
        return np.ascontiguousarray(imagecodecs.png_decode(data)[..., :3])
    if data.startswith(_JPEG):
        image = imagecodecs.jpeg8_decode(data)
        return image if image.shape[2:] == (3,) else None
    return None


def decode_label(data: bytes, name: str) -> np.ndarray:
    """Decodes a label to its raw values, uint8 [h, w]; of a palette PNG these are the indices.

    Raises:
        InputError: not a PNG, one that breaks off, or not of 8-bit class ids.
    """
    bits, colors = _png_format(data, name)
    if colors == _PALETTE:  # OpenCV would give the colours
        label = np.asarray(Image.open(io.BytesIO(data)))
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
    """(h, w) of a label PNG, from its header alone."""
    _png_format(data, name)
    width, height = struct.unpack('>II', data[16:24])
    return height, width


def _png_format(data: bytes, name: str) -> tuple[int, int]:
    """(bits, colour type) of a complete PNG."""
    if not data.startswith(_PNG):
        raise InputError(f'{name}: the label is not a PNG; other formats change class ids')
    if not is_complete(data):
        raise InputError(f'{name}: the label cannot be decoded; is the file damaged?')
    return data[24], data[25]


def is_complete(data: bytes) -> bool:
    """Whether a PNG or JPEG has its end marker; other formats only have to hold something."""
    if data.startswith(_PNG):
        return b'IEND' in data[-64:]
    if data.startswith(_JPEG):
        scan = data.rfind(b'\xff\xda')  # of the last scan; a preview has an end of its own
        return scan > 0 and data.find(b'\xff\xd9', scan) > 0
    return bool(data)


def map_labels(raw: np.ndarray, label_map: np.ndarray, name: str) -> np.ndarray:
    """Maps raw label values to train ids (uint8, same shape), refusing unknown values."""
    mapped = cv2.LUT(raw, label_map)
    if (mapped == NOT_ALLOWED).any():
        bad = np.unique(raw[mapped == NOT_ALLOWED])
        raise InputError(
            f'{name}: label values {bad.tolist()} are outside the allowed '
            f'{np.flatnonzero(label_map != NOT_ALLOWED).tolist()}; correct the label file'
        )
    return mapped


def check_sizes(image: np.ndarray, label: np.ndarray, name: str) -> None:
    """Refuses an image [h, w, 3] and a label [h, w] of different sizes."""
    if image.shape[:2] == label.shape:
        return
    turned = image.shape[:2] == label.shape[::-1]
    hint = '; its EXIF data may say that it is to be turned: save it turned' if turned else ''
    raise InputError(
        f'{name}: the image is {image.shape[0]} x {image.shape[1]} but its label is '
        f'{label.shape[0]} x {label.shape[1]}; both must have the same size{hint}'
    )
