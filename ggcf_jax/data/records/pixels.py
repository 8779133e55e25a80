"""Decoding of the pixels of image files: one library for each format, never one that guesses.

`formats` has walked through the file before. Each decoder here is told the format, so that no other
one can take the file for something else, and gets the bytes of the picture alone. What libraries
say of damaged files becomes `Unusable`; what they fill silently with grey is found out.
"""

import functools
import io
from collections.abc import Callable

import imagecodecs
import numpy as np
from jaxtyping import UInt
from PIL import BmpImagePlugin, GifImagePlugin, ImageFile, PngImagePlugin, WebPImagePlugin

from ggcf_jax.data.records import formats
from ggcf_jax.data.records.formats import Header, Unusable

Samples = UInt[np.ndarray, 'h w *c']
_GREY = 128  # what libjpeg gives for blocks without data
_ANY_BYTES = np.random.default_rng(0).integers(0, 255, 1 << 12, np.uint8).tobytes()  # none is ff


def for_image(data: bytes, header: Header) -> Samples:
    """Decodes to colours: grey, grey and alpha, RGB, RGB and alpha, or CMYK (JPEG and TIFF).

    Of a TIFF whose white is zero they are as they are stored.

    Args:
        data: content of the file.
        header: its header.

    Raises:
        Unusable: the file is damaged.
    """
    return _decode(_IMAGES[header.format], data, header)


def for_label(data: bytes, header: Header) -> Samples:
    """Decodes to the values as they are stored, indices of a palette among them.

    The palette of a GIF is what its writer liked, so that its colours are taken instead.

    Args:
        data: content of the file.
        header: its header.

    Raises:
        Unusable: the file is damaged.
    """
    return _decode(_LABELS.get(header.format, _IMAGES[header.format]), data, header)


def _decode(decoder: Callable[[bytes, Header], np.ndarray], data: bytes, header: Header) -> Samples:
    try:
        pixels = decoder(data, header)
    except (Unusable, MemoryError):
        raise
    except Exception as error:  # libraries raise what they like for damaged files
        raise Unusable(str(error) or type(error).__name__) from error
    if pixels.shape[:2] != (header.height, header.width):
        raise Unusable(
            f'it decodes to {pixels.shape[0]} x {pixels.shape[1]} pixels, but its header says '
            f'{header.height} x {header.width}'
        )
    return pixels


def _png(data: bytes, header: Header) -> np.ndarray:
    return imagecodecs.png_decode(_png_picture(data, header))


def _png_picture(data: bytes, header: Header) -> bytes:
    """The PNG without the chunks that have no part in its colours, such as texts and profiles."""
    chunks = (data[start:stop] for start, stop in header.parts)
    return b''.join([formats.PNG_SIGNATURE, *chunks])


def _png_label(data: bytes, header: Header) -> np.ndarray:
    if header.has_palette:  # libpng would give the colours
        return _pillow(PngImagePlugin.PngImageFile, _png_picture(data, header), 'P')
    values = _png(data, header)
    # Greys of fewer bits were spread over 0 to 255.
    return values // (255 // (2**header.bits - 1)) if header.bits < 8 else values


def _jpeg(data: bytes, header: Header) -> np.ndarray:
    data = data[: header.end]
    pixels = imagecodecs.jpeg8_decode(data)
    # Without the first scan, a progressive JPEG has grey with the details of the others in it.
    if (header.progressive or _has_blank_block(pixels)) and not _is_filled(data, header):
        raise Unusable('pixels are missing in the middle of it')
    return pixels


def _has_blank_block(pixels: np.ndarray) -> bool:
    """Whether some block of 8 x 8 is grey in its inner 4 x 4, which no other block reaches."""
    rows, columns = (np.minimum(np.arange(3, n + 3, 8), n - 1) for n in pixels.shape[:2])
    blank = pixels[rows][:, columns] == _GREY
    while blank.ndim > 2:
        blank = blank.all(-1)
    return any(
        (pixels[8 * y + 2 : 8 * y + 6, 8 * x + 2 : 8 * x + 6] == _GREY).all()
        for y, x in np.argwhere(blank)
    )


def _is_filled(data: bytes, header: Header, tables: bytes | None = None) -> bool:
    """Whether the entropy-coded data of a JPEG reach to the end of each of its segments.

    If a decoder needs bytes behind the end of a segment, it takes grey for them without a word.
    Here any bytes are appended to each segment: they change nothing unless they are needed.
    """
    pieces, at = [], 0
    for _, stop in header.parts:
        pieces += [data[at:stop], _ANY_BYTES]
        at = stop
    appended = b''.join([*pieces, data[at:]])
    decode = functools.partial(imagecodecs.jpeg8_decode, tables=tables)
    return np.array_equal(decode(appended), decode(data))


def _tiff(data: bytes, header: Header) -> np.ndarray:
    values = _tiff_label(data, header)
    if header.photometric == formats.PALETTE:
        colors = np.array(header.colormap, np.uint16).reshape(3, -1).T
        return (colors >> 8 if colors.max() > 255 else colors).astype(np.uint8)[values]
    if header.compression == formats.TIFF_JPEG and _has_blank_block(values):
        _check_jpeg_in_tiff(data, header)
    return values


def _check_jpeg_in_tiff(data: bytes, header: Header) -> None:
    """Refuses strips or tiles that break off."""
    for start, stop in header.parts:
        strip = data[start:stop]
        if not _is_filled(strip, formats.read(strip), header.tables or None):
            raise Unusable('pixels are missing in the middle of it')


def _tiff_label(data: bytes, header: Header) -> np.ndarray:
    values = imagecodecs.tiff_decode(data, index=0)
    if header.channels > 1 and values.shape[:1] == (header.channels,) and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)  # one plane after another
    return values


def _webp(data: bytes, header: Header) -> np.ndarray:
    return _pillow(WebPImagePlugin.WebPImageFile, data[: header.end], 'RGB')


def _gif(data: bytes, header: Header) -> np.ndarray:
    return _pillow(GifImagePlugin.GifImageFile, data[: header.end] + b'\x3b', 'RGB')


def _bmp(data: bytes, header: Header) -> np.ndarray:
    if header.has_palette:
        _bmp_label(data, header)  # Pillow gives black for colours that are not in the palette
    return _pillow(BmpImagePlugin.BmpImageFile, data[: header.end], 'RGB')


def _bmp_label(data: bytes, header: Header) -> np.ndarray:
    mode = 'P' if header.has_palette else 'RGB'
    values = _pillow(BmpImagePlugin.BmpImageFile, data[: header.end], mode)
    if header.has_palette and values.max() >= header.colors:
        raise Unusable('its pixels have colours that are not in its palette')
    return values


def _pillow(reader: Callable[..., ImageFile.ImageFile], data: bytes, mode: str) -> np.ndarray:
    """Decodes with one of Pillow's readers, which are asked for by name: none is tried."""
    with reader(io.BytesIO(data)) as image:
        image.load()
        if mode == 'P':  # greys may come as such
            return np.asarray(image).astype(np.uint8)
        return np.asarray(image if image.mode == mode else image.convert(mode))


_Decoder = Callable[[bytes, Header], np.ndarray]
_IMAGES: dict[str, _Decoder] = {
    'PNG': _png,
    'JPEG': _jpeg,
    'TIFF': _tiff,
    'WebP': _webp,
    'GIF': _gif,
    'BMP': _bmp,
}
_LABELS: dict[str, _Decoder] = {'PNG': _png_label, 'TIFF': _tiff_label, 'BMP': _bmp_label}
