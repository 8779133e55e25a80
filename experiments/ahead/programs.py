"""Training and evaluation steps compiled for accelerators, and what the programs tell."""

import dataclasses
import gzip
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.ahead import accelerators, collectives, cost, flops
from ggcf_jax import config as config_lib
from ggcf_jax import evaluate, models
from ggcf_jax.data import class_weights
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.training import state as state_lib
from ggcf_jax.training import train_step

STEPS = ('train', 'evaluate')


@dataclasses.dataclass(frozen=True)
class Case:
    """A program to compile.

    Attributes:
        target: name in `accelerators.TARGETS`.
        step: 'train' or 'evaluate'.
        height, width: of the images.
        batch: images on each device; with `config.mesh.space` on the devices of each image.
        remat: of the training step, as `config.train.remat`; evaluation does not have any.
    """

    target: str
    step: str
    height: int
    width: int
    batch: int
    remat: str


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled program tells.

    Attributes:
        temporary, arguments, outputs, aliased: bytes on each device. Outputs that alias arguments
            (the donated state) take no memory of their own.
        flops: of products and convolutions, on each device.
        traffic: bytes that each device's memory is read and written, see `cost.traffic`.
        operations: that each device starts (kernels, on a GPU), see `cost.operations`.
        cycles: what a TPU's compiler expects its operations to take; 0 for a GPU.
        collectives: of one call.
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
        """Bytes that the program needs on each device."""
        return self.temporary + self.arguments + self.outputs - self.aliased


class TooLarge(Exception):
    """The compiler found that the program does not fit the device's memory.

    Attributes:
        memory: bytes that it needs.
    """

    def __init__(self, memory: int):
        super().__init__(f'needs {memory / 2**30:.2f} GiB')
        self.memory = memory


def lower(config: ConfigDict, case: Case, num_classes: int) -> tuple[jax.stages.Lowered, int]:
    """Traces the step that training or evaluation of `config` runs, for the devices of a case.

    Evaluation follows `config.eval`, as that of checkpoints does.

    Args:
        config: batch size, crop and remat are those of the case instead; `mesh.space` is its own.
        num_classes: of the data set.

    Returns:
        The program, and its FLOPs on all devices together.

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
    graphdef, params, stats = models.abstract(config, num_classes)
    images = (config.train.batch_size, case.height, case.width)
    batch = {
        'image': jax.ShapeDtypeStruct((*images, 3), np.uint8, sharding=mesh_lib.by_batch(mesh)),
        'label': jax.ShapeDtypeStruct(images, np.uint8, sharding=mesh_lib.by_batch(mesh)),
    }
    with jax.set_mesh(mesh):
        if case.step == 'train':
            state = jax.eval_shape(state_lib.creator(config, num_classes, mesh))
            step = train_step.build(config.train, _class_weights(config.train), graphdef, mesh)
            arguments = (_on(mesh, state), batch)
        else:
            matrix = jax.ShapeDtypeStruct((num_classes, num_classes), jnp.int32)
            step = evaluate.make_eval_step(graphdef, num_classes, mesh, inference.build(config))
            arguments = (*_on(mesh, (params, stats, matrix)), batch)
        traced = step.trace(*arguments)
        return traced.lower(), flops.count(traced.jaxpr)


def _on(mesh: Mesh, tree):
    """Shapes with a copy on every device."""
    sharding = mesh_lib.replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _class_weights(train) -> tuple[float, ...]:
    if train.class_weights == 'data':
        raise InputError(
            "config.train.class_weights='data' needs the data, which is not read here; the program "
            'is the same with any numbers: give --config.train.class_weights=cityscapes or them'
        )
    if train.class_weights == 'cityscapes':
        return class_weights.CITYSCAPES
    return class_weights.parse(train.class_weights)


def compile_case(
    config: ConfigDict, case: Case, num_classes: int, keep: pathlib.Path | None = None
) -> Program:
    """Compiles a case and looks at the program.

    Args:
        config, num_classes: as of `lower`.
        keep: write the text of the compiled program there, compressed by gzip.

    Raises:
        InputError: as `lower`.
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
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        keep.write_bytes(gzip.compress(text.encode()))
    memory = compiled.memory_analysis()
    return Program(
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        total_flops // target.devices,
        cost.traffic(text),
        cost.operations(text),
        cost.estimated_cycles(text),
        tuple(collectives.of_program(text)),
    )
