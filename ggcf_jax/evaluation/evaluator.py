"""Evaluation of a split: one confusion matrix over all its images, and some pictures."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from ggcf_jax import models
from ggcf_jax.data import pipeline
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.distributed import processes
from ggcf_jax.evaluation import by_scale, inference, metrics
from ggcf_jax.evaluation.boundary import BoundaryCounts
from ggcf_jax.evaluation.metrics import Metric
from ggcf_jax.evaluation.results import Evaluation, Ranked, Sample, Worst
from ggcf_jax.models.layers import extent as extent_lib

EvalStep = jax.stages.Wrapped | by_scale.ByScale  # see `make_eval_step`
# (class scores, labels) -> (sum, normaliser), see `training.losses.Loss`
Loss = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
_FLUSH = 2**30  # pixels that are counted on the device, in int32, before the host adds them up

_T = TypeVar('_T')


def make_eval_step(
    graphdef: nnx.GraphDef,
    num_classes: int,
    mesh: Mesh,
    plan: inference.Plan,
    loss: Loss | None = None,
) -> EvalStep:
    """Builds the compiled (params, stats, matrix, batch) -> (matrix + counts, ious, predictions).

    With a loss there is a fourth output: its (sum, normaliser) over the batch. Several scales are
    programs of their own.

    A batch has the padded images, their labels and their sizes ('image', 'label' and 'size' of
    `pipeline.EvaluationBatches.load`). Predictions are uint8 [b, h, w] at the resolution of the
    labels, arbitrary in the padding, and ious the mean IoU of each image, float32 [b], NaN where
    nothing is labelled.

    Args:
        graphdef: structure of the network.
        num_classes: number of classes C; matrices are int32 [C, C].
        mesh: devices that share a batch.
        plan: how the class scores of an image are found; with a loss its `average` must be that of
            logits.
        loss: loss of the logits at the resolution of the labels.
    """
    assert loss is None or plan.average == 'logits', 'a loss is one of logits'

    def eval_step(
        params: nnx.State,
        stats: nnx.State,
        matrix: Int32[Array, 'classes classes'],
        batch: Mapping[str, jax.Array],
    ) -> tuple[Any, ...]:
        model = models.merge(graphdef, params, stats)
        extent = extent_lib.of_sizes(batch['size'])
        return count(inference.scores(model, batch['image'], plan, extent), matrix, batch)

    def of_sum(
        total: Float[Array, 'b h w classes'],
        matrix: Int32[Array, 'classes classes'],
        batch: Mapping[str, jax.Array],
    ) -> tuple[Any, ...]:
        return count(total / plan.num_views, matrix, batch)

    def count(
        scores: Float[Array, 'b h w classes'],
        matrix: Int32[Array, 'classes classes'],
        batch: Mapping[str, jax.Array],
    ) -> tuple[Any, ...]:
        predictions = scores.argmax(-1).astype(jnp.uint8)
        counts = metrics.confusion_matrices(batch['label'], predictions, num_classes, IGNORE)
        found = (matrix + counts.sum(0), metrics.mean_ious(counts), predictions)
        return found if loss is None else (*found, loss(scores, batch['label']))

    replicated, by_batch = mesh_lib.replicated(mesh), mesh_lib.by_batch(mesh)
    shardings = (replicated, replicated, by_batch, replicated)[: 3 if loss is None else 4]
    if len(plan.scales) == 1:
        return jax.jit(eval_step, donate_argnums=2, out_shardings=shardings)
    return by_scale.ByScale(
        graphdef,
        num_classes,
        mesh,
        plan,
        split=lambda matrix, batch: (batch['image'], batch['size'], (matrix, batch)),
        finish=jax.jit(of_sum, donate_argnums=1, out_shardings=shardings),
    )


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates every image of a split once, at its own resolution.

    Attributes:
        step: compiled step, see `make_eval_step`.
        batches: batches of the split.
        mesh: devices that share a batch.
        loader: threads and worker processes that decode the images.
        metrics: name -> function of the confusion matrix, see `metrics.METRICS`.
        num_samples: number of leading images whose pictures are returned.
        num_worst: number of images with the lowest mIoU whose pictures are returned.
        boundary: distance to contours whose pixels are counted for the boundary IoU, as a share of
            the image's diagonal; 0: they are not counted. The host counts them.
    """

    step: EvalStep
    batches: pipeline.EvaluationBatches
    mesh: Mesh
    loader: pipeline.LoaderOptions = dataclasses.field(default_factory=pipeline.LoaderOptions)
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=metrics.default)
    num_samples: int = 0
    num_worst: int = 0
    boundary: float = 0.0
    # Shapes of the batches that `step` was compiled for.
    _compiled: set[tuple[int, ...]] = dataclasses.field(default_factory=set, init=False)

    def __call__(
        self,
        params: nnx.State,
        stats: nnx.State,
        progress: Progress,
        check_stop: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Evaluates a network; in a run of several processes all call this together.

        Args:
            params: parameters, replicated on the mesh.
            stats: batch statistics, likewise.
            progress: display of the number of images done.
            check_stop: called before each batch; what it raises ends the evaluation.
        """
        dataset, split = self.batches.dataset, self.batches.split
        confusion = _Confusion(dataset.num_classes, self.mesh)
        samples: dict[int, Sample] = {}
        worst = Worst(self.num_worst)
        losses: list[tuple[float, float]] = []
        near = BoundaryCounts(dataset.num_classes, self.boundary) if self.boundary else None
        with progress.evaluating(len(dataset.source(split)), split) as advance:
            batches = self._dispatch(params, stats, confusion, progress, check_stop)
            # While the device computes a batch, the host collects the pictures of the one before;
            # so at most two wait on the device, however many images the split has.
            for batch in _one_behind(batches):
                for index, ranked in self._wanted(batch, worst):
                    worst.add(index, ranked)
                    if index < self.num_samples:
                        samples[index] = ranked.sample
                if near is not None:
                    self._count_boundaries(batch, near)
                if batch.loss is not None:
                    losses.append((float(batch.loss[0]), float(batch.loss[1])))
                advance(batch.num_images)
            matrix = confusion.total()
        return Evaluation(
            split,
            dataset.classes,
            dataset.categories,
            matrix,
            tuple(samples[i] for i in sorted(samples)),
            worst.images(),
            self.metrics,
            near,
            _mean(losses),
        )

    def _dispatch(
        self,
        params: nnx.State,
        stats: nnx.State,
        confusion: '_Confusion',
        progress: Progress,
        check_stop: Callable[[], None],
    ) -> Iterator['_Batch']:
        """Starts the step on each batch, and yields it without waiting for the results."""
        shard = mesh_lib.shard(self.mesh)
        loaded = self.batches.load(shard=shard, loader=self.loader)
        for indices, batch in zip(self.batches.indices, loaded, strict=True):
            check_stop()
            processes.report_progress(f'evaluating images of {self.batches.split}')
            arrays = mesh_lib.global_batch(self.mesh, batch)
            images = {name: arrays[name] for name in ('image', 'label', 'size')}
            if images['label'].shape not in self._compiled:
                _, height, width = images['label'].shape
                with progress.compiling(f'the evaluation of {height} x {width} pixels'):
                    processes.compile_together(
                        self.step, params, stats, confusion.on_device, images
                    )
                self._compiled.add(images['label'].shape)
            matrix, ious, predictions, *loss = self.step(params, stats, confusion.on_device, images)
            confusion.update(matrix, pixels=batch['label'].size * shard.count)
            count = int((indices >= 0).sum())
            yield _Batch(arrays, ious, predictions, count, loss[0] if loss else None)

    def _wanted(self, batch: '_Batch', worst: Worst) -> Iterator[tuple[int, Ranked]]:
        """The images of a computed batch whose pictures are kept, with their index."""
        indices, ious = (
            mesh_lib.fetch(self.mesh, {'x': x})['x'] for x in (batch.arrays['index'], batch.ious)
        )
        wanted = [
            row
            for row, (index, miou) in enumerate(zip(indices.tolist(), ious.tolist()))
            if index >= 0 and (worst.wants(miou, index) or index < self.num_samples)
        ]
        if not wanted:
            return
        arrays = mesh_lib.fetch(self.mesh, batch.arrays | {'prediction': batch.predictions})
        source = self.batches.dataset.source(self.batches.split)
        for row in wanted:
            index, inside = int(indices[row]), tuple(map(slice, arrays['size'][row]))
            images = (arrays[name][row][inside].copy() for name in ('image', 'label', 'prediction'))
            sample = Sample(source[index]['name'], *images)
            yield index, Ranked(sample.name, float(ious[row]), sample)

    def _count_boundaries(self, batch: '_Batch', near: BoundaryCounts) -> None:
        """Counts the pixels close to contours of a computed batch, in every process."""
        names = ('index', 'size', 'label')
        arrays = mesh_lib.fetch(
            self.mesh,
            {name: batch.arrays[name] for name in names} | {'prediction': batch.predictions},
        )
        for row in np.flatnonzero(arrays['index'] >= 0):
            inside = tuple(map(slice, arrays['size'][row]))
            near.add(arrays['label'][row][inside], arrays['prediction'][row][inside])


class _Batch(NamedTuple):
    """A batch as it lies on the devices, perhaps still being computed.

    Attributes:
        arrays: what was evaluated, see `pipeline.EvaluationBatches.load`.
        ious: mean IoU of each image, float32 [b].
        predictions: uint8 [b, h, w].
        num_images: number of its images, without those that fill it up.
        loss: sum and normaliser of the loss, if it is computed.
    """

    arrays: dict[str, jax.Array]
    ious: jax.Array
    predictions: jax.Array
    num_images: int
    loss: tuple[jax.Array, jax.Array] | None


class _Confusion:
    """The confusion matrix of a split: int32 on the device, int64 on the host."""

    def __init__(self, num_classes: int, mesh: Mesh):
        self._zeros = np.zeros((num_classes, num_classes), np.int32)
        self._sharding = mesh_lib.replicated(mesh)
        self._total = self._zeros.astype(np.int64)
        self._reset()

    def _reset(self) -> None:
        self.on_device = jax.device_put(self._zeros, self._sharding)
        self._pixels = 0

    def update(self, matrix: jax.Array, *, pixels: int) -> None:
        """Takes the matrix that a step has added `pixels` pixels to."""
        self.on_device = matrix
        self._pixels += pixels
        if self._pixels > _FLUSH:  # before an int32 count can overflow
            self._total += np.asarray(matrix)
            self._reset()

    def total(self) -> np.ndarray:
        """The matrix of everything counted, int64 [C, C]."""
        return self._total + np.asarray(self.on_device)


def _mean(losses: list[tuple[float, float]]) -> float | None:
    """Mean of a loss from the (sum, normaliser) of batches; None without any, NaN of nothing."""
    if not losses:
        return None
    total, weight = (math.fsum(values) for values in zip(*losses))
    return total / weight if weight else math.nan


def _one_behind(items: Iterable[_T]) -> Iterator[_T]:
    """Yields each item when the next one has been drawn, and the last one at the end."""
    waiting: collections.deque[_T] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting
