"""Batches for training and evaluation.

The training stream is a pure function of (seed, step): the augmentation of the n-th drawn sample
is keyed by n before the stream is dealt to processes, so any number of processes sees the same
global batches, and a run resumes at any step from the integer alone.
"""

import dataclasses
from collections.abc import Callable, Iterator

import grain
import numpy as np

from ggcf_jax.data.dataset import Dataset
from ggcf_jax.data.transforms import pad_to
from ggcf_jax.errors import InputError

Batch = dict[str, np.ndarray]
Transform = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Shard:
    """This process's share of the global batches."""

    index: int = 0
    count: int = 1

    def local(self, batch_size: int) -> int:
        if batch_size % self.count:
            raise InputError(
                f'batch size {batch_size} is not divisible by the {self.count} processes'
            )
        return batch_size // self.count


def train_batches(
    dataset: Dataset,
    split: str,
    transform: Transform,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    shard: Shard = Shard(),
    threads: int = 4,
    buffer: int = 4,
) -> Iterator[Batch]:
    """Endless training batches, shuffled anew every epoch.

    Args:
        transform: augmentation to one common size.
        batch_size: over all processes; each gets every `shard.count`-th sample.
        start_step: number of batches to leave out (they are not computed).
        threads: decoding threads. buffer: batches kept ready.

    Yields:
        {'image': uint8 [b, h, w, 3], 'label': uint8 [b, h, w]} with b = batch_size / processes.
    """

    def sample(record: dict, rng: np.random.Generator) -> Batch:
        example = dataset.decode(record)
        image, label = transform(example['image'], example['label'], rng)
        return {'image': image, 'label': label}

    stream = grain.MapDataset.source(dataset.source(split)).seed(seed).shuffle().repeat()
    # random_map before the slice: after it, processes would draw the same augmentations.
    stream = stream.random_map(sample)[shard.index :: shard.count]
    stream = stream.batch(shard.local(batch_size), drop_remainder=True)[start_step:]
    # grain buffers 500 whole batches unless told otherwise.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    return iter(stream.to_iter_dataset(options))


def evaluation_batches(
    dataset: Dataset,
    split: str,
    image_size: tuple[int, int],
    *,
    batch_size: int,
    shard: Shard = Shard(),
    threads: int = 4,
    buffer: int = 4,
) -> Iterator[Batch]:
    """Every image of `split` exactly once, in order.

    The index range is padded to whole global batches, so that all processes take the same number
    of steps; padding repeats the last record with `valid` False.

    Args:
        image_size: (h, w) that smaller images are padded to (mean colour, ignore label).

    Yields:
        {'index': int32 [b], 'valid': bool [b], 'image': uint8 [b, h, w, 3], 'label': uint8
        [b, h, w]}; labels of padding are all ignore.

    Raises:
        InputError: an image larger than `image_size`.
    """
    source = dataset.source(split)
    total = num_evaluation_batches(dataset, split, batch_size) * batch_size

    def sample(index: int) -> Batch:
        example = dataset.decode(source[min(index, len(source) - 1)])
        height, width = example['label'].shape
        if height > image_size[0] or width > image_size[1]:
            raise InputError(
                f'{example["name"]}: the image is {height} x {width}, larger than '
                f'config.eval.image_size={tuple(image_size)}; raise that'
            )
        image, label = pad_to(example['image'], example['label'], image_size)
        valid = index < len(source)
        return {
            'index': np.int32(index),
            'valid': np.bool_(valid),
            'image': image,
            'label': label if valid else np.full_like(label, 255),
        }

    stream = grain.MapDataset.range(total).map(sample)[shard.index :: shard.count]
    stream = stream.batch(shard.local(batch_size), drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    return iter(stream.to_iter_dataset(options))


def num_evaluation_batches(dataset: Dataset, split: str, batch_size: int) -> int:
    """Number of global batches of `evaluation_batches`."""
    return -(-len(dataset.source(split)) // batch_size)
