"""The PNG pairs that the pipeline benchmark reads: painted once, blurred as by a lens."""

import dataclasses
import pathlib

import cv2

from ggcf_jax.data.datasets.street_painter import classes, paint
from ggcf_jax.data.records.codec import FileDecoder
from ggcf_jax.data.records.dataset import (
    Dataset,
    EncodedRecord,
    FileSource,
    RecordSource,
    identity_label_map,
)

SIZE = (1024, 2048)
BLUR = 0.8  # pixels: the files are then about as large as those of Cityscapes
RECORDS = 2975
LABEL_MAP = identity_label_map(len(classes.CLASSES), classes.IGNORE)


def make_files(folder: pathlib.Path, count: int) -> FileSource:
    """Paints the pairs that are missing.

    Args:
        folder: folder of the files.
        count: number of pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for index in range(count):
        files = (folder / f'image_{index:04d}.png', folder / f'label_{index:04d}.png')
        pairs.append(files)
        if files[1].exists():
            continue
        image, label = paint.paint_scene(0, 'train', index, SIZE)
        image = cv2.GaussianBlur(image, (0, 0), BLUR)
        cv2.imwrite(str(files[0]), image[..., ::-1])
        cv2.imwrite(str(files[1]), label)
    return FileSource(pairs)


class Repeated:
    """Records of a source, repeated up to a number of them."""

    def __init__(self, source: RecordSource, count: int) -> None:
        self.source, self.count = source, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> EncodedRecord:
        return self.source[index % len(self.source)]


def repeat(data: Dataset) -> Dataset:
    """Repeats the records up to the number of Cityscapes: grain is slow to shuffle a few dozen."""
    repeated = Repeated(data.source('train'), RECORDS)
    return dataclasses.replace(data, sources={'train': repeated})


def dataset(files: FileSource) -> Dataset:
    """Returns the files as a data set of 19 classes."""
    return Dataset(
        name='files',
        classes=classes.CLASSES,
        colors=classes.COLORS,
        sources={'train': files},
        decoder=FileDecoder(LABEL_MAP),
        identity='files',
    )
