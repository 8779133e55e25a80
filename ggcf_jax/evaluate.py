"""Evaluation of a split: one confusion matrix over all its images, and some pictures."""

import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl.flags import FlagValues
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ggcf_jax import config as config_lib
from ggcf_jax import data, models
from ggcf_jax.data import pipeline
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.display.console import Progress, iou_table
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.distributed import processes
from ggcf_jax.evaluation import inference, metrics
from ggcf_jax.evaluation.results import Evaluation, Ranked, Sample, Worst
from ggcf_jax.workdir import checkpoints, evaluations, report
from ggcf_jax.workdir import config as workdir_config

EvalStep = Callable[
    [nnx.State, nnx.State, jax.Array, Mapping[str, jax.Array]],
    tuple[jax.Array, jax.Array, jax.Array],
]


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=evaluate`: reads `--split` and `--checkpoint`."""
    evaluate_workdir(config, workdir, flags.split, flags.checkpoint)
    return 0


def make_eval_step(
    graphdef: nnx.GraphDef, num_classes: int, mesh: Mesh, plan: inference.Plan
) -> EvalStep:
    """Builds the compiled (params, stats, matrix, batch) -> (matrix + counts, ious, predictions).

    Predictions are uint8 [b, h, w] at the resolution of the labels, and ious the mean IoU of each
    image, float32 [b], NaN where nothing is labelled.
    """

    def eval_step(params, stats, matrix, batch):
        scores = inference.scores(models.merge(graphdef, params, stats), batch['image'], plan)
        predictions = scores.argmax(-1).astype(jnp.uint8)
        counts = metrics.confusion_matrices(batch['label'], predictions, num_classes, IGNORE)
        return matrix + counts.sum(0), metrics.mean_ious(counts), predictions

    everywhere, dealt = mesh_lib.replicated(mesh), mesh_lib.by_batch(mesh)
    return jax.jit(eval_step, donate_argnums=2, out_shardings=(everywhere, everywhere, dealt))


def evaluate(
    eval_step: EvalStep,
    params: nnx.State,
    stats: nnx.State,
    dataset: Dataset,
    split: str,
    batches: pipeline.EvaluationBatches,
    *,
    num_samples: int,
    num_worst: int,
    mesh: Mesh,
    loader: pipeline.LoaderOptions,
    progress: Progress,
) -> Evaluation:
    """Evaluates every image of `split` once, at its own resolution.

    Args:
        eval_step: of `make_eval_step`.
        params: of the model. stats: its batch statistics.
        batches: batches of the split.
        num_samples: return the pictures of the first so many images.
        num_worst: and of so many images with the lowest mIoU; others are not kept in memory.
        mesh: of the devices.
        loader: threads and worker processes that decode the images.
        progress: shows how far it is.
    """
    shard = mesh_lib.shard(mesh)
    source = dataset.source(split)
    zeros = np.zeros((dataset.num_classes, dataset.num_classes), np.int32)
    on_device = jax.device_put(zeros, mesh_lib.replicated(mesh))
    total, pixels = zeros.astype(np.int64), 0
    samples: dict[int, Sample] = {}
    worst = Worst(num_worst)

    def collect(arrays, ious, predictions):
        """Keeps the pictures that are wanted of a batch, once it is computed."""
        indices, ious = (mesh_lib.fetch(mesh, {'x': x})['x'] for x in (arrays['index'], ious))
        wanted = [
            row
            for row, (index, miou) in enumerate(zip(indices.tolist(), ious.tolist()))
            if index >= 0 and (worst.wants(miou, index) or index < num_samples)
        ]
        if not wanted:
            return
        whole = mesh_lib.fetch(mesh, arrays | {'prediction': predictions})
        for row in wanted:
            index, shown = int(indices[row]), tuple(map(slice, whole['size'][row]))
            images = (whole[name][row][shown].copy() for name in ('image', 'label', 'prediction'))
            sample = Sample(source[index]['name'], *images)
            if index < num_samples:
                samples[index] = sample
            worst.add(index, Ranked(sample.name, float(ious[row]), sample))

    before = None
    with progress.evaluating(len(source), split) as advance:
        loaded = batches.load(shard=shard, loader=loader)
        for indices, batch in zip(batches.indices, loaded, strict=True):
            processes.report_progress(f'evaluating images of {split}')
            arrays = mesh_lib.global_batch(mesh, batch)
            images = {name: arrays[name] for name in ('image', 'label')}
            if before is None:
                processes.compile_together(eval_step, params, stats, on_device, images)
            on_device, *results = eval_step(params, stats, on_device, images)
            # At most two batches wait on the device, however many images the split has.
            if before is not None:
                collect(*before)
            before = (arrays, *results)
            pixels += batch['label'].size * shard.count
            if pixels > 2**30:  # before an int32 count can overflow
                total += np.asarray(on_device)
                on_device, pixels = jax.device_put(zeros, mesh_lib.replicated(mesh)), 0
            advance(int((indices >= 0).sum()))
        if before is not None:
            collect(*before)
        total += np.asarray(on_device)
    return Evaluation(
        split,
        dataset.classes,
        dataset.categories,
        total,
        tuple(samples[i] for i in sorted(samples)),
        worst.images(),
    )


def evaluate_workdir(
    config, workdir: str | pathlib.Path, split: str, which: str | int
) -> Evaluation:
    """Evaluates a checkpoint of a run, prints the tables and writes numbers, panels and report.

    Args:
        config: of the run; `eval` says by which plan.
        workdir: of the run.
        split: 'train', 'validation' or 'test'.
        which: 'best', 'latest' or a step.

    Raises:
        InputError: no such checkpoint or split, a split without labels, a run of another network,
            or values that no plan can have.
    """
    workdir = pathlib.Path(workdir)
    config_lib.check(config, jax.device_count())
    workdir_config.check_model(config, workdir)
    plan = inference.build(config)
    with processes.process_zero_first():
        dataset = data.build(config.data)
    dataset.source(split)
    dataset.check_labeled(split, 'evaluated')
    mesh = mesh_lib.make_mesh(space=config.mesh.space)
    graphdef, params, stats = models.abstract(config, dataset.num_classes)
    restored = checkpoints.restore(workdir, params, stats, mesh_lib.replicated(mesh), which)
    with (
        jax.set_mesh(mesh),
        Progress(config.train.steps, console=processes.console()) as progress,
    ):
        evaluation = evaluate(
            make_eval_step(graphdef, dataset.num_classes, mesh, plan),
            restored.params,
            restored.stats,
            dataset,
            split,
            data.evaluation_batches(config, dataset, split),
            num_samples=config.eval.panels,
            num_worst=config.eval.worst,
            mesh=mesh,
            loader=data.loader_options(config.data),
            progress=progress,
        )
        progress.print(f'checkpoint of step {restored.step}, {split}, {plan}:')
        progress.print(iou_table(evaluation.classes, evaluation.iou.values(), evaluation.miou))
        if evaluation.categories:
            ious = evaluation.category_iou
            progress.print(
                iou_table(ious, ious.values(), evaluation.category_miou, entry='category')
            )
        progress.print(f'pixel accuracy {evaluation.pixel_accuracy:.4f}')
    if processes.is_process_zero():
        evaluations.save(evaluation, dataset, restored.step, workdir, plan)
        evaluations.save_confusion(evaluation, restored.step, workdir, plan)
        print(f'report: {report.write(workdir)}')
    return evaluation
