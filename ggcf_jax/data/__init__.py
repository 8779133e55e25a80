"""Data sets and the input pipeline."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from ggcf_jax import registry
from ggcf_jax.data import class_uniform, class_weights, datasets, mixture, pipeline
from ggcf_jax.data.records import compact, prepare
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.data.transforms import TrainTransform
from ggcf_jax.errors import InputError

STORAGES = ('original', 'compact')


def build(data) -> Dataset:
    """Builds the data set that `config.data.name` names.

    Raises:
        InputError: an unknown name, or whatever that data set finds wrong with `config.data`.
    """
    return registry.find(datasets, 'DATASETS', data.name, 'config.data.name')(data)


def training_batches(
    config, dataset: Dataset, start_step: int, shard: pipeline.Shard
) -> Iterator[pipeline.Batch]:
    """Builds the training stream of `config` (reads `data`, `seed` and `train.batch_size`).

    On first use this makes the compact form and the class index, if the configuration wants them.

    Raises:
        InputError: a split that cannot be trained on, a storage that does not exist, or a record
            that cannot be decoded.
    """
    data = config.data
    parts = mixture.parse(data.train_split)
    directory = prepare.data_directory(data.data_dir)
    records = mixture.records(dataset, parts)
    if data.storage not in STORAGES:
        raise InputError(
            f'config.data.storage={data.storage!r} is not one of {", ".join(STORAGES)}'
        )
    if data.storage == 'compact':
        splits = {split for part in parts for split in part.splits}
        dataset = compact.dataset(dataset, sorted(splits), directory, data.threads)
        records = mixture.records(dataset, parts)
    indices = None
    if data.class_uniform:
        indices = tuple(class_uniform.load_or_build(r, directory, data.threads) for r in records)
    return pipeline.train_batches(
        records,
        tuple(part.weight for part in parts),
        transform(data),
        seed=config.seed,
        batch_size=config.train.batch_size,
        start_step=start_step,
        shard=shard,
        loader=loader_options(data),
        class_uniform=data.class_uniform,
        indices=indices,
    )


def class_weights_of(config, dataset: Dataset) -> tuple[float, ...]:
    """One weight a class, or () for none, from `config.train.class_weights`.

    Raises:
        InputError: not a name or one number a class.
    """
    data = config.data
    records = mixture.records(dataset, mixture.parse(data.train_split))
    directory = prepare.data_directory(data.data_dir)
    return class_weights.resolve(config.train.class_weights, records, directory, data.threads)


def transform(data) -> TrainTransform:
    """The training augmentation of `config.data`."""
    return TrainTransform(
        crop_size=tuple(data.crop_size),
        scale_range=tuple(data.scale_range),
        scale_step=data.scale_step,
        aspect_jitter=data.aspect_jitter,
        max_class_share=data.max_class_share,
        photometric=data.photometric,
    )


def loader_options(data: ConfigDict) -> pipeline.LoaderOptions:
    """Threads and worker processes that load images.

    Args:
        data: `config.data`; reads `threads` and `workers`.
    """
    return pipeline.LoaderOptions(data.threads, data.workers)


def evaluation_batches(
    config: ConfigDict, dataset: Dataset, split: str
) -> pipeline.EvaluationBatches:
    """Assigns the images of a split to batches; `EvaluationBatches.load` loads them.

    Args:
        config: configuration; reads `eval.size_multiple`, `eval.max_sizes` and `eval.batch_size`.
        dataset: data set to evaluate on.
        split: split of the data set.

    Raises:
        InputError: no such split, or a label that is not a complete PNG file.
    """
    return pipeline.evaluation_batches(
        dataset,
        split,
        multiple=config.eval.size_multiple,
        max_sizes=config.eval.max_sizes,
        batch_size=config.eval.batch_size,
    )
