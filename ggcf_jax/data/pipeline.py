"""Batches for training and evaluation.

The training stream is a pure function of (seed, step). The augmentation of the n-th drawn sample is
keyed by n before the samples are sharded over processes: any number of processes sees the same
global batches, and a run resumes at any step from the step number alone.
"""

import dataclasses
import os
import sys
import threading
from collections.abc import Generator

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Int, Int32

from ggcf_jax.data.class_uniform import ClassIndex
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset, Records
from ggcf_jax.data.records.decoded import DecodedRecords
from ggcf_jax.data.transforms import TrainTransform, pad_to
from ggcf_jax.errors import InputError

Batch = dict[str, np.ndarray]  # also the samples that a batch is stacked from


@dataclasses.dataclass(frozen=True)
class Shard:
    """This process's share of the global batches: every `count`-th sample from `index` on.

    Attributes:
        index: index of this process, from 0.
        count: number of processes.
    """

    index: int = 0
    count: int = 1

    def local_batch_size(self, batch_size: int) -> int:
        """Returns the number of samples in this process's part of a batch.

        Args:
            batch_size: number of samples in a global batch.

        Raises:
            InputError: the processes cannot share the batch equally.
        """
        if batch_size % self.count:
            raise InputError(
                f'batch size {batch_size} is not divisible by the {self.count} processes'
            )
        return batch_size // self.count


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """Threads and worker processes that load the samples of one process.

    Attributes:
        threads: number of decoding threads, in each worker process if there are any.
        workers: number of worker processes; 0 decodes in this process, which is enough for few
            cores.
        buffer: number of batches kept ready, by each worker process if there are any; at least
            one per thread.
        niceness: how much the threads give way to others of the process, 0 to 19 (`setpriority`;
            Linux only). For devices that are the same cores: whatever takes one of them for a
            moment is waited for by all devices.
    """

    threads: int = 4
    workers: int = 0
    buffer: int = 4
    niceness: int = 0

    def iterate(self, batches: grain.MapDataset) -> Generator[Batch, None, None]:
        """Iterates over a grain data set of batches.

        Args:
            batches: data set whose elements are batches.

        Yields:
            Its batches, in order. Closing the iterator ends the threads and worker processes.
        """
        # OpenCV's own threads would compete with those here, which work on whole images.
        cv2.setNumThreads(1)
        # grain buffers 500 whole batches unless told otherwise; a thread works on a batch of its
        # own, so that fewer than threads would leave some idle.
        buffer = max(self.buffer, self.threads)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=buffer)
        if self.niceness and sys.platform == 'linux':  # elsewhere it is that of the whole process
            batches = batches.map(_GivingWay(self.niceness))
        dataset = batches.to_iter_dataset(options)
        if self.workers:
            if not flags.FLAGS.is_parsed():  # grain reads flags of its own; notebooks parse none
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self.workers, per_worker_buffer_size=self.buffer
                )
            )
        iterator = iter(dataset)
        try:
            for batch in iterator:
                if self.workers:
                    # Batches of workers lie in shared memory, which is only freed while the
                    # interpreter is whole: one that lives until its end would be leaked.
                    batch = {name: np.array(x) for name, x in batch.items()}
                yield batch
        finally:
            iterator.close()


@dataclasses.dataclass(frozen=True)
class _GivingWay:
    """Lowers the priority of the thread that makes a batch, from its first one on."""

    niceness: int

    def __call__(self, batch: Batch) -> Batch:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self.niceness)
        return batch


@dataclasses.dataclass(frozen=True)
class _TrainSample:
    """(part, index) of a draw -> augmented sample. A class, since worker processes pickle it.

    Attributes:
        records: records of each part of the mixture.
        indices: class index of each part; None to draw no sample by class.
        class_uniform: share of the samples that are drawn by class.
        transform: augmentation.
    """

    records: DecodedRecords
    indices: tuple[ClassIndex, ...] | None
    class_uniform: float
    transform: TrainTransform

    def __call__(self, draw: tuple[int, int], rng: np.random.Generator) -> Batch:
        part, index = draw
        around = None
        if self.indices and rng.random() < self.class_uniform:
            index, around = self.indices[part].draw(rng)
        example = self.records.open(part, index)
        image, label = self.transform(example['image'], example['label'], rng, around)
        return {'image': image, 'label': label}


def train_batches(
    parts: tuple[Records, ...],
    weights: tuple[float, ...],
    transform: TrainTransform,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    shard: Shard = Shard(),
    loader: LoaderOptions = LoaderOptions(),
    class_uniform: float = 0.0,
    indices: tuple[ClassIndex, ...] | None = None,
    cache: int = 0,
) -> Generator[Batch, None, None]:
    """Draws endless training batches; each part is shuffled anew in every epoch of its own.

    Args:
        parts: records of each part of the mixture.
        weights: relative share of the draws of each part.
        transform: augmentation, to one common size.
        seed: seed of shuffling and augmentation.
        batch_size: number of samples in a global batch.
        start_step: number of batches to skip, which are not computed.
        shard: this process's share of each batch.
        loader: threads and worker processes that make the samples.
        class_uniform: share of the samples that are drawn by class.
        indices: class index of each part; needed if `class_uniform` is not 0.
        cache: bytes of decoded records that this process, or each of its workers, keeps in memory.

    Yields:
        {'image': uint8 [b, h, w, 3] RGB, 'label': uint8 [b, h, w], train ids} with
        b = batch_size / number of processes.

    Raises:
        InputError: the processes cannot share the batch equally.
    """
    if class_uniform and indices is None:
        raise ValueError(f'class_uniform={class_uniform} needs the class index of each part')
    local = shard.local_batch_size(batch_size)
    stream = draws(tuple(map(len, parts)), weights, seed=seed)
    sample = _TrainSample(
        DecodedRecords(parts, cache), indices if class_uniform else None, class_uniform, transform
    )
    # random_map comes before the slice: after it, processes would draw the same augmentations.
    stream = stream.random_map(sample)[shard.index :: shard.count]
    return loader.iterate(stream.batch(local, drop_remainder=True)[start_step:])


def draws(counts: tuple[int, ...], weights: tuple[float, ...], *, seed: int) -> grain.MapDataset:
    """The endless order in which records are drawn: (part, index in it), the same on every host.

    Args:
        counts: number of records of each part.
        weights: relative share of the draws of each part.
        seed: seed of shuffling.
    """
    streams = [
        grain.MapDataset.source(_Draws(i, count)).seed(seed + i).shuffle().repeat()
        for i, count in enumerate(counts)
    ]
    if len(streams) == 1:
        return streams[0]
    return grain.MapDataset.mix(streams, weights=weights).seed(seed)


@dataclasses.dataclass(frozen=True)
class _Draws:
    """Indices of the records of a part, which are read when samples are made of them.

    Attributes:
        part: index of the part in the mixture.
        count: number of records.
    """

    part: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.part, index


@dataclasses.dataclass(frozen=True)
class EvaluationBatches:
    """Which records of a split form which batch, and the size that its images are padded to.

    Images of different sizes are grouped under few padded sizes, each of which costs one
    compilation. Every group is filled up to full global batches with padding entries.

    Attributes:
        dataset: data set that the records belong to.
        split: split that is evaluated.
        sizes: padded (height, width) of each global batch, in pixels.
        indices: record index of each batch entry; -1 for a padding entry.
    """

    dataset: Dataset
    split: str
    sizes: tuple[tuple[int, int], ...]
    indices: Int32[np.ndarray, 'batches batch_size']

    def __len__(self) -> int:
        return len(self.sizes)

    def select(self, batches: Int[np.ndarray, ' n']) -> 'EvaluationBatches':
        """Returns some of the batches.

        Args:
            batches: indices of the batches to keep.
        """
        sizes = tuple(self.sizes[i] for i in batches)
        return dataclasses.replace(self, sizes=sizes, indices=self.indices[batches])

    def load(
        self, *, shard: Shard = Shard(), loader: LoaderOptions = LoaderOptions()
    ) -> Generator[Batch, None, None]:
        """Loads the batches: every image exactly once, at its own size, padded.

        All processes take the same number of steps, at the same sizes.

        Args:
            shard: this process's share of each batch.
            loader: threads and worker processes that decode the images.

        Yields:
            {'index': int32 [b], record index, -1 for a padding entry;
            'size': int32 [b, 2], height and width before padding, 0 for a padding entry;
            'image': uint8 [b, h, w, 3] RGB;
            'label': uint8 [b, h, w], train ids, `IGNORE` in the padding}
            with b = batch_size / number of processes.
        """
        local = shard.local_batch_size(self.indices.shape[1])
        samples = grain.MapDataset.range(self.indices.size).map(_EvaluationSample(self))
        return loader.iterate(samples[shard.index :: shard.count].batch(local, drop_remainder=True))


@dataclasses.dataclass(frozen=True)
class _EvaluationSample:
    """Position of a batch entry -> padded sample. A class, since worker processes pickle it."""

    batches: EvaluationBatches

    def __call__(self, position: int) -> Batch:
        batch, column = divmod(position, self.batches.indices.shape[1])
        index, size = int(self.batches.indices[batch, column]), self.batches.sizes[batch]
        if index < 0:
            image, label = np.zeros((*size, 3), np.uint8), np.full(size, IGNORE, np.uint8)
            height = width = 0
        else:
            dataset = self.batches.dataset
            example = dataset.decode(dataset.source(self.batches.split)[index])
            height, width = example['label'].shape
            image, label = pad_to(example['image'], example['label'], size)
        return {
            'index': np.array(index, np.int32),
            'size': np.array((height, width), np.int32),
            'image': image,
            'label': label,
        }


def evaluation_batches(
    dataset: Dataset, split: str, *, multiple: int, max_sizes: int, batch_size: int
) -> EvaluationBatches:
    """Assigns the records of a split to batches, by the sizes of their labels.

    Args:
        dataset: data set to evaluate on.
        split: split of the data set.
        multiple: padded sides are multiples of this many pixels.
        max_sizes: maximum number of padded sizes; the pair that adds the least padding is merged
            first.
        batch_size: number of images in a global batch.

    Raises:
        InputError: no such split, one without images, or a label whose size cannot be read.
    """
    source = dataset.source(split)
    if not len(source):
        raise InputError(
            f'split {split!r} of data set {dataset.name!r} has no images; there is nothing to '
            'evaluate on'
        )
    records = (source[i] for i in range(len(source)))
    sizes = np.array([dataset.label_size(record) for record in records]).reshape(-1, 2)
    groups = merge_sizes(-(-sizes // multiple) * multiple, max_sizes)
    batches: list[np.ndarray] = []
    padded: list[tuple[int, int]] = []
    for size, members in sorted(groups.items()):
        filled = np.full(-(-len(members) // batch_size) * batch_size, -1, np.int32)
        filled[: len(members)] = members
        batches.append(filled.reshape(-1, batch_size))
        padded += [size] * len(batches[-1])
    return EvaluationBatches(dataset, split, tuple(padded), np.concatenate(batches))


def merge_sizes(sizes: Int[np.ndarray, 'n 2'], max_sizes: int) -> dict[tuple[int, int], list[int]]:
    """Groups images by size, merging sizes until there are few enough.

    Two sizes merge into the smallest one that holds both; the pair that adds the least padding,
    over all its images, is merged first.

    Args:
        sizes: (height, width) of each image, in pixels.
        max_sizes: maximum number of sizes.

    Returns:
        (height, width) -> indices of its images, ascending.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(sizes.tolist()):
        groups.setdefault((height, width), []).append(index)
    while len(groups) > max_sizes:
        known = sorted(groups)
        shapes = np.array(known)
        counts = np.array([len(groups[size]) for size in known])
        pixels = counts * shapes.prod(1)
        merged = np.maximum(shapes[:, None], shapes[None])
        added = merged.prod(-1) * (counts[:, None] + counts) - pixels[:, None] - pixels
        added[np.tril_indices(len(known))] = np.iinfo(added.dtype).max
        i, j = np.unravel_index(added.argmin(), added.shape)
        members = groups.pop(known[i]) + groups.pop(known[j])
        height, width = merged[i, j].tolist()
        groups[height, width] = sorted(groups.get((height, width), []) + members)
    return groups
