"""How images of any size go through the network: padded to few sizes together, or in parts."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, UInt8
from ml_collections import ConfigDict

from ggcf_jax import models
from ggcf_jax.data import pipeline
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.evaluation import by_scale, inference
from ggcf_jax.models.layers import extent as extent_lib

Size = tuple[int, int]


class Prediction(NamedTuple):
    """What the network finds in a batch of images or in one image.

    Attributes:
        labels: most probable class of each pixel.
        probabilities: of each class at each pixel, one in sum; None unless they were asked for.
    """

    labels: UInt8[np.ndarray, '*b h w']
    probabilities: Float[np.ndarray, '*b h w c'] | None


# (padded images, height and width of each, 0 where there is none) -> arrays of the padded size.
Run = Callable[[UInt8[np.ndarray, 'b h w 3'], Int32[np.ndarray, 'b 2']], Prediction]


@dataclasses.dataclass(frozen=True)
class Job:
    """Images that go through the network together, or one large image in parts.

    Attributes:
        members: indices of the images.
        size: (height, width) that the network sees: the images padded, or a part of the large one.
        batch_size: number of images, or of parts of the large one, in one call of the network.
        in_parts: whether this is a large image.
    """

    members: tuple[int, ...]
    size: Size
    batch_size: int
    in_parts: bool

    @property
    def largest(self) -> Size | None:
        """Largest (height, width) of a member; None where any size will do."""
        return None if self.in_parts else self.size


def plan_jobs(
    config: ConfigDict,
    sizes: Sequence[Size | None],
    *,
    devices: int,
    wanted: Collection[int] | None = None,
    max_side: int | None = None,
) -> list[Job]:
    """Groups images under few padded sizes, as an evaluation does; large ones are alone.

    Args:
        config: configuration; reads `eval.size_multiple`, `eval.max_sizes` and `eval.batch_size`.
        sizes: (height, width) of all images; None where it is unknown, or enormous.
        devices: number of devices that share a batch.
        wanted: indices of the images to predict; None for all.
        max_side: longest side, in pixels, of an image that goes through the network at once;
            larger ones go through in parts of this side. None: there are no parts.
    """
    small: list[int] = []
    large: list[int] = []
    for index in sorted(range(len(sizes)) if wanted is None else wanted):
        size = sizes[index]
        fits = size is not None and (max_side is None or max(size) <= max_side)
        (small if fits else large).append(index)
    multiple = config.eval.size_multiple
    sides = np.array([sizes[index] for index in small], np.int64).reshape(-1, 2)
    groups = pipeline.merge_sizes(-(-sides // multiple) * multiple, config.eval.max_sizes)
    jobs = []
    for size, rows in sorted(groups.items()):
        members = [small[row] for row in rows]
        count = min(_round_up(config.eval.batch_size, devices), _round_up(len(members), devices))
        for first in range(0, len(members), count):
            jobs.append(Job(tuple(members[first : first + count]), size, count, in_parts=False))
    for index in large:
        assert max_side is not None, f'image {index} has no size'
        jobs.append(Job((index,), (max_side, max_side), devices, in_parts=True))
    return jobs


def predict_padded(
    run: Run, images: Sequence[UInt8[np.ndarray, 'h w 3']], job: Job
) -> list[Prediction]:
    """Predicts the images of a job together.

    Args:
        run: the network, for images [job.batch_size, *job.size, 3].
        images: at most `job.batch_size` images, none larger than `job.size`.
        job: padded size and number of images in a batch.

    Returns:
        The prediction of each image at its own size, as views of the batch's arrays.
    """
    labels, probabilities = run(*pad(images, job))
    found = []
    for row, image in enumerate(images):
        height, width, _ = image.shape
        inside = (row, slice(height), slice(width))
        found.append(
            Prediction(labels[inside], None if probabilities is None else probabilities[inside])
        )
    return found


def pad(
    images: Sequence[UInt8[np.ndarray, 'h w 3']], job: Job
) -> tuple[UInt8[np.ndarray, 'b h w 3'], Int32[np.ndarray, 'b 2']]:
    """Puts images into one batch of `job.batch_size` places of `job.size`.

    Args:
        images: at most as many images, none larger.
        job: padded size and number of images in a batch.

    Returns:
        What a `Run` takes.
    """
    batch = np.zeros((job.batch_size, *job.size, 3), np.uint8)
    sizes = np.zeros((job.batch_size, 2), np.int32)
    for place, size, image in zip(batch, sizes, images):
        size[:] = image.shape[:2]
        place[: image.shape[0], : image.shape[1]] = image
    return batch, sizes


class Network:
    """The network as a function of host arrays, a `Run`; every new shape is compiled once.

    To be used under `jax.set_mesh(mesh)`, with a number of images that is divisible by the devices
    of its axis `data`.
    """

    def __init__(
        self,
        step: jax.stages.Wrapped | by_scale.ByScale,
        params: nnx.State,
        stats: nnx.State,
        mesh: Mesh,
    ):
        """
        Args:
            step: (params, stats, images, sizes) -> (labels, probabilities or None), jitted or by
                scale.
            params: parameters of the network, replicated on the mesh.
            stats: its batch statistics, likewise.
            mesh: devices that share a batch.
        """
        self._step = step
        self._params = params
        self._stats = stats
        self._mesh = mesh
        self._compiled: set[tuple[int, ...]] = set()

    def __call__(
        self, images: UInt8[np.ndarray, 'b h w 3'], sizes: Int32[np.ndarray, 'b 2']
    ) -> Prediction:
        self._compiled.add(images.shape)
        return Prediction(*jax.device_get(self._step(*self._arguments(images, sizes))))

    def is_compiled(self, images: UInt8[np.ndarray, 'b h w 3']) -> bool:
        """Whether a program for images of this shape was compiled."""
        return images.shape in self._compiled

    def compile(
        self, images: UInt8[np.ndarray, 'b h w 3'], sizes: Int32[np.ndarray, 'b 2']
    ) -> None:
        """Compiles the program for images of this shape, which the first call would do."""
        self._step.lower(*self._arguments(images, sizes)).compile()
        self._compiled.add(images.shape)

    def _arguments(
        self, images: UInt8[np.ndarray, 'b h w 3'], sizes: Int32[np.ndarray, 'b 2']
    ) -> tuple[nnx.State, nnx.State, jax.Array, jax.Array]:
        arrays = mesh_lib.global_batch(self._mesh, {'image': images, 'size': sizes})
        return self._params, self._stats, arrays['image'], arrays['size']


def make_run(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    stats: nnx.State,
    *,
    num_classes: int,
    plan: inference.Plan,
    mesh: Mesh,
    probabilities: jnp.dtype | None,
) -> Network:
    """Builds the network as a function of host arrays.

    Args:
        graphdef: structure of the network.
        params: its parameters, replicated on the mesh.
        stats: its batch statistics, likewise.
        num_classes: number of its classes.
        plan: how the class scores of an image are found; several scales are programs of their own.
        mesh: devices that share a batch.
        probabilities: dtype of the probabilities; None leaves them out, since they are large.
    """

    def predict_step(
        params: nnx.State,
        stats: nnx.State,
        images: UInt8[Array, 'b h w 3'],
        sizes: Int32[Array, 'b 2'],
    ) -> tuple[jax.Array, jax.Array | None]:
        model = models.merge(graphdef, params, stats)
        return finish(inference.scores(model, images, plan, extent_lib.of_sizes(sizes)))

    def of_sum(total: Float[Array, 'b h w classes']) -> tuple[jax.Array, jax.Array | None]:
        return finish(total / plan.num_views)

    def finish(scores: Float[Array, 'b h w classes']) -> tuple[jax.Array, jax.Array | None]:
        labels = scores.argmax(-1).astype(jnp.uint8)
        if probabilities is None:
            return labels, None
        return labels, inference.probabilities(scores, plan).astype(probabilities)

    by_batch = mesh_lib.by_batch(mesh)
    step: jax.stages.Wrapped | by_scale.ByScale
    if len(plan.scales) == 1:
        step = jax.jit(predict_step, out_shardings=by_batch)
    else:
        step = by_scale.ByScale(
            graphdef,
            num_classes,
            mesh,
            plan,
            split=lambda images, sizes: (images, sizes, ()),
            finish=jax.jit(of_sum, out_shardings=by_batch),
        )
    return Network(step, params, stats, mesh)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
