"""A copy of training records that decodes several times faster, for few cores an accelerator.

Images become tiles of JPEG (`tiles`), which is visually lossless (the error is in docs/data.md) and
lets a crop decode only what it shows; labels become train ids under Zstandard: exact. Evaluation
always reads the originals.
"""

import contextlib
import functools
import hashlib
import pathlib
import struct
from collections.abc import Mapping, Sequence

import imagecodecs
import numpy as np
import tensorflow_datasets as tfds

from ggcf_jax.data.records import jpeg_tiles, prepare
from ggcf_jax.data.records.builder import Record, RecordBuilder
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset, identity_label_map
from ggcf_jax.errors import InputError

_SAMPLES = 8  # records that the size of all is estimated from
_SIZE = struct.Struct('<II')
_LEVEL = 9  # of Zstandard: smaller than the default, and as fast to decode


def encode_label(label: np.ndarray) -> bytes:
    """Encodes train ids, uint8 [h, w]: height, width and the pixels under Zstandard."""
    return imagecodecs.zstd_encode(_SIZE.pack(*label.shape) + label.tobytes(), _LEVEL)


def decode_label(data: bytes, name: str) -> np.ndarray:
    """Decodes `encode_label`: uint8 [h, w], read-only.

    Raises:
        InputError: damaged bytes; `name` is in the message.
    """
    try:
        decoded = imagecodecs.zstd_decode(data)
        pixels = np.frombuffer(decoded, np.uint8, offset=_SIZE.size)
        return pixels.reshape(_SIZE.unpack_from(decoded))
    except (imagecodecs.ZstdError, struct.error, ValueError) as error:
        raise InputError(f'{name}: the label cannot be decoded: {error}') from error


class CompactDataset(Dataset):
    """A data set whose records are those of `Builder`."""

    def open_image(self, record: Mapping) -> jpeg_tiles.TiledImage:
        return jpeg_tiles.TiledImage(record['image'], record['name'])

    def decode_label(self, record: Mapping) -> np.ndarray:
        # Train ids already; they were mapped and checked when the copy was made.
        return decode_label(record['label'], record['name'])


class Builder(RecordBuilder, skip_registration=True):
    """TFDS builder of the copy of one split; its config is named after what it was made from."""

    name = 'ggcf_jax_compact'
    VERSION = tfds.core.Version('2.0.0')  # grows with every change of `_convert` or its codecs

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
                    'image': tfds.features.Scalar(np.object_),  # tiles.encode
                    'label': tfds.features.Scalar(np.object_),  # encode_label
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
        return {
            'name': example['name'],
            'image': jpeg_tiles.encode(example['image']),
            'label': encode_label(example['label']),
        }


def dataset(
    dataset: Dataset, splits: Sequence[str], directory: pathlib.Path, threads: int
) -> CompactDataset:
    """The data set with only `splits`, in compact form; made on first use, with `threads`.

    Raises:
        InputError: a record that cannot be decoded, or a `directory` that cannot be written.
    """
    sources = {}
    for split in splits:
        builder = Builder(dataset, split, str(directory), threads)
        sources |= prepare.prepared_sources(builder)
    changes = {
        'sources': sources,
        'label_map': identity_label_map(dataset.num_classes, IGNORE),
        'identity': f'{dataset.identity} compact',
    }
    return CompactDataset(**(vars(dataset) | changes))
