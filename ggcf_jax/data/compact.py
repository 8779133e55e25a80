"""A copy of training records that decodes several times faster, for few cores an accelerator.

Images become JPEG of quality 92 without chroma subsampling, which is visually lossless (the error
is in docs/data.md); labels become `codec.encode_compact` of train ids: exact. Evaluation always
reads the originals.
"""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds

from ggcf_jax.data import codec, prepare
from ggcf_jax.data.builder import Record, RecordBuilder
from ggcf_jax.data.codec import IGNORE
from ggcf_jax.data.dataset import Dataset, identity_label_map

JPEG = (
    cv2.IMWRITE_JPEG_QUALITY,
    92,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)

_SAMPLES = 8  # records that the size of all is estimated from


def encode(image: np.ndarray, label: np.ndarray) -> tuple[bytes, bytes]:
    """Encodes an image [h, w, 3] RGB and a label [h, w]."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.jpg', bgr, JPEG)[1].tobytes(), codec.encode_compact(label)


class Builder(RecordBuilder, skip_registration=True):
    """TFDS builder of the copy of one split; its config is named after what it was made from."""

    name = 'ggcf_jax_compact'
    VERSION = tfds.core.Version('1.1.0')

    def __init__(self, dataset: Dataset, split: str, data_dir: str, threads: int):
        self._dataset, self._split, self.threads = dataset, split, threads
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
                    'label': tfds.features.Scalar(np.object_),  # codec.encode_compact
                }
            ),
        )

    def records(self):
        count = len(self._dataset.source(self._split))
        some = [self._convert(i) for i in range(0, count, max(1, count // _SAMPLES))]
        size = sum(len(r['image']) + len(r['label']) for r in some) // max(1, len(some))
        # Names may repeat; the index makes the key.
        records = [
            Record(f'{i:09d}', size, functools.partial(self._convert, i)) for i in range(count)
        ]
        return contextlib.nullcontext({self._split: records})

    def _convert(self, index: int) -> dict:
        example = self._dataset.decode(self._dataset.source(self._split)[index])
        image, label = encode(example['image'], example['label'])
        return {'name': example['name'], 'image': image, 'label': label}


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
