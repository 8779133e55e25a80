"""Batches for training and evaluation.

The training stream is a pure function of (seed, step): the augmentation of the n-th drawn sample
is keyed by n before the stream is dealt to processes, so any number of processes sees the same
global batches, and a run resumes at any step from the integer alone.
"""

import dataclasses
from collections.abc import Iterator

import cv2
import grain
import numpy as np
from absl import flags

from ggcf_jax.data import mixture
from ggcf_jax.data.class_uniform import ClassIndex
from ggcf_jax.data.records.codec import IGNORE, label_size
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.data.transforms import TrainTransform, pad_to
from ggcf_jax.errors import InputError

Batch = dict[str, np.ndarray]


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


@dataclasses.dataclass(frozen=True)
class Reading:
    """How many hands work on the samples of one process.

    Attributes:
        threads: decoding threads, of each worker if there are any.
        workers: processes that decode; 0 decodes in this one, which is enough for few cores.
        buffer: batches kept ready, by each worker if there are any; at least one a thread.
    """

    threads: int = 4
    workers: int = 0
    buffer: int = 4

    def start(self, stream: grain.MapDataset) -> Iterator[Batch]:
        """Iterates over a data set of batches; closing the iterator ends threads and workers."""
        # OpenCV's own threads would compete with those here, which work on whole images.
        cv2.setNumThreads(1)
        # grain buffers 500 whole batches unless told otherwise; a thread works on a batch of its
        # own, so that fewer than threads would leave some idle.
        buffer = max(self.buffer, self.threads)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=buffer)
        dataset = stream.to_iter_dataset(options)
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
            yield from iterator
        finally:
            iterator.close()


@dataclasses.dataclass(frozen=True)
class _TrainSample:
    """(part, index) of a draw -> augmented sample. A class, since worker processes pickle it."""

    parts: tuple[mixture.Records, ...]
    indices: tuple[ClassIndex, ...] | None
    class_uniform: float
    transform: TrainTransform

    def __call__(self, draw: tuple[int, int], rng: np.random.Generator) -> Batch:
        part, index = draw
        around = None
        if self.indices and rng.random() < self.class_uniform:
            index, around = self.indices[part].draw(rng)
        records = self.parts[part]
        example = records.dataset.open(records[index])
        image, label = self.transform(example['image'], example['label'], rng, around)
        return {'image': image, 'label': label}


def train_batches(
    parts: tuple[mixture.Records, ...],
    weights: tuple[float, ...],
    transform: TrainTransform,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    shard: Shard = Shard(),
    reading: Reading = Reading(),
    class_uniform: float = 0.0,
    indices: tuple[ClassIndex, ...] | None = None,
) -> Iterator[Batch]:
    """Endless training batches; each part is shuffled anew every epoch of its own.

    Args:
        parts: what is drawn from. weights: share of the draws for each part.
        transform: augmentation to one common size.
        batch_size: over all processes; each gets every `shard.count`-th sample.
        start_step: number of batches to leave out (they are not computed).
        class_uniform: share of the samples drawn by class from `indices`, one index a part.

    Yields:
        {'image': uint8 [b, h, w, 3], 'label': uint8 [b, h, w]} with b = batch_size / processes.
    """
    if class_uniform and indices is None:
        raise ValueError(f'class_uniform={class_uniform} needs the class index of each part')
    local = shard.local(batch_size)
    streams = [
        grain.MapDataset.source(_Draws(i, len(part))).seed(seed + i).shuffle().repeat()
        for i, part in enumerate(parts)
    ]
    stream = streams[0]
    if len(parts) > 1:
        stream = grain.MapDataset.mix(streams, weights=weights).seed(seed)
    sample = _TrainSample(parts, indices if class_uniform else None, class_uniform, transform)
    # random_map before the slice: after it, processes would draw the same augmentations.
    stream = stream.random_map(sample)[shard.index :: shard.count]
    return reading.start(stream.batch(local, drop_remainder=True)[start_step:])


@dataclasses.dataclass(frozen=True)
class _Draws:
    """The indices of a part; records are read when a draw is made into a sample."""

    part: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.part, index


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """Which images of a split go into which batch, and at what padded size.

    Images of different sizes are grouped under few padded sizes, each of which costs one
    compilation. Every group is filled up to whole global batches with places that hold nothing.

    Attributes:
        sizes: padded (h, w) of each global batch.
        indices: int32 [batches, batch_size], records; -1 for a place that holds nothing.
    """

    sizes: tuple[tuple[int, int], ...]
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)


def plan_evaluation(
    dataset: Dataset, split: str, *, multiple: int, max_sizes: int, batch_size: int
) -> EvaluationPlan:
    """Reads the size of every label of `split` (not its pixels) and plans the batches.

    Args:
        multiple: padded sides are multiples of this many pixels.
        max_sizes: at most so many padded sizes: those whose union adds least padding are united.
        batch_size: images a global batch.
    """
    source = dataset.source(split)
    records = (source[i] for i in range(len(source)))
    sizes = np.array([label_size(r['label'], r['name']) for r in records]).reshape(-1, 2)
    groups = unite(-(-sizes // multiple) * multiple, max_sizes)
    batches, padded = [], []
    for size, members in sorted(groups.items()):
        filled = np.full(-(-len(members) // batch_size) * batch_size, -1, np.int32)
        filled[: len(members)] = members
        batches.append(filled.reshape(-1, batch_size))
        padded += [size] * len(batches[-1])
    indices = np.concatenate(batches) if batches else np.zeros((0, batch_size), np.int32)
    return EvaluationPlan(tuple(padded), indices)


def unite(sizes: np.ndarray, most: int) -> dict[tuple[int, int], list[int]]:
    """Groups indices by size [n, 2], uniting sizes until there are at most `most`."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(sizes.tolist()):
        groups.setdefault((height, width), []).append(index)
    while len(groups) > most:
        shapes = np.array(sorted(groups))
        counts = np.array([len(groups[tuple(shape)]) for shape in shapes.tolist()])
        pixels = counts * shapes.prod(1)
        union = np.maximum(shapes[:, None], shapes[None])
        added = union.prod(-1) * (counts[:, None] + counts) - pixels[:, None] - pixels
        added[np.tril_indices(len(shapes))] = np.iinfo(added.dtype).max
        a, b = (tuple(shapes[i].tolist()) for i in np.unravel_index(added.argmin(), added.shape))
        united = tuple(np.maximum(a, b).tolist())
        members = groups.pop(a) + groups.pop(b)
        groups[united] = sorted(groups.get(united, []) + members)
    return groups


@dataclasses.dataclass(frozen=True)
class _EvaluationSample:
    dataset: Dataset
    split: str
    plan: EvaluationPlan

    def __call__(self, place: int) -> Batch:
        batch, column = divmod(place, self.plan.indices.shape[1])
        index, size = int(self.plan.indices[batch, column]), self.plan.sizes[batch]
        if index < 0:
            image, label = np.zeros((*size, 3), np.uint8), np.full(size, IGNORE, np.uint8)
            height = width = 0
        else:
            example = self.dataset.decode(self.dataset.source(self.split)[index])
            height, width = example['label'].shape
            image, label = pad_to(example['image'], example['label'], size)
        return {
            'index': np.int32(index),
            'size': np.array((height, width), np.int32),
            'image': image,
            'label': label,
        }


def evaluation_batches(
    dataset: Dataset,
    split: str,
    plan: EvaluationPlan,
    *,
    shard: Shard = Shard(),
    reading: Reading = Reading(),
) -> Iterator[Batch]:
    """Every image of `split` exactly once, at its own size, padded as planned.

    All processes take the same number of steps, at the same sizes.

    Yields:
        {'index': int32 [b], -1 for a place that holds nothing; 'size': int32 [b, 2], height and
        width before padding; 'image': uint8 [b, h, w, 3]; 'label': uint8 [b, h, w], ignore in
        the padding}.
    """
    local = shard.local(plan.indices.shape[1])
    stream = grain.MapDataset.range(plan.indices.size).map(_EvaluationSample(dataset, split, plan))
    return reading.start(stream[shard.index :: shard.count].batch(local, drop_remainder=True))
