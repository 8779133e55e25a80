"""A trained model that answers for one image at a time: classes of pixels, and where heads look."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from ggcf_jax import models
from ggcf_jax.evaluation import inference
from ggcf_jax.models.contexts.ggcf import pruned
from ggcf_jax.models.layers.resize import nearest_positions
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import classes as classes_lib
from ggcf_jax.workdir import config as workdir_config

_PROGRAMS = 16  # compiled programs that are kept, the latest used


@dataclasses.dataclass(frozen=True)
class Viewer:
    """A model restored from a run.

    Attributes:
        name: of the data set.
        classes: names in train-id order. colors: RGB of each.
        heads: one text a head, such as 'local:8'; () where the network has none.
        stride: pixels a position of the heads' map.
        step: of the checkpoint. plan: how the classes of pixels are found, in words.
        segment: uint8 image [h, w, 3] -> labels uint8 [h, w].
        attend: (image, pixel (y, x)) -> float32 [heads, ceil(h / stride), ceil(w / stride)], one in
            sum over the map: where each head looks from the position nearest to the pixel.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    heads: tuple[str, ...]
    stride: int
    step: int
    plan: str
    segment: Callable[[np.ndarray], np.ndarray]
    attend: Callable[[np.ndarray, tuple[int, int]], np.ndarray]


def load(config, workdir: str | pathlib.Path, which: str | int) -> Viewer:
    """Restores a checkpoint of a run.

    Classes of pixels are found with the inference plan of `config.eval`; heads always see the whole
    image, pruned as the plan says. An image of a new size compiles first.

    Raises:
        InputError: no such run or checkpoint, one of another network, or a plan that cannot be.
    """
    workdir = pathlib.Path(workdir)
    workdir_config.check_model(config, workdir)
    plan = inference.build(config)
    classes = classes_lib.of_run(config, workdir)
    graphdef, params, stats = models.abstract(config, len(classes.names))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    restored = checkpoints.restore(workdir, params, stats, device, which)
    arrays = (restored.params, restored.stats)
    model = models.merge(graphdef, *arrays)

    def segment(params, stats, image):
        scores = inference.scores(models.merge(graphdef, params, stats), image[None], plan)
        return scores[0].argmax(-1).astype(np.uint8)

    def attend(params, stats, image, positions):
        network = pruned(models.merge(graphdef, params, stats), plan.pruning)
        return network.attention(image[None], positions)[0, 0]

    @functools.lru_cache(_PROGRAMS)
    def compiled(function, *shapes):
        return jax.jit(function).lower(*arrays, *map(_abstract, shapes)).compile()

    def run(function, *inputs):
        program = compiled(function, *((x.shape, x.dtype.name) for x in inputs))
        return np.asarray(program(*arrays, *inputs))

    return Viewer(
        name=config.data.name,
        classes=classes.names,
        colors=classes.colors,
        heads=tuple(map(str, model.heads)),
        stride=model.stride,
        step=restored.step,
        plan=str(plan),
        segment=lambda image: run(segment, image),
        attend=lambda image, pixel: run(
            attend, image, nearest_positions([pixel], model.stride, image.shape[:2])
        ),
    )


def _abstract(shape: tuple[tuple[int, ...], str]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(*shape)
