"""Training and evaluation steps compiled for accelerators, and figures of the programs."""

import dataclasses
import gzip
import math
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments.ahead import accelerators, collectives, cost
from ggcf_jax import config as config_lib
from ggcf_jax import models
from ggcf_jax.data import class_weights
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import evaluator, inference
from ggcf_jax.training import flops, train_step
from ggcf_jax.training import state as state_lib

STEPS = ('train', 'evaluate')


@dataclasses.dataclass(frozen=True)
class Case:
    """A program to compile.

    Attributes:
        target: key of `accelerators.TARGETS`.
        step: 'train' or 'evaluate'.
        height: height of the images in pixels.
        width: width of the images in pixels.
        batch: images on each device; with `config.mesh.space`, on the devices that share an image.
        remat: rematerialisation of the training step, as `config.train.remat`; evaluation has none.
    """

    target: str
    step: str
    height: int
    width: int
    batch: int
    remat: str


@dataclasses.dataclass(frozen=True)
class Program:
    """Figures of a compiled program.

    Attributes:
        temporary: temporary memory on each device, bytes.
        arguments: memory of the arguments on each device, bytes.
        outputs: memory of the outputs on each device, bytes.
        aliased: memory of outputs that alias arguments (the donated state), bytes.
        flops: FLOPs of products and convolutions on each device.
        traffic: bytes that each device's memory is read and written, see `cost.traffic`.
        operations: number of operations (on a GPU, kernels) that each device starts, see
            `cost.operations`.
        cycles: cycles that a TPU's compiler estimates; 0 for a GPU.
        collectives: collectives of one call.
    """

    temporary: int
    arguments: int
    outputs: int
    aliased: int
    flops: int
    traffic: int
    operations: int
    cycles: int
    collectives: tuple[collectives.Collective, ...]

    @property
    def memory(self) -> int:
        """Memory that the program needs on each device, bytes."""
        return self.temporary + self.arguments + self.outputs - self.aliased


class TooLarge(Exception):
    """The compiler found that the program does not fit into the device's memory.

    Attributes:
        memory: memory that it needs, bytes.
    """

    def __init__(self, memory: int) -> None:
        super().__init__(f'needs {memory / 2**30:.2f} GiB')
        self.memory = memory


def lower(config: ConfigDict, case: Case, num_classes: int) -> tuple[jax.stages.Lowered, int]:
    """Traces the step of training or evaluation for the devices of a case.

    Evaluation follows `config.eval`, as that of checkpoints does.

    Args:
        config: configuration; its batch size, crop and remat are replaced by those of the case.
        case: program to trace.
        num_classes: number of classes of the data set.

    Returns:
        The lowered program, and its FLOPs on all devices together.

    Raises:
        InputError: the compiler of the target is missing, or the configuration is wrong.
    """
    config = ConfigDict(config).unlock()
    devices = accelerators.devices(accelerators.TARGETS[case.target])
    config.train.remat = case.remat
    config.data.crop_size = (case.height, case.width)
    config.train.batch_size = config.eval.batch_size = (
        case.batch * len(devices) // config.mesh.space
    )
    config_lib.check(config, len(devices))
    mesh = mesh_lib.make_mesh(devices, config.mesh.space)
    network = models.abstract(config, num_classes)
    graphdef, params, stats = network
    images = (config.train.batch_size, case.height, case.width)
    sizes = NamedSharding(mesh, PartitionSpec('data'))
    batch = {
        'image': jax.ShapeDtypeStruct((*images, 3), np.uint8, sharding=mesh_lib.by_batch(mesh)),
        'label': jax.ShapeDtypeStruct(images, np.uint8, sharding=mesh_lib.by_batch(mesh)),
    }
    step: Any  # a jitted function; the annotations of both are plain callables
    arguments: tuple[Any, ...]
    with jax.set_mesh(mesh), accelerators.tracing(devices):
        if case.step == 'train':
            state = jax.eval_shape(state_lib.creator(config, num_classes, mesh))
            step = train_step.build(config.train, _class_weights(config.train), network, mesh)
            arguments = (_replicated(mesh, state), batch)
        else:
            matrix = jax.ShapeDtypeStruct((num_classes, num_classes), jnp.int32)
            step = evaluator.make_eval_step(graphdef, num_classes, mesh, inference.build(config))
            batch['size'] = jax.ShapeDtypeStruct((images[0], 2), np.int32, sharding=sizes)
            arguments = (*_replicated(mesh, (params, stats, matrix)), batch)
        traced = step.trace(*arguments)
        return traced.lower(), flops.count(traced.jaxpr)


def _replicated(mesh: Mesh, tree: Any) -> Any:
    """Returns the shapes of a tree with a copy on every device."""
    sharding = mesh_lib.replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _class_weights(train: ConfigDict) -> tuple[float, ...]:
    if train.class_weights == 'data':
        raise InputError(
            "config.train.class_weights='data' needs the data, which is not read here; the program "
            'is the same for any weights: give --config.train.class_weights=cityscapes or numbers'
        )
    if train.class_weights == 'cityscapes':
        return class_weights.CITYSCAPES
    return class_weights.parse(train.class_weights)


def compile_case(
    config: ConfigDict, case: Case, num_classes: int, text_file: pathlib.Path | None = None
) -> Program:
    """Compiles a case and analyses the program.

    Args:
        config: configuration, see `lower`.
        case: program to compile.
        num_classes: number of classes of the data set.
        text_file: file for the text of the compiled program, compressed by gzip; or None.

    Raises:
        InputError: the compiler of the target is missing, or the configuration is wrong.
        TooLarge: the program does not fit (TPU; for a GPU compare `Program.memory`).
    """
    lowered, total_flops = lower(config, case, num_classes)
    target = accelerators.TARGETS[case.target]
    try:
        compiled = lowered.compile(accelerators.COMPILER_OPTIONS[target.platform])
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r'Used ([\d.]+)([KMG]) of', str(error))
        if used is None:
            raise
        size = float(used.group(1)) * 2 ** {'K': 10, 'M': 20, 'G': 30}[used.group(2)]
        raise TooLarge(math.ceil(size)) from error
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    assert text is not None and memory is not None  # XLA's backends give both
    if text_file is not None:
        text_file.parent.mkdir(parents=True, exist_ok=True)
        text_file.write_bytes(gzip.compress(text.encode()))
    return Program(
        temporary=memory.temp_size_in_bytes,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        flops=total_flops // target.devices,
        traffic=cost.traffic(text),
        operations=cost.operations(text),
        cycles=cost.estimated_cycles(text),
        collectives=tuple(collectives.of_program(text)),
    )
