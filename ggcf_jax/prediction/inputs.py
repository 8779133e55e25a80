"""What is predicted: the images of a file, a folder or a split, and the names of their results."""

import dataclasses
import functools
import io
import pathlib
import warnings
from collections import Counter
from collections.abc import Callable
from typing import BinaryIO

from PIL import Image

from ggcf_jax.data.datasets.folder import IMAGES, by_stem
from ggcf_jax.data.records.dataset import Dataset, RecordSource
from ggcf_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Input:
    """One image, still encoded.

    Attributes:
        name: of its results, without extension; folders are separated by slashes.
        open: opens its bytes; raises OSError if they cannot be read.
    """

    name: str
    open: Callable[[], BinaryIO]

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()

    def size(self) -> tuple[int, int] | None:
        """(h, w) by its header; None if that says nothing, or that it is enormous."""
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            try:
                with self.open() as file, Image.open(file) as image:
                    width, height = image.size
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                return None
        return height, width


def of_path(path: pathlib.Path, output: pathlib.Path) -> list[Input]:
    """The images of a file or of a folder and the folders in it, sorted by name.

    Args:
        output: folder of the results, which are not images to predict where it lies in `path`.

    Raises:
        InputError: no images there, or two whose results would have one name.
    """
    if path.is_file():
        return [Input(path.stem, functools.partial(path.open, 'rb'))]
    output = output.resolve()
    files = (p for p in path.rglob('*') if p.suffix.lower() in IMAGES and p.is_file())
    found = by_stem((p for p in files if output not in p.resolve().parents), path)
    if not found:
        raise InputError(
            f'--input={path}: no images found; supported extensions: {", ".join(IMAGES)}'
        )
    return [Input(name, functools.partial(found[name].open, 'rb')) for name in sorted(found)]


def of_split(dataset: Dataset, split: str) -> list[Input]:
    """The images of a split, labelled or not, in its order.

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
    return [Input(name, functools.partial(_open, source, i)) for i, name in enumerate(names)]


def _open(source: RecordSource, index: int) -> BinaryIO:
    return io.BytesIO(source[index]['image'])
