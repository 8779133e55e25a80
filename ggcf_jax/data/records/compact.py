"""A copy of training records that decodes several times faster, for few CPU cores per accelerator.

Images become JPEG tiles (`jpeg_tiles`), which is visually lossless (docs/data.md has the error) and
lets a crop decode only what it shows. Labels become train ids compressed by Zstandard, without
loss. Evaluation always reads the originals.
"""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import imagecodecs
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from ggcf_jax.data.records import jpeg_tiles, prepare
from ggcf_jax.data.records.builder import Record, RecordBuilder, Splits
from ggcf_jax.data.records.dataset import Dataset, RecordSource
from ggcf_jax.errors import InputError

_SAMPLES = 8  # number of records that the size of the copy is estimated from
_SIZE = struct.Struct('<II')
_LEVEL = 9  # Zstandard level: smaller files than by default, as fast to decode


def encode_label(label: UInt8[np.ndarray, 'h w']) -> bytes:
    """Encodes height, width and pixels of a label with Zstandard.

    Args:
        label: train ids.
    """
    return bytes(imagecodecs.zstd_encode(_SIZE.pack(*label.shape) + label.tobytes(), _LEVEL))


def decode_label(data: bytes, name: str) -> UInt8[np.ndarray, 'h w']:
    """Decodes a label to train ids, as a read-only array.

    Args:
        data: a label as `encode_label` writes it.
        name: name of the label, for error messages.

    Raises:
        InputError: the bytes are damaged.
    """
    try:
        decoded = imagecodecs.zstd_decode(data)
        pixels = np.frombuffer(decoded, np.uint8, offset=_SIZE.size)
        return pixels.reshape(_SIZE.unpack_from(decoded))
    except (imagecodecs.ZstdError, struct.error, ValueError) as error:
        raise InputError(f'{name}: the label cannot be decoded: {error}') from error


class CompactDecoder:
    """Decodes the records of `Builder`. Labels were mapped and checked when they were written."""

    def image(self, data: bytes, name: str) -> jpeg_tiles.TiledImage:
        """Opens an image, of which windows can be decoded."""
        return jpeg_tiles.TiledImage(data, name)

    def label(self, data: bytes, name: str) -> UInt8[np.ndarray, 'h w']:
        """Decodes a label to train ids."""
        return decode_label(data, name)

    def label_size(self, data: bytes, name: str) -> tuple[int, int]:
        """Decodes a label for its (height, width)."""
        height, width = decode_label(data, name).shape
        return height, width


class Builder(RecordBuilder):
    """TFDS builder of the copy of one split; its config is named after what it was made from."""

    name = 'ggcf_jax_compact'
    VERSION = tfds.core.Version('2.0.0')  # grows with every change of `_convert` or its codecs

    def __init__(self, dataset: Dataset, split: str, *, data_dir: str, threads: int):
        """Names the copy; nothing is read or written yet.

        Args:
            dataset: data set to copy from.
            split: split to copy.
            data_dir: folder of prepared data sets.
            threads: number of threads that convert records.
        """
        self._dataset, self._split, self.threads = dataset, split, threads
        identity = f'{dataset.identity_of(split)} {split} {len(dataset.source(split))}'
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        config = tfds.core.BuilderConfig(name=f'{dataset.name}-{split}-{digest}')
        super().__init__(data_dir=data_dir, config=config)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    'name': tfds.features.Text(),
                    'image': tfds.features.Scalar(np.object_),  # jpeg_tiles.encode
                    'label': tfds.features.Scalar(np.object_),  # encode_label
                }
            ),
        )

    def records(self) -> contextlib.AbstractContextManager[Splits]:
        """Lists the records, whose sizes are estimated from a few of them."""
        count = len(self._dataset.source(self._split))
        some = [self._convert(i) for i in range(0, count, max(1, count // _SAMPLES))]
        size = sum(len(r['image']) + len(r['label']) for r in some) // max(1, len(some))
        # Names of images may repeat; an index does not.
        records = [
            Record(f'{i:09d}', size, functools.partial(self._convert, i)) for i in range(count)
        ]
        return contextlib.nullcontext({self._split: records})

    def _convert(self, index: int) -> dict[str, Any]:
        """Reads a record of the original and encodes it."""
        example = self._dataset.decode(self._dataset.source(self._split)[index])
        return {
            'name': example['name'],
            'image': jpeg_tiles.encode(example['image']),
            'label': encode_label(example['label']),
        }


def dataset(
    original: Dataset, splits: Sequence[str], *, directory: pathlib.Path, threads: int
) -> Dataset:
    """Returns a data set in compact form, whose files are written on first use.

    Args:
        original: data set to copy from.
        splits: splits to copy; the copy has no others.
        directory: folder of prepared data sets.
        threads: number of threads that convert records.

    Raises:
        InputError: a record cannot be decoded, or `directory` cannot be written.
    """
    sources: dict[str, RecordSource] = {}
    for split in splits:
        builder = Builder(original, split, data_dir=str(directory), threads=threads)
        made_from = getattr(original.source(split), 'made_from', '')
        for name, source in prepare.prepared_sources(builder).items():
            sources[name] = dataclasses.replace(source, made_from=made_from)
    return dataclasses.replace(
        original,
        sources=sources,
        decoder=CompactDecoder(),
        identity=identity(original),
    )


def identity(original: Dataset) -> str:
    """Identity of the copy of a data set, whose sources are made from what those of it are."""
    return f'{original.identity} compact'


def folders(
    original: Dataset, splits: Sequence[str], directory: pathlib.Path
) -> list[pathlib.Path]:
    """The folder of each copy, made or not.

    Args:
        original: data set to copy from.
        splits: splits to copy.
        directory: folder of prepared data sets.
    """
    builders = (Builder(original, split, data_dir=str(directory), threads=1) for split in splits)
    return [pathlib.Path(builder.data_dir) for builder in builders]
