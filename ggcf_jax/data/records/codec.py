"""Image and label files: decoding them, and refusing what would be silently wrong."""

import dataclasses
import functools
import io
import re
from collections.abc import Mapping
from typing import Protocol

import cv2
import numpy as np
from jaxtyping import Int, Integer, UInt8, UInt32

from ggcf_jax.data.records import depth, formats, orientation, pixels
from ggcf_jax.data.records.formats import Header, Unusable
from ggcf_jax.errors import InputError

IGNORE = 255  # train id of pixels that are neither trained on nor counted
NOT_ALLOWED = 254  # entry of a label map for raw values that must not occur
LABEL_VALUES = 1 << 16  # number of label values that a label map can have
# Larger images are refused before they are decoded, which takes up to 16 bytes a pixel.
MAX_PIXELS = 1 << 29
LABEL_FORMS = ('auto', 'ids', 'colors')  # choices of `config.data.label_form`
ONE_BYTE = 'one_byte'  # form of the labels of published data sets: PNGs of 8-bit ids

_LABEL_FORMATS = ('PNG', 'TIFF', 'GIF', 'BMP')  # without loss
_NUMPY = b'\x93NUMPY'
# As numpy.save writes it (numpy.lib.format); NumPy's own reader evaluates it as Python.
_NUMPY_HEADER = re.compile(
    rb"\x93NUMPY[\1-\3]\0.{2,4}?\{'descr': '([<>|=]?(?:[iu][1248]|b1|f[248]|c8|c16))', "
    rb"'fortran_order': (True|False), 'shape': \(((?:\d{1,9},? ?){0,8})\), \} *\n",
    re.DOTALL,
)
_SHOWN = 10  # number of values or colours that a message lists


class TooLarge(InputError):
    """An image of more pixels than are allowed."""


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
    """Decodes image files, and label files of class ids or of colours.

    Attributes:
        label_map: raw label value -> train id, `IGNORE` or `NOT_ALLOWED`; 256 entries, or as many
            as there are values. What is beyond is not allowed.
        label_colors: (red, green, blue) -> train id or `IGNORE`, for labels that show a class by
            its colour; empty if there are none.
        label_form: one of `LABEL_FORMS`, or `ONE_BYTE`. 'ids' and 'colors' say what labels hold.
            'auto' takes a label of one channel, or of a palette, and one of three equal channels as
            ids, any other as colours; three equal channels that could be either are refused.
            `ONE_BYTE` allows PNGs of 8-bit ids or of a palette alone.
        image_bits: bits that the samples of 16-bit images use; `data.build` sets it to
            `config.data.image_bits`.
    """

    label_map: UInt8[np.ndarray, ' values']
    label_colors: Mapping[tuple[int, int, int], int] = dataclasses.field(default_factory=dict)
    label_form: str = 'auto'
    image_bits: int = depth.FULL

    def image(self, data: bytes, name: str) -> UInt8[np.ndarray, 'h w 3']:
        """Decodes an image, see `decode_image`."""
        return decode_image(data, name, bits=self.image_bits)

    def label(self, data: bytes, name: str) -> UInt8[np.ndarray, 'h w']:
        """Decodes a label to train ids, see `decode_label` and `map_labels`."""
        if self.label_form == ONE_BYTE:
            _check_one_byte(_label_header(data, name), name)
        raw = decode_label(data, name, palette_colors=self.label_form == 'colors')
        if raw.ndim == 2:
            return map_labels(raw, self.label_map, name)
        return self._of_three_channels(raw.astype(np.uint8), name)

    def label_size(self, data: bytes, name: str) -> tuple[int, int]:
        """Returns (height, width) of a label, see `label_size`."""
        return label_size(data, name)

    def _of_three_channels(
        self, raw: UInt8[np.ndarray, 'h w 3'], name: str
    ) -> UInt8[np.ndarray, 'h w']:
        """Train ids of a label of three channels: of ids or of colours."""
        ids = np.ascontiguousarray(raw[..., 0])
        is_grey = np.array_equal(ids, raw[..., 1]) and np.array_equal(ids, raw[..., 2])
        if self.label_form == 'colors' or (self.label_form == 'auto' and not is_grey):
            return map_colors(raw, self.label_colors, name)
        if not is_grey:
            raise InputError(
                f'{name}: the label holds colours, but config.data.label_form={self.label_form!r}; '
                "set it to 'colors' if the class file gives the colour of each class"
            )
        try:
            by_id = map_labels(ids, self.label_map, name)
        except InputError:
            if self.label_form == 'ids' or not self.label_colors:
                raise
            return map_colors(raw, self.label_colors, name)
        if self.label_form == 'auto' and self.label_colors:
            table = _color_table(tuple(sorted(self.label_colors.items())))
            by_color = table[_color_codes(raw)]
            if (by_color != NOT_ALLOWED).all() and not np.array_equal(by_color, by_id):
                raise InputError(
                    f'{name}: the greys of the label are class ids as well as colours of other '
                    "classes; set --config.data.label_form to 'ids' or to 'colors'"
                )
        return by_id


def decode_image(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, bits: int = depth.FULL
) -> UInt8[np.ndarray, 'h w 3']:
    """Decodes an image to RGB.

    Grey and CMYK become RGB, 16 bits become 8, transparency is dropped, of TIFFs with four bands
    the first three are taken, and EXIF rotation is ignored, as labels have none.

    Args:
        data: content of the image file.
        name: name of the image, for error messages.
        max_pixels: largest number of pixels that is decoded.
        bits: bits that the samples of 16-bit images use (`depth`).

    Raises:
        InputError: not an image, a truncated or damaged one, bands that are no colours, or values
            that need more than `bits`.
        TooLarge: more than `max_pixels`.
    """
    header = _header(data, name, 'image', max_pixels)
    try:
        return _to_rgb(pixels.for_image(data, header), header, bits, name)
    except Unusable as error:
        raise undecodable(name, str(error)) from error


def decode_upright(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, bits: int = depth.FULL
) -> UInt8[np.ndarray, 'h w 3']:
    """Decodes an image and turns it as EXIF says: for images without labels, such as photographs.

    Args:
        data: content of the image file.
        name: name of the image, for error messages.
        max_pixels: largest number of pixels that is decoded.
        bits: bits that the samples of 16-bit images use (`depth`).

    Raises:
        InputError: as `decode_image`.
    """
    image = decode_image(data, name, max_pixels=max_pixels, bits=bits)
    return orientation.upright(image, orientation.read(io.BytesIO(data)))


def largest_of_16_bits(data: bytes, name: str) -> int | None:
    """Returns the largest value of a 16-bit image, None for an image of 8 bits or fewer.

    Args:
        data: content of the image file.
        name: name of the image, for error messages.

    Raises:
        InputError: as `decode_image`, but for the range of the values.
    """
    header = _header(data, name, 'image', MAX_PIXELS)
    if header.bits <= 8:
        return None
    try:
        samples = _colors(pixels.for_image(data, header), header)
    except Unusable as error:
        raise undecodable(name, str(error)) from error
    return depth.largest(samples) if samples.dtype == np.uint16 else None


def image_size(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Returns (height, width) of an image, as `decode_image` gives it, without decoding it.

    Args:
        data: content of the image file.
        name: name of the image, for error messages.
        max_pixels: largest number of pixels that is allowed.

    Raises:
        InputError: as `decode_image`, where the structure of the file shows it.
        TooLarge: more than `max_pixels`.
    """
    header = _header(data, name, 'image', max_pixels)
    return header.height, header.width


def undecodable(name: str, reason: str = '') -> InputError:
    """Returns the error to raise for an image that cannot be decoded.

    Args:
        name: name of the image.
        reason: what is wrong with it.
    """
    more = f' ({reason})' if reason else ''
    return InputError(f'{name}: the image cannot be decoded; is the file damaged?{more}')


def _header(data: bytes, name: str, kind: str, max_pixels: int) -> Header:
    """Reads and checks the header of an image or label."""
    try:
        header = formats.read(data)
    except Unusable as error:
        if kind == 'label':
            raise _undecodable_label(name, str(error)) from error
        raise undecodable(name, str(error)) from error
    _check_pixels(header.height, header.width, name, kind, max_pixels)
    return header


def _check_pixels(height: int, width: int, name: str, kind: str, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise TooLarge(
            f'{name}: the {kind} has {height} x {width} pixels, more than the {max_pixels:,} that '
            'are decoded; make it smaller or cut it into parts'
        )


def _to_rgb(
    samples: pixels.Samples, header: Header, bits: int, name: str
) -> UInt8[np.ndarray, 'h w 3']:
    """Samples as stored -> 8-bit RGB."""
    colors = depth.to_8_bits(_colors(samples, header), header, bits, name)
    if header.format == 'TIFF' and header.photometric == formats.WHITE_IS_ZERO:
        colors = np.uint8(255) - colors
    if colors.ndim == 2:
        return np.repeat(colors[..., None], 3, -1)
    if header.format == 'JPEG' and colors.shape[2] == 4:
        return _of_cmyk(colors)
    if colors.shape[2] == 1:
        return np.repeat(colors, 3, -1)
    return np.ascontiguousarray(colors)


def _colors(samples: pixels.Samples, header: Header) -> pixels.Samples:
    """Grey, RGB, or CMYK of a JPEG: the samples without transparency and further bands."""
    if samples.ndim == 2 or (header.format == 'JPEG' and samples.shape[2] == 4):
        return samples
    count = samples.shape[2]
    # Bands without a stated meaning; programs that write RGB this way do not mark it.
    is_unmarked = header.format == 'TIFF' and header.photometric == formats.BLACK_IS_ZERO
    if is_unmarked and (count == 2 or count > 4):
        raise Unusable(f'it has {count} bands; save three of them as RGB')
    return samples[..., :1] if count < 3 else samples[..., :3]


def _of_cmyk(samples: UInt8[np.ndarray, 'h w 4']) -> UInt8[np.ndarray, 'h w 3']:
    """Inverted CMYK, as Adobe writes it into JPEG, -> RGB, as OpenCV converts it."""
    inks, black = samples[..., :3].astype(np.int32), samples[..., 3:].astype(np.int32)
    return (black - ((255 - inks) * black >> 8)).astype(np.uint8)


def decode_label(
    data: bytes, name: str, *, palette_colors: bool = False
) -> Integer[np.ndarray, 'h w *rgb']:
    """Decodes a label to its raw values.

    Those of a palette (PNG, TIFF, BMP) are its indices; the palette of a GIF is an arbitrary one,
    so that its colours are taken. Greys of fewer than 8 bits are as stored, not spread over 0..255.

    Args:
        data: content of the label file: PNG, TIFF, GIF, BMP, or an array of whole numbers as
            `numpy.save` writes it.
        name: name of the label, for error messages.
        palette_colors: whether to take the colours of all palettes.

    Returns:
        [h, w], or [h, w, 3] for a label in colours.

    Raises:
        InputError: a format that changes class ids, a damaged file, or one of other samples.
    """
    if data.startswith(_NUMPY):
        return _decode_array(data, name)
    header = _label_header(data, name)
    try:
        if palette_colors and header.has_palette:
            return _to_rgb(pixels.for_image(data, header), header, depth.FULL, name)
        raw = pixels.for_label(data, header)
    except Unusable as error:
        raise _undecodable_label(name, str(error)) from error
    if raw.ndim == 3 and raw.shape[2] == 2:  # grey and alpha
        raw = raw[..., 0]
    if raw.ndim == 3 and (raw.shape[2] not in (3, 4) or raw.dtype != np.uint8):
        raise InputError(
            f'{name}: the label has {raw.shape[2]} channels of {8 * raw.itemsize} bits; labels are '
            'class ids in one channel, or colours of 8 bits'
        )
    if header.format == 'GIF' and not (np.ptp(raw, -1) > 0).any():
        raw = raw[..., 0]  # a palette of greys
    return raw.astype(np.uint8) if raw.dtype == bool else raw[..., :3] if raw.ndim == 3 else raw


def label_size(data: bytes, name: str) -> tuple[int, int]:
    """Returns (height, width) of a label, from the structure of its file alone.

    Args:
        data: content of the label file.
        name: name of the label, for error messages.

    Raises:
        InputError: as `decode_label`, where the structure of the file shows it.
    """
    if data.startswith(_NUMPY):
        height, width = _decode_array(data, name).shape
        return height, width
    header = _label_header(data, name)
    return header.height, header.width


def _label_header(data: bytes, name: str) -> Header:
    header = _header(data, name, 'label', MAX_PIXELS)
    if header.format not in _LABEL_FORMATS:
        raise InputError(
            f'{name}: the label is a {header.format} file, a format that changes class ids; labels '
            f'are {", ".join(_LABEL_FORMATS)} or npy files'
        )
    return header


def _check_one_byte(header: Header, name: str) -> None:
    """Refuses what a published data set does not hold."""
    if header.format != 'PNG' or not (
        header.has_palette or (header.bits, header.channels) == (8, 1)
    ):
        kind = 'grey' if header.channels == 1 else 'colour'
        raise InputError(
            f'{name}: the label is a {header.bits}-bit {kind} {header.format}; labels of this data '
            'set are 8-bit single-channel (or palette) PNG files of class ids'
        )


def _decode_array(data: bytes, name: str) -> Int[np.ndarray, 'h w']:
    """A label as numpy.save writes it."""
    found = _NUMPY_HEADER.match(data)
    if found is None:
        raise _undecodable_label(name, 'its header is of no array of numbers')
    kind, column_first, sides_text = (part.decode() for part in found.groups())
    dtype = np.dtype(kind)
    shape = tuple(int(side) for side in sides_text.split(',') if side.strip())
    start = int.from_bytes(data[8:10], 'little') + 10
    if data[6] > 1:
        start = int.from_bytes(data[8:12], 'little') + 12
    sides = [side for side in shape if side != 1] if len(shape) == 3 else list(shape)
    if len(sides) != 2 or min(sides) < 1 or dtype.kind not in 'iub':
        raise InputError(
            f'{name}: the label is an array {dtype} {list(shape)}; save whole numbers [h, w], such '
            'as label.astype(numpy.uint8)'
        )
    _check_pixels(sides[0], sides[1], name, 'label', MAX_PIXELS)
    if len(data) - start != sides[0] * sides[1] * dtype.itemsize:
        raise _undecodable_label(name, f'{len(data):,} bytes do not fit its size')
    values = np.frombuffer(data, dtype, offset=start)
    array = values.reshape(sides, order='F' if column_first == 'True' else 'C')
    return np.ascontiguousarray(array if dtype == np.uint8 else array.astype(np.int64))


def _undecodable_label(name: str, reason: str) -> InputError:
    return InputError(f'{name}: the label cannot be decoded; is the file damaged? ({reason})')


def map_labels(
    raw: Integer[np.ndarray, 'h w'], label_map: UInt8[np.ndarray, ' values'], name: str
) -> UInt8[np.ndarray, 'h w']:
    """Maps raw label values to train ids.

    Args:
        raw: label values as stored.
        label_map: raw label value -> train id, `IGNORE` or `NOT_ALLOWED`; values beyond its end are
            not allowed.
        name: name of the label, for error messages.

    Raises:
        InputError: a value that is `NOT_ALLOWED`.
    """
    if raw.ndim != 2:
        raise InputError(
            f'{name}: the label holds colours; here it must hold class ids in one channel'
        )
    if raw.dtype == np.uint8:
        mapped = cv2.LUT(np.ascontiguousarray(raw), label_map[:256])
    else:
        inside = (raw >= 0) & (raw < len(label_map))
        mapped = np.where(inside, label_map[np.where(inside, raw, 0)], np.uint8(NOT_ALLOWED))
    bad = mapped == NOT_ALLOWED
    if bad.any():
        values, counts = np.unique(raw[bad], return_counts=True)
        allowed = np.flatnonzero(label_map != NOT_ALLOWED)
        raise InputError(
            f'{name}: label values {_listed(values, counts)} are outside the allowed '
            f'{_ranges(allowed)}; correct the label, or give them a class or ignore them'
        )
    return mapped


def map_colors(
    raw: UInt8[np.ndarray, 'h w 3'], colors: Mapping[tuple[int, int, int], int], name: str
) -> UInt8[np.ndarray, 'h w']:
    """Maps colours to train ids.

    Args:
        raw: label in RGB.
        colors: (red, green, blue) -> train id or `IGNORE`.
        name: name of the label, for error messages.

    Raises:
        InputError: a colour that is none of `colors`.
    """
    if not colors:
        raise InputError(
            f'{name}: the label holds colours, not class ids; give the colour of each class '
            '(columns red, green, blue of the class file), or convert it to ids'
        )
    codes = _color_codes(raw)
    mapped = _color_table(tuple(sorted(colors.items())))[codes]
    bad = mapped == NOT_ALLOWED
    if bad.any():
        values, counts = np.unique(codes[bad], return_counts=True)
        shown = [(v >> 16, v >> 8 & 255, v & 255) for v in values.tolist()]
        raise InputError(
            f'{name}: label colours {_listed(shown, counts)} are none of the {len(colors)} in the '
            'class file; correct the label, or give them a class or ignore them (id ignore)'
        )
    return mapped


def _color_codes(raw: UInt8[np.ndarray, 'h w 3']) -> UInt32[np.ndarray, 'h w']:
    red, green, blue = (raw[..., i].astype(np.uint32) for i in range(3))
    return red << 16 | green << 8 | blue


@functools.lru_cache(maxsize=4)
def _color_table(
    colors: tuple[tuple[tuple[int, int, int], int], ...],
) -> UInt8[np.ndarray, '16777216']:
    """Code of a colour -> train id. Looking up is much faster than sorting the pixels."""
    table = np.full(1 << 24, NOT_ALLOWED, np.uint8)
    for (red, green, blue), train_id in colors:
        table[red << 16 | green << 8 | blue] = train_id
    return table


def _listed(values: np.ndarray | list, counts: np.ndarray) -> str:
    """'34 (512 pixels), 77 (1 pixel)', the most frequent first."""
    order = np.argsort(-counts, kind='stable')
    shown = [
        f'{values[i]} ({counts[i]:,} {"pixel" if counts[i] == 1 else "pixels"})'
        for i in order[:_SHOWN]
    ]
    more = len(order) - _SHOWN
    return ', '.join(shown) + (f' and {more} more' if more > 0 else '')


def _ranges(values: np.ndarray) -> str:
    """'0-18, 255'."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ', '.join(str(r[0]) if len(r) == 1 else f'{r[0]}-{r[-1]}' for r in runs if len(r))


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
