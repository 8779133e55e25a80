"""Evaluation of a split: one confusion matrix over all its images, and some pictures."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ggcf_jax import checkpoint, data, metrics, models, processes, report, visualize
from ggcf_jax import config as config_lib
from ggcf_jax import mesh as mesh_lib
from ggcf_jax.console import Progress, iou_table
from ggcf_jax.data import pipeline
from ggcf_jax.data.codec import IGNORE
from ggcf_jax.data.dataset import Dataset
from ggcf_jax.models.upsample import upsample
from ggcf_jax.state import merge


@dataclasses.dataclass(frozen=True)
class Sample:
    """One evaluated image: uint8 [h, w, 3], label and prediction uint8 [h, w] of train ids."""

    name: str
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of one split.

    Attributes:
        split: its name.
        classes: names in train-id order.
        matrix: int64 [C, C], pixels by (ground truth, prediction).
        samples: the first images.
    """

    split: str
    classes: tuple[str, ...]
    matrix: np.ndarray
    samples: tuple[Sample, ...]

    @property
    def iou(self) -> dict[str, float | None]:
        """IoU by class; None for a class in neither ground truth nor prediction."""
        values = metrics.class_iou(self.matrix)
        return {name: _or_none(float(value)) for name, value in zip(self.classes, values)}

    @property
    def miou(self) -> float:
        return metrics.mean_iou(self.matrix)

    @property
    def pixel_accuracy(self) -> float:
        return metrics.pixel_accuracy(self.matrix)

    def row(self) -> dict[str, float | None]:
        """The row for metrics.jsonl; validation is called val there."""
        prefix = {'validation': 'val'}.get(self.split, self.split)
        return {
            f'{prefix}/miou': self.miou,
            f'{prefix}/pixel_accuracy': self.pixel_accuracy,
            **{f'{prefix}/iou/{name}': value for name, value in self.iou.items()},
        }


EvalStep = Callable[
    [nnx.State, nnx.State, jax.Array, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]
]


def make_eval_step(graphdef: nnx.GraphDef, num_classes: int, mesh: Mesh) -> EvalStep:
    """Builds the compiled (params, stats, matrix, batch) -> (matrix + counts, predictions).

    Predictions are uint8 [b, h, w] at the resolution of the labels.
    """

    def eval_step(params, stats, matrix, batch):
        model = merge(graphdef, params, stats)
        logits, _ = model(batch['image'])
        size = batch['label'].shape[1:]
        predictions = upsample(logits, model.stride, size).argmax(-1).astype(jnp.uint8)
        counts = metrics.confusion_matrix(batch['label'], predictions, num_classes, IGNORE)
        return matrix + counts, predictions

    shardings = (mesh_lib.replicated(mesh), mesh_lib.by_batch(mesh))
    return jax.jit(eval_step, donate_argnums=2, out_shardings=shardings)


def evaluate(
    eval_step: EvalStep,
    params: nnx.State,
    stats: nnx.State,
    dataset: Dataset,
    split: str,
    plan: pipeline.EvaluationPlan,
    *,
    num_samples: int,
    mesh: Mesh,
    reading: pipeline.Reading,
    progress: Progress,
) -> Evaluation:
    """Evaluates every image of `split` once, whole, at its own resolution.

    Args:
        eval_step: of `make_eval_step`.
        params: of the model. stats: its batch statistics.
        plan: which images go together, padded to what.
        num_samples: return those of the first so many images.
        mesh: of the devices. reading: how images are decoded.
        progress: shows how far it is.
    """
    shard = mesh_lib.shard(mesh)
    batches = pipeline.evaluation_batches(dataset, split, plan, shard=shard, reading=reading)
    zeros = np.zeros((dataset.num_classes, dataset.num_classes), np.int32)
    on_device = jax.device_put(zeros, mesh_lib.replicated(mesh))
    total, pixels = zeros.astype(np.int64), 0
    samples: dict[int, Sample] = {}
    before = None
    with progress.evaluating(len(dataset.source(split)), split) as advance:
        for indices, batch in zip(plan.indices, batches, strict=True):
            processes.progress(f'evaluating images of {split}')
            arrays = mesh_lib.global_batch(mesh, batch)
            images = {name: arrays[name] for name in ('image', 'label')}
            on_device, predictions = eval_step(params, stats, on_device, images)
            # At most two batches wait on the device, however many images the split has.
            jax.block_until_ready(before)
            before = predictions
            pixels += batch['label'].size * shard.count
            if pixels > 2**30:  # before an int32 count can overflow
                total += np.asarray(on_device)
                on_device, pixels = jax.device_put(zeros, mesh_lib.replicated(mesh)), 0
            if ((indices >= 0) & (indices < num_samples)).any():
                whole = mesh_lib.fetch(mesh, arrays | {'prediction': predictions})
                for i in np.flatnonzero((whole['index'] >= 0) & (whole['index'] < num_samples)):
                    index = int(whole['index'][i])
                    shown = tuple(slice(length) for length in whole['size'][i])
                    images = (whole[name][i][shown] for name in ('image', 'label', 'prediction'))
                    samples[index] = Sample(dataset.source(split)[index]['name'], *images)
            advance(int((indices >= 0).sum()))
        total += np.asarray(on_device)
    return Evaluation(split, dataset.classes, total, tuple(samples[i] for i in sorted(samples)))


def save(evaluation: Evaluation, dataset: Dataset, step: int, workdir: pathlib.Path) -> list:
    """Writes `evaluations/<split>_<step>.json` and the samples as PNG panels.

    Returns:
        (name, uint8 [h, w, 3] panel) of each sample.
    """
    directory = workdir / 'evaluations'
    directory.mkdir(exist_ok=True)
    path = directory / f'{evaluation.split}_{step:08d}.json'
    iou = evaluation.iou
    content = {
        'step': step,
        'split': evaluation.split,
        'dataset': dataset.name,
        'classes': dataset.classes,
        'colors': dataset.colors,
        'matrix': evaluation.matrix.tolist(),
        'miou': _or_none(evaluation.miou),
        'pixel_accuracy': _or_none(evaluation.pixel_accuracy),
        'iou': iou,
        'absent': [name for name, value in iou.items() if value is None],
    }
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(content), encoding='utf-8')
    os.replace(temporary, path)
    panels = [
        (s.name, visualize.panel(s.image, s.label, s.prediction, dataset.colors, IGNORE))
        for s in evaluation.samples
    ]
    prefix = '' if evaluation.split == 'validation' else f'{evaluation.split}_'
    folder = workdir / 'panels' / f'{prefix}{step:08d}'
    for i, (name, panel) in enumerate(panels):
        folder.mkdir(parents=True, exist_ok=True)
        visualize.write_png(folder / f'{i:02d}_{name}.png', panel)
    return panels


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def evaluate_workdir(
    config, workdir: str | pathlib.Path, split: str, which: str | int
) -> Evaluation:
    """Evaluates a checkpoint of a run, prints the table and writes numbers, panels and report.

    Args:
        config: of the run.
        workdir: of the run.
        split: 'train', 'validation' or 'test'.
        which: 'best', 'latest' or a step.

    Raises:
        InputError: no such checkpoint or split, or one of another model.
    """
    workdir = pathlib.Path(workdir)
    config_lib.check(config, jax.device_count())
    with processes.first_one_first():
        dataset = data.build(config.data)
    dataset.source(split)
    dataset.check_labeled(split, 'evaluated')
    mesh = mesh_lib.make_mesh(space=config.mesh.space)
    graphdef, params, stats = models.abstract(config, dataset.num_classes)
    restored = checkpoint.restore(workdir, params, stats, mesh_lib.replicated(mesh), which)
    with (
        jax.set_mesh(mesh),
        Progress(config.train.steps, console=processes.console()) as progress,
    ):
        evaluation = evaluate(
            make_eval_step(graphdef, dataset.num_classes, mesh),
            restored.params,
            restored.stats,
            dataset,
            split,
            data.evaluation_plan(config, dataset, split),
            num_samples=config.eval.panels,
            mesh=mesh,
            reading=data.reading(config.data),
            progress=progress,
        )
        progress.print(f'checkpoint of step {restored.step}, {split}:')
        progress.print(iou_table(dataset.classes, list(evaluation.iou.values()), evaluation.miou))
    if processes.is_first():
        save(evaluation, dataset, restored.step, workdir)
        print(f'report: {report.write(workdir)}')
    return evaluation
