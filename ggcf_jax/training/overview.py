"""What a run is about to do, as a table of facts."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ggcf_jax import models
from ggcf_jax.attention import parse, resolve_implementation, target
from ggcf_jax.attention.implementations import KERNELS
from ggcf_jax.data import mixture
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.distributed import host_memory
from ggcf_jax.training import parameter_groups
from ggcf_jax.training.state import TrainState


def rows(
    config: ConfigDict, mesh: Mesh, dataset: Dataset, state: TrainState, weights: str
) -> list[tuple[str, str]]:
    """The facts of a run before its first step, each (label, text).

    Args:
        config: configuration of the run.
        mesh: devices of the run.
        dataset: data set of the run.
        state: state that the run starts or resumes from.
        weights: where its parameters come from, in words.
    """
    train, platform = config.train, mesh.devices.flat[0].platform
    attention = _attention(config, target.of(mesh.devices.flat[0]))
    return [
        ('devices', describe_devices(mesh)),
        *([('memory', host_memory.describe())] if platform == 'cpu' else []),
        ('mesh', _mesh(train, mesh)),
        ('network', _network(config, dataset)),
        *([('attention', attention)] if attention else []),
        ('parameters', _parameters(config, state, dataset.num_classes)),
        ('weights', weights),
        ('data', _data(config, dataset)),
        ('precision', _precision(train)),
        ('steps', _steps(config, dataset, int(state.step))),
    ]


def describe_devices(mesh: Mesh) -> str:
    """Number, kind and platform of the devices, and of the processes if there are several."""
    device = mesh.devices.flat[0]
    processes = jax.process_count()
    together = f', {processes} processes' if processes > 1 else ''
    number, why = str(mesh.size), ''
    if mesh.size < jax.device_count():
        number = f'{mesh.size} of {jax.device_count()}'
        why = ': faster with many parameters and few pixels (docs/pods.md)'
    return f'{number} x {device.device_kind} ({device.platform}){together}{why}'


def _mesh(train: ConfigDict, mesh: Mesh) -> str:
    data, space = mesh.shape['data'], mesh.shape['space']
    images = train.batch_size // (data * train.accumulate)
    if space == 1:
        text = f'{data} x data; {_counted(images, "image")} a device'
    else:
        text = f'{data} x data, {space} x space; {_counted(images, "image")} for {space} devices'
    return text + (f', {train.accumulate} times a step' if train.accumulate > 1 else '')


def _network(config: ConfigDict, dataset: Dataset) -> str:
    model = config.model
    heads = f' {model.heads}' if model.context == 'ggcf' else ''
    return (
        f'{model.backbone.name}, output stride {model.backbone.stride}, {model.context}{heads}, '
        f'{dataset.num_classes} classes'
    )


def _attention(config: ConfigDict, device: target.Device) -> str:
    """What computes the heads of 'ggcf' on an accelerator, and why nothing faster; '' elsewhere."""
    model = config.model
    if model.context != 'ggcf' or device.platform == 'cpu':
        return ''
    found: dict[str, list[str]] = {}
    for graph in parse(model.heads):
        name, reasons = resolve_implementation(
            graph,
            implementation=model.attention,
            dtype=config.train.dtype,
            key_channels=model.ggcf.key_channels,
            value_channels=model.ggcf.value_channels,
            scale=model.ggcf.scale,
            platform=device.platform,
            compute_capability=device.compute_capability,
            kind=device.kind,
        )
        own = [faster for faster, x in KERNELS.items() if x.platform == device.platform]
        why = '; '.join(f'{faster}: {reasons[faster]}' for faster in own if faster in reasons)
        found.setdefault(f'{name} ({why})' if why else name, []).append(str(graph))
    return ', '.join(f'{" ".join(heads)} by {name}' for name, heads in found.items())


def _parameters(config: ConfigDict, state: TrainState, num_classes: int) -> str:
    frozen = config.model.backbone.statistics == 'running'
    trainable = 'all trainable'
    if config.train.frozen:
        stacks = models.stacks(*models.abstract(config, num_classes))
        fixed = parameter_groups.build(config.train, stacks).is_frozen(state.params)
        trained = [
            x
            for x, is_fixed in zip(jax.tree.leaves(state.params), jax.tree.leaves(fixed))
            if not is_fixed
        ]
        trainable = f'{_size(trained)} of them trained'
    return (
        f'{_size(state.params)}, {trainable}; {_size(state.stats)} batch statistics'
        + (', frozen in the backbone' if frozen else '')
        + ('; evaluated by their moving average' if state.ema_params is not None else '')
    )


def _data(config: ConfigDict, dataset: Dataset) -> str:
    parts = mixture.parse(config.data.train_split)
    splits = dict.fromkeys([*(split for part in parts for split in part.splits), 'validation'])
    sizes = ', '.join(f'{split} {len(dataset.source(split)):,}' for split in splits)
    height, width = config.data.crop_size
    cache = config.data.cache_mib
    return f'{dataset.name}: {sizes} images; crops of {height} x {width}' + (
        f'; up to {cache:,} MiB of decoded training images are kept in memory' if cache else ''
    )


def _precision(train: ConfigDict) -> str:
    text = train.dtype if train.dtype == 'float32' else f'{train.dtype}, parameters float32'
    return text if train.remat == 'none' else f'{text}; rematerialisation {train.remat}'


def _steps(config: ConfigDict, dataset: Dataset, done: int) -> str:
    train = config.train
    epochs = ', '.join(_epochs(config, dataset))
    resumed = f' from step {done:,}' if done else ''
    return (
        f'{train.steps:,}{resumed}, batches of {train.batch_size} ({epochs} epochs); evaluation '
        f'every {train.eval_every:,}, checkpoint every {train.checkpoint_every:,}'
    )


def _epochs(config: ConfigDict, dataset: Dataset) -> Iterator[str]:
    """How often each part of the mixture is seen, such as '10.9' or 'train 10.9'."""
    parts = mixture.parse(config.data.train_split)
    drawn = config.train.steps * config.train.batch_size / sum(part.weight for part in parts)
    for part in parts:
        images = sum(len(dataset.source(split)) for split in part.splits)
        name = f'{"+".join(part.splits)} ' if len(parts) > 1 else ''
        yield f'{name}{drawn * part.weight / images:.3g}'


def _counted(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def _size(tree: Any) -> str:
    """Number of the values in a tree, such as '23.5 M'."""
    number = sum(leaf.size for leaf in jax.tree.leaves(tree))
    for limit, unit in ((1e6, 'M'), (1e3, 'k')):
        if number >= limit:
            return f'{number / limit:.3g} {unit}'
    return str(number)
