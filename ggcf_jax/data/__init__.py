"""Data sets and the input pipeline: what a configuration gives to training and evaluation.

The way of a record: `pipeline` draws it from the splits that `mixture` names, a source in
`records.dataset` reads its bytes, `records.codec` decodes them, `transforms` augments the sample,
and `pipeline` stacks the samples of a batch.
"""

import dataclasses
from collections.abc import Generator

from ml_collections import ConfigDict

from ggcf_jax import places, registry
from ggcf_jax.data import (
    class_uniform,
    class_weights,
    datasets,
    mixture,
    pipeline,
    selection,
)
from ggcf_jax.data.records import compact, depth, prepare
from ggcf_jax.data.records.codec import FileDecoder
from ggcf_jax.data.records.dataset import Dataset, Records
from ggcf_jax.data.transforms import TrainTransform
from ggcf_jax.errors import InputError

# Choices of `config.data.storage`.
STORAGES = ('original', 'compact')


def build(data: ConfigDict) -> Dataset:
    """Builds the data set of a configuration.

    Args:
        data: `config.data`. `name` is that of a data set in `data/datasets/`, or
            `my_package.my_module:build` for a `DatasetBuilder` outside this repository; the data
            set reads other fields. `image_bits` holds for every data set of image files.

    Raises:
        InputError: an unknown name, or something that the data set finds wrong with its fields or
            files.
    """
    builder = registry.find(datasets, 'DATASETS', data.name, 'config.data.name')
    dataset = builder(data)
    if not isinstance(dataset, Dataset):
        raise InputError(
            f'config.data.name={data.name!r} returns {type(dataset).__name__}; it must return a '
            'ggcf_jax.data.records.dataset.Dataset'
        )
    bits = data.get('image_bits', depth.FULL)
    if bits == depth.FULL or not isinstance(dataset.decoder, FileDecoder):
        return dataset
    return dataclasses.replace(
        dataset,
        decoder=dataclasses.replace(dataset.decoder, image_bits=bits),
        identity=f'{dataset.identity} of {bits} bits',
    )


def training_batches(
    config: ConfigDict,
    dataset: Dataset,
    start_step: int,
    shard: pipeline.Shard,
    *,
    niceness: int = 0,
) -> Generator[pipeline.Batch, None, None]:
    """Builds the training stream.

    On first use this writes the compact copy and the class index, if the configuration wants them.

    Args:
        config: configuration; reads `data`, `seed` and `train.batch_size`.
        dataset: data set to train on.
        start_step: number of batches to skip, which are not computed.
        shard: this process's share of each batch.
        niceness: how much the threads give way to others, see `pipeline.LoaderOptions`.

    Returns:
        Endless batches, see `pipeline.train_batches`; `close()` ends its threads.

    Raises:
        InputError: a split that cannot be trained on, an unknown storage, or a record that cannot
            be decoded.
    """
    data = config.data
    registry.check(data.storage, STORAGES, 'config.data.storage')
    parts = mixture.parse(data.train_split)
    records = mixture.records(dataset, parts)
    if data.storage == 'compact':
        directory = prepare.data_directory(data.data_dir)
        copy = compact.dataset(dataset, _splits(parts), directory=directory, threads=data.threads)
        records = mixture.records(copy, parts)
    weights = tuple(part.weight for part in parts)
    _copy_needed(config, records, weights, start_step, shard)
    indices = None
    if data.class_uniform:
        directory = prepare.data_directory(data.data_dir)
        indices = tuple(class_uniform.load_or_build(r, directory, data.threads) for r in records)
    transform = TrainTransform(
        crop_size=tuple(data.crop_size),
        scale_range=tuple(data.scale_range),
        scale_step=data.scale_step,
        aspect_jitter=data.aspect_jitter,
        max_class_share=data.max_class_share,
        photometric=data.photometric,
    )
    return pipeline.train_batches(
        records,
        weights,
        transform,
        seed=config.seed,
        batch_size=config.train.batch_size,
        start_step=start_step,
        shard=shard,
        loader=loader_options(data, niceness=niceness),
        class_uniform=data.class_uniform,
        indices=indices,
        cache=data.cache_mib * 2**20,
    )


def _copy_needed(
    config: ConfigDict,
    records: tuple[Records, ...],
    weights: tuple[float, ...],
    start_step: int,
    shard: pipeline.Shard,
) -> None:
    """Copies the files that this host draws records from, where the data are in a bucket."""
    files = [part.shards() for part in records]
    if not all(files):
        return
    numbers = selection.of_training(
        tuple(tuple(n for split in part for n in split.lengths) for part in files),
        weights,
        seed=config.seed,
        batch_size=config.train.batch_size,
        steps=range(start_step, config.train.steps),
        shard=shard,
    )
    for part, needed in zip(files, numbers):
        first = 0
        for split in part:
            count = len(split.names)
            inside = [i - first for i in sorted(needed) if first <= i < first + count]
            # Samples that are drawn by class come from anywhere.
            split.ensure(None if config.data.class_uniform else inside)
            first += count


def _splits(parts: tuple[mixture.Part, ...]) -> list[str]:
    """Names of the splits of a mixture, sorted."""
    return sorted({split for part in parts for split in part.splits})


def class_weights_of(config: ConfigDict, dataset: Dataset) -> tuple[float, ...]:
    """Returns the weight of each class in the loss, or () for none.

    Args:
        config: configuration; reads `train.class_weights` and `data`.
        dataset: data set that is trained on.

    Raises:
        InputError: neither a name nor one number per class.
    """
    data = config.data
    records = mixture.records(dataset, mixture.parse(data.train_split))
    return class_weights.resolve(config.train.class_weights, records, data.data_dir, data.threads)


def check_writable(config: ConfigDict, dataset: Dataset) -> None:
    """Refuses a data directory that cannot be written, where training would write into it.

    That is on first use of the compact copy, the class index and the counts for class weights.

    Args:
        config: configuration; reads `data` and `train.class_weights`.
        dataset: data set to train on.

    Raises:
        InputError: the directory cannot be written, or a split cannot be trained on.
    """
    data = config.data
    parts = mixture.parse(data.train_split)
    records = mixture.records(dataset, parts)
    counted = config.train.class_weights == class_weights.COUNTED
    if not (counted or data.class_uniform or data.storage == 'compact'):
        return
    directory = prepare.data_directory(data.data_dir)
    made = [class_weights.counts_file(records, directory)] if counted else []
    if data.storage == 'compact':
        made += compact.folders(dataset, _splits(parts), directory)
        dataset = dataclasses.replace(dataset, identity=compact.identity(dataset))
        records = mixture.records(dataset, parts)
    if data.class_uniform:
        made += [class_uniform.index_file(each, directory) for each in records]
    if not all(path.exists() for path in made):
        places.check_writable(directory, prepare.FIELD)


def loader_options(data: ConfigDict, *, niceness: int = 0) -> pipeline.LoaderOptions:
    """Threads and worker processes that load images.

    Args:
        data: `config.data`; reads `threads` and `workers`.
        niceness: how much they give way to others, see `pipeline.LoaderOptions`.
    """
    return pipeline.LoaderOptions(data.threads, data.workers, niceness=niceness)


def evaluation_batches(
    config: ConfigDict, dataset: Dataset, split: str
) -> pipeline.EvaluationBatches:
    """Assigns the images of a split to batches; `EvaluationBatches.load` loads them.

    Args:
        config: configuration; reads `eval.size_multiple`, `eval.max_sizes` and `eval.batch_size`.
        dataset: data set to evaluate on.
        split: split of the data set.

    Raises:
        InputError: no such split, or a label whose size cannot be read.
    """
    for files in Records(dataset, (split,)).shards():
        files.ensure()  # all at once: the sizes of all images are asked for
    return pipeline.evaluation_batches(
        dataset,
        split,
        multiple=config.eval.size_multiple,
        max_sizes=config.eval.max_sizes,
        batch_size=config.eval.batch_size,
    )
