"""`street_scenes`: procedurally painted streets with the 19 Cityscapes classes.

It needs no download: the images are painted when the data set is first used. Walls, fences and
buildings share materials; buses, trucks and trains share paint and bands of windows; vegetation and
terrain share greens. So a network has to tell them apart by the structure around them.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from ggcf_jax.data.datasets.street_painter import classes, paint
from ggcf_jax.data.records import prepare
from ggcf_jax.data.records.builder import Record, RecordBuilder, Splits
from ggcf_jax.data.records.codec import FileDecoder
from ggcf_jax.data.records.dataset import Dataset, identity_label_map
from ggcf_jax.errors import InputError

SIZE_STEP = 32  # pixels
SMALLEST = (64, 128)  # (height, width) in pixels


@dataclasses.dataclass(frozen=True)
class SceneSet:
    """Everything that the bytes of a prepared data set depend on, besides the painter's version.

    Attributes:
        image_size: (height, width) in pixels: multiples of 32, at least 64 x 128.
        num_images: number of train, validation and test images, each at least 1.
        scene_seed: seed of the scenes; other seeds give other scenes.

    Raises:
        InputError: a value that scenes cannot be painted with.
    """

    image_size: tuple[int, int] = (256, 512)
    num_images: tuple[int, int, int] = (600, 100, 100)
    scene_seed: int = 0

    def __post_init__(self) -> None:
        size, counts = self.image_size, self.num_images
        if not _integers(size, 2) or any(
            n < low or n % SIZE_STEP for n, low in zip(size, SMALLEST)
        ):
            raise InputError(
                f'image_size {size!r} of street_scenes must be (height, width) in multiples of '
                f'{SIZE_STEP}, at least {SMALLEST}; for example (256, 512)'
            )
        if not _integers(counts, 3) or any(n < 1 for n in counts):
            raise InputError(
                f'num_images {counts!r} of street_scenes must be three positive numbers '
                '(train, validation, test); for example (600, 100, 100)'
            )
        if not _integers((self.scene_seed,), 1) or self.scene_seed < 0:
            raise InputError(f'scene_seed {self.scene_seed!r} must be a whole number from 0 up')

    @property
    def name(self) -> str:
        """Folder name of the prepared data, for example '256x512-seed0-600-100-100'."""
        size = 'x'.join(str(n) for n in self.image_size)
        return '-'.join([size, f'seed{self.scene_seed}', *(str(n) for n in self.num_images)])


class Builder(RecordBuilder):
    """TFDS builder; its config is named after everything that changes the data."""

    name = 'street_scenes'
    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, scenes: SceneSet, data_dir: str | None = None):
        """Names the data set; nothing is painted yet.

        Args:
            scenes: sizes, numbers and seed of the scenes.
            data_dir: folder of prepared data sets; None for the default of TFDS.
        """
        self._scenes = scenes
        super().__init__(data_dir=data_dir, config=tfds.core.BuilderConfig(name=scenes.name))

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    'name': tfds.features.Text(),
                    'image': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
                    'label': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
                }
            ),
        )

    def records(self) -> contextlib.AbstractContextManager[Splits]:
        """Lists the scenes, which are painted when they are read."""
        height, width = self._scenes.image_size
        return contextlib.nullcontext(
            {
                split: [
                    Record(
                        scene_name(split, index),
                        height * width,  # PNG files have about a byte per pixel
                        functools.partial(encode_scene, self._scenes, split, index),
                    )
                    for index in range(count)
                ]
                for split, count in zip(paint.SPLITS, self._scenes.num_images)
            }
        )


def encode_scene(scenes: SceneSet, split: str, index: int) -> dict[str, Any]:
    """Paints and encodes one scene, which depends on no other.

    Args:
        scenes: size and seed of the scenes.
        split: 'train', 'validation' or 'test'.
        index: index of the scene in its split.

    Returns:
        {'name': str, 'image': PNG bytes, 'label': PNG bytes of train ids, 255 = ignore}.
    """
    image, label = paint.paint_scene(scenes.scene_seed, split, index, scenes.image_size)
    return {
        'name': scene_name(split, index),
        'image': _png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)),
        'label': _png(label),
    }


def scene_name(split: str, index: int) -> str:
    """Returns the name of a scene, for example 'train_000012'.

    Args:
        split: split of the scene.
        index: index of the scene in its split.
    """
    return f'{split}_{index:06d}'


def build(data: ConfigDict) -> Dataset:
    """Builds the data set.

    Args:
        data: `config.data`; reads `image_size`, `num_images` and `data_dir`.

    Raises:
        InputError: a size or number that scenes cannot be painted with, or a `data_dir` that
            cannot be written.
    """
    scenes = SceneSet(_tuple(data.image_size), _tuple(data.num_images))
    builder = Builder(scenes, data_dir=str(prepare.data_directory(data.data_dir)))
    return Dataset(
        name='street_scenes',
        classes=classes.CLASSES,
        colors=classes.COLORS,
        sources=prepare.prepared_sources(builder),
        decoder=FileDecoder(identity_label_map(len(classes.CLASSES), classes.IGNORE)),
        identity=builder.info.full_name,
        categories=classes.CATEGORIES,
    )


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode('.png', pixels)[1].tobytes()


def _tuple(value: Any) -> Any:
    """Lists become tuples; anything else stays as it is, for the message that refuses it."""
    return tuple(value) if isinstance(value, list | tuple) else value


def _integers(values: Any, count: int) -> bool:
    """Whether the value is a tuple of so many integers."""
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(isinstance(n, int) and not isinstance(n, bool) for n in values)
    )


DATASETS = {'street_scenes': build}
