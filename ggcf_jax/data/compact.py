"""A copy of training records that decodes several times faster, for few cores an accelerator.

Images become JPEG of quality 95 without chroma subsampling, which is visually lossless (the error
is in docs/data.md); labels become PNG files of train ids, exact, compressed for speed. Evaluation
always reads the originals.
"""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import tensorflow_datasets as tfds

from ggcf_jax.data import prepare
from ggcf_jax.data.codec import IGNORE
from ggcf_jax.data.dataset import Dataset, identity_label_map

JPEG = (
    cv2.IMWRITE_JPEG_QUALITY,
    95,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)
PNG = (
    cv2.IMWRITE_PNG_COMPRESSION,
    1,
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_RLE,
)


def encode(image: np.ndarray, label: np.ndarray) -> tuple[bytes, bytes]:
    """Encodes an image [h, w, 3] RGB as JPEG and a label [h, w] as PNG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return (
        cv2.imencode('.jpg', bgr, JPEG)[1].tobytes(),
        cv2.imencode('.png', label, PNG)[1].tobytes(),
    )


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder of the copy of one split; its config is named after what it was made from."""

    name = 'ggcf_jax_compact'
    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, dataset: Dataset, split: str, data_dir: str, threads: int):
        self._dataset, self._split, self._threads = dataset, split, threads
        identity = f'{dataset.identity} {split} {len(dataset.source(split))}'
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        config = tfds.core.BuilderConfig(name=f'{dataset.name}-{split}-{digest}')
        super().__init__(data_dir=data_dir, config=config)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    'name': tfds.features.Text(),
                    'image': tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg'),
                    'label': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {self._split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        source = self._dataset.source(self._split)

        def convert(index: int) -> tuple[str, dict]:
            example = self._dataset.decode(source[index])
            image, label = encode(example['image'], example['label'])
            # Names may repeat; the index makes the key.
            return f'{index:09d}', {'name': example['name'], 'image': image, 'label': label}

        indices = iter(range(len(source)))
        with ThreadPoolExecutor(self._threads) as pool:
            # Some at a time: the pool would take in the whole split and hold all results.
            while chunk := list(itertools.islice(indices, 4 * self._threads)):
                yield from pool.map(convert, chunk)


def dataset(
    dataset: Dataset, splits: Sequence[str], directory: pathlib.Path, threads: int
) -> Dataset:
    """The data set with only `splits`, in compact form; made on first use, with `threads`.

    Raises:
        InputError: a record that cannot be decoded, or a `directory` that cannot be written.
    """
    sources = {}
    for split in splits:
        builder = Builder(dataset, split, str(directory), threads)
        sources |= prepare.prepared_sources(builder)
    return dataclasses.replace(
        dataset,
        sources=sources,
        label_map=identity_label_map(dataset.num_classes, IGNORE),
        identity=f'{dataset.identity} compact',
    )
