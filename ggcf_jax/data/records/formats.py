"""Which format an image file has, how large its picture is, and where the file of it ends.

A file is recognised by its first bytes, whatever its name says, and walked chunk by chunk or marker
by marker to the end of the picture. A file that breaks off is found out by that; bytes behind the
end, as in the motion photos of telephones, are none of the picture. `pixels` decodes each format
with one library, so that what is checked here is what is decoded there.

Specifications: PNG (third edition), ITU T.81 (JPEG), TIFF 6.0 and BigTIFF, the WebP container,
GIF89a, BITMAPINFOHEADER.
"""

import dataclasses
import math
import re
import struct
import zlib
from collections.abc import Callable

SUPPORTED = 'PNG, JPEG, TIFF, WebP, BMP, GIF'
# Extensions of image files, in lower case; the content decides what a file is.
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.gif')

PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_DEFLATE_RATIO = 1032  # no byte of a deflate stream gives more bytes
_BLOCK = 64  # pixels of a block of a JPEG, which takes at least one bit


class Unusable(ValueError):
    """A file that holds no picture that can be decoded; the text says why."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says about its picture.

    Attributes:
        format: one of `SUPPORTED`.
        height: number of rows.
        width: number of columns.
        bits: bits of a sample.
        channels: samples of a pixel; 1 for a palette.
        has_palette: whether pixels are indices of a palette.
        end: number of bytes up to the end of the picture.
        parts: (start, stop) of the pieces of the file that its decoder needs to know. PNG: the
            chunks of the picture. JPEG: the entropy-coded data between any two markers. TIFF: the
            strips or tiles.
        progressive: JPEG alone: whether scans of details follow one of mean values.
        photometric: TIFF alone: PhotometricInterpretation.
        compression: TIFF alone: Compression.
        tables: TIFF alone: JPEGTables.
        colors: BMP alone: number of colours of the palette.
        colormap: TIFF alone: ColorMap, all reds before all greens before all blues.
    """

    format: str
    height: int
    width: int
    bits: int
    channels: int
    has_palette: bool = False
    end: int = 0
    parts: tuple[tuple[int, int], ...] = ()
    progressive: bool = False
    photometric: int = 0
    compression: int = 1
    tables: bytes = b''
    colors: int = 0
    colormap: tuple[int, ...] = ()


def read(data: bytes) -> Header:
    """Reads the header of an image file and walks through it.

    Args:
        data: content of the file.

    Raises:
        Unusable: no image of a supported format, one that breaks off, or one that holds far too few
            bytes for its size.
    """
    for signature, walk in _FORMATS.items():
        if data.startswith(signature):
            try:
                header = walk(data)
            except (struct.error, IndexError) as error:
                raise Unusable(f'it breaks off after {len(data):,} bytes') from error
            if not (header.height > 0 and header.width > 0):
                raise Unusable(f'its header says {header.height} x {header.width} pixels')
            return header
    raise Unusable(f'it is {_kind(data)}; supported are {SUPPORTED}')


def _kind(data: bytes) -> str:
    """What a file is that has none of the supported formats."""
    if not data:
        return 'an empty file'
    if data[4:8] == b'ftyp':
        return f'a file of type {data[8:12].decode("latin-1").strip()!r} (AVIF, HEIC or a video)'
    for signature, kind in _OTHERS.items():
        if data.lstrip()[: len(signature)].lower() == signature.lower():
            return kind
    return 'no image, or one of another format'


_OTHERS = {
    b'<!doctype': 'a web page',
    b'<html': 'a web page',
    b'<svg': 'an SVG drawing',
    b'<?xml': 'an XML file',
    b'%PDF': 'a PDF',
    b'version https://git-lfs': 'a pointer of Git LFS (run git lfs pull)',
    b'\xff\x4f\xff\x51': 'a JPEG 2000 image',
    b'\0\0\0\x0cjP  ': 'a JPEG 2000 image',
    b'\xff\x0a': 'a JPEG XL image',
    b'\0\0\0\x0cJXL ': 'a JPEG XL image',
    b'\x93NUMPY': 'an array of NumPy',
    b'PK\x03\x04': 'a zip file',
    b'P5': 'a PGM or PPM image',
    b'P6': 'a PGM or PPM image',
}


# PNG ------------------------------------------------------------------------------------------

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_CHUNKS = (b'IHDR', b'PLTE', b'IDAT', b'IEND')


def _png(data: bytes) -> Header:
    """The chunks up to IEND; all but those of the picture are left out of `parts`."""
    parts, compressed, at = [], 0, len(PNG_SIGNATURE)
    header = None
    while True:
        length, kind = struct.unpack_from('>I4s', data, at)
        stop = at + 12 + length
        if stop > len(data):
            raise Unusable(f'it breaks off after {len(data):,} bytes')
        if (kind == b'IHDR') != (header is None):
            raise Unusable('its first chunk is not the one header')
        if header is None:
            if length != 13:
                raise Unusable('its header has a wrong length')
            width, height, bits, color, *methods = struct.unpack_from('>IIBBBBB', data, at + 8)
            if bits not in _PNG_BITS.get(color, ()) or methods[:2] != [0, 0] or methods[2] > 1:
                raise Unusable('its header is of no PNG')
            header = Header('PNG', height, width, bits, _PNG_CHANNELS[color], color == 3)
        if kind in _PNG_CHUNKS:
            if zlib.crc32(data[at + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop], 'big'):
                raise Unusable(f'the checksum of its chunk {kind.decode()} is wrong')
            parts.append((at, stop))
            compressed += length if kind == b'IDAT' else 0
        at = stop
        if kind == b'IEND':
            break
    if header.height * (header.width * header.bits * header.channels // 8) > (
        _DEFLATE_RATIO * compressed
    ):
        raise Unusable(f'its {compressed:,} bytes cannot hold {header.height} x {header.width}')
    return dataclasses.replace(header, end=at, parts=tuple(parts))


# JPEG -----------------------------------------------------------------------------------------

# In entropy-coded data a byte ff is followed by 00; by d0 to d7 it is a restart marker.
_JPEG_MARKER = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
_JPEG_RESTART = re.compile(rb'\xff[\xd0-\xd7]')
_SOF = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, with Huffman codes
_OTHER_SOF = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a segment


def _jpeg(data: bytes) -> Header:
    """The markers from SOI to the EOI behind the last scan. Previews lie inside of segments."""
    at, header, interval = 2, None, 0
    parts: list[tuple[int, int]] = []
    factors: dict[int, tuple[int, int]] = {}  # sampling (down, across) of each component
    missing: set[int] = set()  # components whose mean value (DC) no scan has given
    while True:
        at = data.find(b'\xff', at)  # as libjpeg, which skips what is between segments
        if at < 0:
            raise Unusable(f'it breaks off after {len(data):,} bytes')
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == 0xD9:
            break
        if marker == 0 or marker in _ALONE:
            continue
        if marker == 0xD8:
            raise Unusable('a second image begins inside of it')
        (length,) = struct.unpack_from('>H', data, at)
        if length < 2 or at + length > len(data):
            raise Unusable(f'it breaks off after {len(data):,} bytes')
        if marker in _OTHER_SOF:
            raise Unusable('it is a lossless, hierarchical or arithmetic-coded JPEG')
        if marker in _SOF:
            if header is not None:
                raise Unusable('it has two headers')
            bits, height, width, channels = struct.unpack_from('>BHHB', data, at + 2)
            if bits != 8:
                raise Unusable(f'it is a JPEG of {bits} bits; supported are 8')
            if channels not in (1, 3, 4) or length < 8 + 3 * channels:
                raise Unusable(f'it is a JPEG of {channels} components')
            for i in range(at + 8, at + 8 + 3 * channels, 3):
                factors[data[i]] = max(data[i + 1] & 15, 1), max(data[i + 1] >> 4, 1)
            missing = set(factors)
            header = Header('JPEG', height, width, bits, channels, progressive=marker == 0xC2)
        if marker == 0xDD:
            (interval,) = struct.unpack_from('>H', data, at + 2)
        if marker != 0xDA:
            at += length
            continue
        if header is None:
            raise Unusable('its pixels come before its header')
        components = [data[at + 3 + 2 * i] for i in range(data[at + 2])]
        if data[at + 3 + 2 * len(components)] == 0:  # spectral selection starts with the mean value
            missing.difference_update(components)
        start = at + length
        found = _JPEG_MARKER.search(data, start)
        if found is None:
            raise Unusable(f'it breaks off after {len(data):,} bytes')
        at = found.start()
        before = len(parts)
        for restart in _JPEG_RESTART.finditer(data, start, at):
            parts.append((start, restart.start()))
            start = restart.end()
        parts.append((start, at))
        if interval and (len(parts) - before) * interval < _jpeg_units(header, factors, components):
            raise Unusable('restart markers are missing in it')
    if header is None or missing:
        raise Unusable('it breaks off before its last component')
    size = sum(stop - start for start, stop in parts)
    if header.height * header.width > 8 * _BLOCK * size:
        raise Unusable(f'its {size:,} bytes cannot hold {header.height} x {header.width}')
    return dataclasses.replace(header, end=at, parts=tuple(parts))


def _jpeg_units(header: Header, factors: dict[int, tuple[int, int]], components: list[int]) -> int:
    """Number of units (MCU) in a scan of some components (T.81, A.2)."""
    most = [max(factor[axis] for factor in factors.values()) for axis in (0, 1)]
    sides = [header.height, header.width]
    if len(components) == 1 and components[0] in factors:
        own = factors[components[0]]
        sides = [math.ceil(sides[i] * own[i] / most[i]) for i in (0, 1)]
        most = [1, 1]
    return math.ceil(sides[0] / (8 * most[0])) * math.ceil(sides[1] / (8 * most[1]))


# WebP -----------------------------------------------------------------------------------------


def _webp(data: bytes) -> Header:
    """The chunks of the RIFF container; the size is that of the canvas."""
    (size,) = struct.unpack_from('<I', data, 4)
    if data[8:12] != b'WEBP':
        raise Unusable(f'it is a RIFF file, but no image; supported are {SUPPORTED}')
    end = 8 + size
    if end > len(data):
        raise Unusable(f'it breaks off after {len(data):,} bytes')
    at, canvas = 12, None
    while at + 8 <= end:
        kind, length = struct.unpack_from('<4sI', data, at)
        body = at + 8
        at = body + length + length % 2
        if at > end:
            raise Unusable('a chunk of it is longer than the file')
        if canvas is not None:
            continue
        if kind == b'VP8X':
            width, height = (
                int.from_bytes(data[body + i : body + i + 3], 'little') for i in (4, 7)
            )
            canvas = height + 1, width + 1
        elif kind == b'VP8 ':
            width, height = struct.unpack_from('<HH', data, body + 6)
            canvas = height & 0x3FFF, width & 0x3FFF
        elif kind == b'VP8L':
            (packed,) = struct.unpack_from('<I', data, body + 1)
            canvas = (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1
    if canvas is None:
        raise Unusable('it holds no picture')
    return Header('WebP', *canvas, bits=8, channels=3, end=end)


# GIF ------------------------------------------------------------------------------------------


def _gif(data: bytes) -> Header:
    """The blocks up to the end of the first picture, the only one that is decoded."""
    width, height, flags = struct.unpack_from('<HHB', data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[at] == 0x21:  # extensions
        at = _gif_blocks(data, at + 2)
    if data[at] != 0x2C:
        raise Unusable('it holds no picture')
    left, top, columns, rows, flags = struct.unpack_from('<HHHHB', data, at + 1)
    if (left, top, columns, rows) != (0, 0, width, height):
        raise Unusable('its first picture does not fill its screen')
    at += 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    start = at + 1  # behind the code size
    at = _gif_blocks(data, start)
    if width * height > 4096 * 8 * (at - start):  # a code of 3 bits stands for at most 4,096 pixels
        raise Unusable(f'its {at - start:,} bytes cannot hold {height} x {width}')
    return Header('GIF', height, width, 8, 1, has_palette=True, end=at)


def _gif_blocks(data: bytes, at: int) -> int:
    """Position behind a row of sub-blocks."""
    while data[at]:
        at += data[at] + 1
    return at + 1


# BMP ------------------------------------------------------------------------------------------


def _bmp(data: bytes) -> Header:
    """A BMP that is not compressed, so that its size in bytes is known."""
    start, size = struct.unpack_from('<II', data, 10)
    if size == 12:
        width, height, _, bits = struct.unpack_from('<HHHH', data, 18)
        compression = colors = 0
    elif size in (40, 52, 56, 64, 108, 124):
        width, height, _, bits, compression = struct.unpack_from('<iiHHI', data, 18)
        (colors,) = struct.unpack_from('<I', data, 46)
    else:
        raise Unusable('its header is of no BMP')
    height = abs(height)  # negative: the first row comes first
    if compression not in (0, 3) or bits not in (1, 4, 8, 16, 24, 32):
        raise Unusable('it is a compressed BMP, which is not supported')
    end = start + -(-width * bits // 32) * 4 * height
    if bits <= 8:
        colors = colors or 1 << bits
        if colors > 1 << bits or start < 14 + size + (3 if size == 12 else 4) * colors:
            raise Unusable('it has no whole palette')
    if end > len(data) or start < 14 + size:
        raise Unusable(f'it breaks off after {len(data):,} bytes')
    channels = 1 if bits <= 8 else 3
    return Header('BMP', height, width, min(bits, 8), channels, bits <= 8, end, colors=colors)


# TIFF -----------------------------------------------------------------------------------------

_TIFF_TYPES = {1: 'B', 2: 'B', 3: 'H', 4: 'I', 6: 'b', 7: 'B', 8: 'h', 9: 'i', 16: 'Q', 18: 'Q'}
_TILE_PIXELS = 1 << 22  # a tile may be this large, even if the picture is smaller
_MOST_TAGS = 4096
# Without loss of a word about damage: fax codes, for one, go on with white or black rows.
TIFF_JPEG = 7
_TIFF_DEFLATE = (8, 32946)
_TIFF_COMPRESSIONS = (1, 5, TIFF_JPEG, *_TIFF_DEFLATE, 32773)
WHITE_IS_ZERO, BLACK_IS_ZERO, TIFF_RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6  # photometric


def _tiff(data: bytes) -> Header:
    """The first directory: the size, the samples, and whether all strips or tiles are there."""
    tags = _tiff_tags(data)

    def numbers(tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        return tags[tag]() if tag in tags else default

    def number(tag: int, default: int) -> int:
        return next(iter(numbers(tag)), default)

    width, height = number(256, 0), number(257, 0)
    channels, bits = number(277, 1), numbers(258, (1,))
    photometric, kinds = number(262, -1), numbers(339, (1,))
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31 and 0 < channels <= 1 << 16):
        raise Unusable(f'its header says {height} x {width} pixels of {channels} samples')
    if len(set(bits)) != 1 or len(set(kinds)) != 1:
        raise Unusable('its bands differ in their number of bits or kind of numbers')
    if kinds[0] not in (1, 4) or bits[0] not in (1, 2, 4, 8, 16, 32):
        raise Unusable(
            f'its samples are {bits[0]}-bit {_SAMPLE_KINDS.get(kinds[0], "numbers")}; supported '
            'are unsigned integers'
        )
    compression = number(259, 1)
    if compression not in _TIFF_COMPRESSIONS:
        raise Unusable(
            f'its compression {compression} is not supported; save it with LZW or Deflate'
        )
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, TIFF_RGB, PALETTE, CMYK, YCBCR) or (
        photometric == YCBCR and compression != TIFF_JPEG
    ):
        raise Unusable(f'its kind of colours ({photometric}) is not supported; save it as RGB')
    colormap = numbers(320)
    if photometric == PALETTE and (channels != 1 or len(colormap) != 3 << bits[0]):
        raise Unusable('it has no whole palette')
    is_tiled = 322 in tags or 323 in tags
    if is_tiled:
        columns, rows = number(322, 0), number(323, 0)
        if not 0 < columns * rows <= max(_TILE_PIXELS, 4 * width * height):
            raise Unusable(f'its tiles of {rows} x {columns} are larger than it')
        offsets, counts = numbers(324), numbers(325)
        needed = -(-width // columns) * -(-height // rows)
    else:
        columns, rows = width, max(1, min(number(278, height), height))
        offsets, counts = numbers(273), numbers(279)
        needed = -(-height // rows)
    planes = channels if number(284, 1) == 2 else 1
    if len(offsets) != needed * planes or len(counts) != len(offsets):
        raise Unusable(f'it has {len(offsets)} of its {needed * planes} strips or tiles')
    if any(offset + count > len(data) or not count for offset, count in zip(offsets, counts)):
        raise Unusable(f'it breaks off after {len(data):,} bytes')
    in_row = -(-columns * bits[0] * (channels // planes) // 8)
    last = rows if is_tiled else height - rows * (needed - 1)
    for index, (offset, count) in enumerate(zip(offsets, counts)):
        size = in_row * (last if index % needed == needed - 1 else rows)
        if compression in _TIFF_DEFLATE:  # libtiff takes some broken streams for zeros
            count = _inflated(data[offset : offset + count], size)
        if count < size and compression in (1, *_TIFF_DEFLATE):
            raise Unusable('its strips or tiles are shorter than its size needs')
    return Header(
        'TIFF',
        height,
        width,
        bits[0],
        channels,
        has_palette=photometric == 3,
        end=len(data),
        parts=tuple((offset, offset + count) for offset, count in zip(offsets, counts)),
        photometric=photometric,
        compression=compression,
        tables=bytes(numbers(347)),
        colormap=colormap if photometric == PALETTE else (),
    )


def _inflated(stream: bytes, size: int) -> int:
    """Number of bytes that a deflate stream gives, at most `size`."""
    try:
        return len(zlib.decompressobj().decompress(stream, size))
    except zlib.error as error:
        raise Unusable(str(error)) from error


_SAMPLE_KINDS = {2: 'signed integers', 3: 'floating-point numbers', 5: 'complex integers'}


def _tiff_tags(data: bytes) -> dict[int, Callable[[], tuple[int, ...]]]:
    """Tag -> function that reads its numbers, of the first directory."""
    order = '<' if data.startswith(b'II') else '>'
    is_big = struct.unpack_from(f'{order}H', data, 2)[0] == 43
    (at,) = struct.unpack_from(f'{order}{"Q" if is_big else "I"}', data, 8 if is_big else 4)
    (count,) = struct.unpack_from(f'{order}{"Q" if is_big else "H"}', data, at)
    if count > _MOST_TAGS:
        raise Unusable(f'its directory has {count} entries')
    at += 8 if is_big else 2
    tags: dict[int, Callable[[], tuple[int, ...]]] = {}
    entry = struct.Struct(f'{order}HH{"QQ" if is_big else "II"}')
    for _ in range(count):
        tag, kind, length, offset = entry.unpack_from(data, at)
        if tag in tags:  # decoders differ in which one they take
            raise Unusable(f'it has the tag {tag} twice')
        code = _TIFF_TYPES.get(kind)
        if code is not None:
            size = struct.calcsize(code) * length
            inside = at + entry.size - (8 if is_big else 4)
            start = inside if size <= (8 if is_big else 4) else offset

            def numbers(form: str = f'{order}{length}{code}', start: int = start) -> tuple:
                if start + struct.calcsize(form) > len(data):
                    raise Unusable(f'it breaks off after {len(data):,} bytes')
                return struct.unpack_from(form, data, start)

            tags[tag] = numbers
        at += entry.size
    return tags


_FORMATS: dict[bytes, Callable[[bytes], Header]] = {
    PNG_SIGNATURE: _png,
    b'\xff\xd8\xff': _jpeg,
    b'RIFF': _webp,
    b'GIF87a': _gif,
    b'GIF89a': _gif,
    b'BM': _bmp,
    b'II*\0': _tiff,
    b'MM\0*': _tiff,
    b'II+\0': _tiff,
    b'MM\0+': _tiff,
}
SIGNATURES = tuple(_FORMATS)  # first bytes of the files that are supported
