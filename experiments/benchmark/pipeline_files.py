"""The PNG pairs that the pipeline benchmark reads: painted once, blurred as by a lens."""

import dataclasses
import pathlib
from typing import Any

import cv2

from ggcf_jax.data.datasets.street_painter import classes, paint
from ggcf_jax.data.records.dataset import Dataset, RecordSource, identity_label_map

SIZE = (1024, 2048)
BLUR = 0.8  # pixels: the files are then about as large as those of Cityscapes
RECORDS = 2975


class Files:
    """Records of numbered PNG pairs in a folder."""

    def __init__(self, folder: pathlib.Path, count: int) -> None:
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = (self.folder / f'{kind}_{index:04d}.png' for kind in ('image', 'label'))
        return {'name': image.stem, 'image': image.read_bytes(), 'label': label.read_bytes()}


def make_files(folder: pathlib.Path, count: int) -> Files:
    """Paints the pairs that are missing.

    Args:
        folder: folder of the files.
        count: number of pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f'label_{index:04d}.png'
        if path.exists():
            continue
        image, label = paint.paint_scene(0, 'train', index, SIZE)
        image = cv2.GaussianBlur(image, (0, 0), BLUR)
        cv2.imwrite(str(folder / f'image_{index:04d}.png'), image[..., ::-1])
        cv2.imwrite(str(path), label)
    return Files(folder, count)


class Repeated:
    """Records of a source, repeated up to a number of them."""

    def __init__(self, source: RecordSource, count: int) -> None:
        self.source, self.count = source, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[index % len(self.source)]


def repeat(data: Dataset) -> Dataset:
    """Repeats the records up to the number of Cityscapes: grain is slow to shuffle a few dozen."""
    repeated = Repeated(data.source('train'), RECORDS)
    return dataclasses.replace(data, sources={'train': repeated})


def dataset(files: Files) -> Dataset:
    """Returns the files as a data set of 19 classes."""
    label_map = identity_label_map(len(classes.CLASSES), classes.IGNORE)
    return Dataset('files', classes.CLASSES, classes.COLORS, {'train': files}, label_map, 'files')
