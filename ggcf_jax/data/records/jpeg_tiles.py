"""Images as JPEG tiles, of which only those are decoded that a window touches.

On average a crop shows a third of a large image, and decoding is the largest cost of a sample.

Layout: height and width, then the length of each tile, all little-endian uint32; then the tiles row
by row, each a JPEG file of quality 92 without chroma subsampling. Tiles begin at multiples of
JPEG's blocks of 8 pixels, so that together they have the pixels of one JPEG file of that quality.
"""

import struct

import cv2
import imagecodecs
import numpy as np
from jaxtyping import UInt8

from ggcf_jax.data.records import codec

SIDE = 256  # pixels
JPEG = (
    cv2.IMWRITE_JPEG_QUALITY,
    92,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)

_END = b'\xff\xd9'
_SIZE = struct.Struct('<II')


def encode(image: UInt8[np.ndarray, 'h w 3']) -> bytes:
    """Encodes an image.

    Args:
        image: RGB pixels.
    """
    height, width = image.shape[:2]
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    # Huffman tables of its own make each tile smaller by about what its file header adds.
    flags = (*JPEG, cv2.IMWRITE_JPEG_OPTIMIZE, 1)
    tiles = [
        cv2.imencode('.jpg', bgr[y : y + SIDE, x : x + SIDE], flags)[1].tobytes()
        for y in range(0, height, SIDE)
        for x in range(0, width, SIDE)
    ]
    lengths = np.array([len(tile) for tile in tiles], '<u4')
    return b''.join([_SIZE.pack(height, width), lengths.tobytes(), *tiles])


class TiledImage:
    """An encoded image: `image[rows, columns]` decodes only the tiles of that window.

    Attributes:
        shape: (height, width, 3).
    """

    def __init__(self, data: bytes, name: str):
        """Reads the positions of the tiles.

        Args:
            data: an image as `encode` writes it.
            name: name of the image, for error messages.

        Raises:
            InputError: `data` is truncated or not such an image.
        """
        self._data, self._name = data, name
        try:
            height, width = _SIZE.unpack_from(data)
            self._columns = -(-width // SIDE)
            count = -(-height // SIDE) * self._columns
            lengths = np.frombuffer(data, '<u4', count, _SIZE.size).tolist()
        except (struct.error, ValueError) as error:
            raise codec.undecodable(name) from error
        self.shape = (height, width, 3)
        self._edges = np.cumsum([_SIZE.size + 4 * count, *lengths]).tolist()
        if self._edges[-1] != len(data):
            raise codec.undecodable(name)

    def __getitem__(self, window: tuple[slice, slice], /) -> UInt8[np.ndarray, 'h w 3']:
        """Decodes the RGB pixels of a window.

        Args:
            window: slice of rows, slice of columns, both without a step.

        Raises:
            InputError: a tile cannot be decoded or has the wrong size.
        """
        (top, bottom, _), (left, right, _) = (
            axis.indices(length) for axis, length in zip(window, self.shape)
        )
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        buffer = np.empty(SIDE * SIDE * 3, np.uint8)  # of each tile in turn
        for y in range(top // SIDE * SIDE, bottom, SIDE):
            for x in range(left // SIDE * SIDE, right, SIDE):
                tile = self._decode(y // SIDE, x // SIDE, buffer)
                # Where the tile begins in the window, or the window in the tile.
                pixels[max(0, y - top) : y + SIDE - top, max(0, x - left) : x + SIDE - left] = tile[
                    max(0, top - y) : bottom - y, max(0, left - x) : right - x
                ]
        return pixels

    def _decode(self, row: int, column: int, buffer: np.ndarray) -> np.ndarray:
        """Decodes the tile at (row, column) into `buffer`."""
        height, width = (min(SIDE, n - SIDE * i) for n, i in zip(self.shape, (row, column)))
        tile = buffer[: height * width * 3].reshape(height, width, 3)
        start, stop = self._edges[row * self._columns + column :][:2]
        data = self._data[start:stop]
        try:
            # The decoder would silently fill what is missing of a truncated tile with grey.
            if data.endswith(_END):
                return imagecodecs.jpeg8_decode(data, out=tile)
        except (imagecodecs.Jpeg8Error, ValueError) as error:  # ValueError: wrong size
            raise codec.undecodable(self._name) from error
        raise codec.undecodable(self._name)
