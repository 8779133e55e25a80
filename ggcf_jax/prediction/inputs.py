"""Images to predict: arrays, a file, the files of a folder, the records of a split."""

import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from ggcf_jax import places
from ggcf_jax.data.datasets.pairing import by_stem
from ggcf_jax.data.records import codec, finder, orientation
from ggcf_jax.data.records import names as names_lib
from ggcf_jax.data.records.dataset import Dataset, RecordSource
from ggcf_jax.data.records.formats import EXTENSIONS
from ggcf_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The bytes of an image as they were read.

    Attributes:
        name: name of the image.
        data: content of its file.
        upright: whether it is turned as its EXIF orientation says.
        bits: bits that the samples of a 16-bit image use.
        stamp: where the bytes lie, with their size and times, as a digest; None where they have
            none. Bytes of an equal stamp are equal.
    """

    name: str
    data: bytes
    upright: bool
    bits: int
    stamp: str | None

    def digest(self) -> str:
        """A text that changes with the pixels that `decode` gives."""
        digest = hashlib.sha256(b'upright\n' if self.upright else b'as stored\n')
        digest.update(f'{self.bits} bits\n'.encode())
        digest.update(self.data)
        return digest.hexdigest()

    def decode(self, largest: tuple[int, int] | None = None) -> UInt8[np.ndarray, 'h w 3']:
        """Decodes the image to RGB.

        Args:
            largest: (height, width) that the header promised not to exceed; None for no limit.

        Raises:
            InputError: the image cannot be decoded, or is larger than promised.
        """
        decode = codec.decode_upright if self.upright else codec.decode_image
        image = decode(self.data, self.name, bits=self.bits)
        if largest and (image.shape[0] > largest[0] or image.shape[1] > largest[1]):
            raise InputError(f'{self.name}: the image is larger than its header says')
        return image


@dataclasses.dataclass(frozen=True)
class Input:
    """One image, still encoded.

    Attributes:
        name: name of the image and of its results, without extension; folders are separated by
            slashes.
        open: opens its bytes; raises OSError if they cannot be read.
        upright: whether it is turned as its EXIF orientation says: for photographs. Images of a
            data set stay as they are stored, as their labels do.
        bits: bits that the samples of a 16-bit image use, `config.data.image_bits`.
        path: file that holds just this image; None for a record of a data set.
    """

    name: str
    open: Callable[[], BinaryIO]
    upright: bool
    bits: int
    path: pathlib.Path | None = None

    def size(self) -> tuple[int, int] | None:
        """(height, width) as `decode` gives it; None if it cannot be decoded."""
        try:
            with self.open() as file:
                data = file.read()
            height, width = codec.image_size(data, self.name)
        except (OSError, InputError):
            return None
        if self.upright and orientation.swaps_sides(orientation.read(io.BytesIO(data))):
            return width, height
        return height, width

    def stamp(self) -> str | None:
        """Where its bytes lie, with their size and times, as a digest; see `Encoded`."""
        if self.path is None:
            return None
        try:
            stat = self.path.stat()
        except OSError:
            return None
        # The inode and the time of its last change tell apart what was copied with equal times.
        facts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        text = f'{self.path.resolve()} {facts} {self.upright} {self.bits}'
        return hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:32]

    def read(self) -> Encoded:
        """Reads the bytes.

        Raises:
            InputError: they cannot be read.
        """
        stamp = self.stamp()  # first: of a file that changes now, the next look sees another one
        try:
            with self.open() as file:
                return Encoded(self.name, file.read(), self.upright, self.bits, stamp)
        except OSError as error:
            raise InputError(str(error)) from error

    def decode(self, largest: tuple[int, int] | None = None) -> UInt8[np.ndarray, 'h w 3']:
        """Reads and decodes the image, see `Encoded.decode`."""
        return self.read().decode(largest)


@dataclasses.dataclass(frozen=True)
class ArrayInput:
    """One image in memory, in the place of an `Input`.

    Attributes:
        image: RGB.
    """

    image: UInt8[np.ndarray, 'h w 3']

    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width, _ = self.image.shape
        return height, width

    def decode(self, largest: tuple[int, int] | None = None) -> UInt8[np.ndarray, 'h w 3']:
        """The image itself; `largest` is at least its size."""
        return self.image


def of_any(
    image: str | os.PathLike | np.ndarray, *, upright: bool, bits: int
) -> Input | ArrayInput:
    """An image as users of the Python API give it.

    Args:
        image: path of an image file; or an RGB array, uint8 [h, w, 3].
        upright: whether a file is turned as its EXIF orientation says.
        bits: bits that the samples of a 16-bit file use, `config.data.image_bits`.

    Raises:
        InputError: an array of another dtype or shape.
    """
    if isinstance(image, str | os.PathLike):
        path = places.expand(image)
        return Input(str(path), functools.partial(_open_file, path), upright, bits, path)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InputError(
            f'the image is an array {array.dtype} {list(array.shape)}; give RGB as uint8 '
            '[height, width, 3]'
        )
    return ArrayInput(array)


def of_path(path: pathlib.Path, output: pathlib.Path, *, bits: int) -> list[Input]:
    """The images of a file, or of a folder and its subfolders sorted by name, turned upright.

    Args:
        path: an image file, or a folder.
        output: folder of the results, which is left out where it lies inside `path`.
        bits: bits that the samples of 16-bit images use, `config.data.image_bits`.

    Raises:
        InputError: no images there, or two whose results would have one name.
    """
    if path.is_file():
        return [_of_file(path.stem, path, bits)]
    output = output.resolve()
    files, left_out = finder.find(path, EXTENSIONS)
    found = by_stem((p for p in files if output not in p.resolve().parents), path)
    if not found:
        raise InputError(
            f'--input={path}: no images found; supported extensions: {", ".join(EXTENSIONS)}'
        )
    for note in finder.describe(left_out):
        print(f'--input: left out {note}', file=sys.stderr)
    return [_of_file(name, found[name], bits) for name in sorted(found)]


def of_split(dataset: Dataset, split: str, *, bits: int) -> list[Input]:
    """The images of a split, labelled or not, in its order and as they are stored.

    Args:
        dataset: data set of the split.
        split: name of the split.
        bits: bits that the samples of 16-bit images use, `config.data.image_bits`.

    Raises:
        InputError: no such split, two images of one name, or a name that leaves the folder of the
            results.
    """
    source = dataset.source(split)
    names = [source[i]['name'] for i in range(len(source))]
    name, count = Counter(names).most_common(1)[0] if names else ('', 0)
    if count > 1:
        raise InputError(
            f'--input={split}: {count} images are called {name!r}; give the folder of the images'
        )
    return [
        Input(
            names_lib.check(name, f'record {i} of split {split!r}'),
            functools.partial(_open_record, source, i),
            upright=False,
            bits=bits,
        )
        for i, name in enumerate(names)
    ]


def _of_file(name: str, path: pathlib.Path, bits: int) -> Input:
    return Input(name, functools.partial(_open_file, path), upright=True, bits=bits, path=path)


def _open_file(path: pathlib.Path) -> BinaryIO:
    return path.open('rb')


def _open_record(source: RecordSource, index: int) -> BinaryIO:
    return io.BytesIO(source[index]['image'])
