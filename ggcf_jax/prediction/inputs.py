"""Images to predict: arrays, a file, the files of a folder, the records of a split."""

import dataclasses
import functools
import io
import os
import pathlib
import warnings
from collections import Counter
from collections.abc import Callable
from typing import BinaryIO

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ggcf_jax.data.datasets.folder import IMAGES, by_stem
from ggcf_jax.data.records import codec
from ggcf_jax.data.records.dataset import Dataset, RecordSource
from ggcf_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Input:
    """One image, still encoded.

    Attributes:
        name: name of the image and of its results, without extension; folders are separated by
            slashes.
        open: opens its bytes; raises OSError if they cannot be read.
    """

    name: str
    open: Callable[[], BinaryIO]

    def size(self) -> tuple[int, int] | None:
        """(height, width) by its header; None if that says nothing, or that it is enormous."""
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            try:
                with self.open() as file, Image.open(file) as image:
                    width, height = image.size
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                return None
        return height, width

    def decode(self, largest: tuple[int, int] | None = None) -> UInt8[np.ndarray, 'h w 3']:
        """Decodes the image to RGB; EXIF orientation is ignored, as in training.

        Args:
            largest: (height, width) that the header promised not to exceed; None for no limit.

        Raises:
            InputError: the image cannot be read or decoded, or is larger than promised.
        """
        try:
            with self.open() as file:
                image = codec.decode_image(file.read(), self.name)
        except OSError as error:
            raise InputError(str(error)) from error
        except cv2.error as error:  # such as more pixels than OpenCV decodes
            raise InputError(f'{self.name}: {error.err or error}') from error
        if largest and (image.shape[0] > largest[0] or image.shape[1] > largest[1]):
            raise InputError(f'{self.name}: the image is larger than its header says')
        return image


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


def of_any(image: str | os.PathLike | np.ndarray) -> Input | ArrayInput:
    """An image as users of the Python API give it.

    Args:
        image: path of an image file; or an RGB array, uint8 [h, w, 3].

    Raises:
        InputError: an array of another dtype or shape.
    """
    if isinstance(image, str | os.PathLike):
        path = pathlib.Path(image).expanduser()
        return Input(str(path), functools.partial(_open_file, path))
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InputError(
            f'the image is an array {array.dtype} {list(array.shape)}; give RGB as uint8 '
            '[height, width, 3]'
        )
    return ArrayInput(array)


def of_path(path: pathlib.Path, output: pathlib.Path) -> list[Input]:
    """The images of a file, or of a folder and its subfolders sorted by name.

    Args:
        path: an image file, or a folder.
        output: folder of the results, which is left out where it lies inside `path`.

    Raises:
        InputError: no images there, or two whose results would have one name.
    """
    if path.is_file():
        return [Input(path.stem, functools.partial(_open_file, path))]
    output = output.resolve()
    files = (p for p in path.rglob('*') if p.suffix.lower() in IMAGES and p.is_file())
    found = by_stem((p for p in files if output not in p.resolve().parents), path)
    if not found:
        raise InputError(
            f'--input={path}: no images found; supported extensions: {", ".join(IMAGES)}'
        )
    return [Input(name, functools.partial(_open_file, found[name])) for name in sorted(found)]


def of_split(dataset: Dataset, split: str) -> list[Input]:
    """The images of a split, labelled or not, in its order.

    Args:
        dataset: data set of the split.
        split: name of the split.

    Raises:
        InputError: no such split, or two images of one name.
    """
    source = dataset.source(split)
    names = [source[i]['name'] for i in range(len(source))]
    name, count = Counter(names).most_common(1)[0] if names else ('', 0)
    if count > 1:
        raise InputError(
            f'--input={split}: {count} images are called {name!r}; give the folder of the images'
        )
    return [Input(name, functools.partial(_open_record, source, i)) for i, name in enumerate(names)]


def _open_file(path: pathlib.Path) -> BinaryIO:
    return path.open('rb')


def _open_record(source: RecordSource, index: int) -> BinaryIO:
    return io.BytesIO(source[index]['image'])
