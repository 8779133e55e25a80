"""Evaluation of a trained model on a split, from the checkpoint to the report."""

import pathlib

import jax
from absl.flags import FlagValues
from ml_collections import ConfigDict

from ggcf_jax import config as config_lib
from ggcf_jax import data, places
from ggcf_jax.display.console import Progress, iou_table, metrics_line
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.distributed import processes
from ggcf_jax.evaluation import evaluator, inference, metrics
from ggcf_jax.evaluation.results import Evaluation
from ggcf_jax.workdir import classes as classes_lib
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import evaluations, report
from ggcf_jax.workdir import model as model_lib
from ggcf_jax.workdir.checkpoints import Which
from ggcf_jax.workdir.classes import Classes


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=evaluate`: reads `--split` and `--checkpoint`."""
    evaluate_workdir(config, workdir, flags.split, flags.checkpoint)
    return 0


def evaluate_workdir(
    config: ConfigDict, workdir: str | pathlib.Path, split: str, checkpoint: Which
) -> Evaluation:
    """Evaluates a checkpoint of a run, prints the tables and writes numbers, panels and report.

    Args:
        config: configuration of the run; `eval` may differ from what it was trained with.
        workdir: directory of the run.
        split: name of a split of the data set, such as 'validation'. What training measured is
            never replaced.
        checkpoint: 'best', 'latest' or a step number.

    Raises:
        InputError: no such checkpoint or split, a split without labels, a run of another network,
            or invalid values in the configuration.
    """
    workdir = places.expand(workdir)
    config_lib.check(config, jax.device_count())
    workdir_config.check_model(config, workdir)
    if processes.is_process_zero():
        places.check_writable(workdir, '--workdir')
    inference.build(config)
    shown = metrics.build(config)
    with processes.process_zero_first():
        dataset = data.build(config.data)
    dataset.source(split)
    dataset.check_labeled(split, 'evaluated')
    trained = workdir_config.load(workdir)
    classes_lib.check_meaning(
        dataset,
        workdir,
        same_files=all(trained.data[name] == config.data[name] for name in ('name', 'manual_dir')),
        purpose='evaluated',
    )
    model = model_lib.load(
        workdir,
        checkpoint,
        config=config,
        classes=Classes(dataset.classes, dataset.colors),
        mesh=mesh_lib.make_mesh(space=config.mesh.space),
    )
    evaluate = evaluator.Evaluator(
        evaluator.make_eval_step(model.graphdef, dataset.num_classes, model.mesh, model.plan),
        data.evaluation_batches(config, dataset, split),
        model.mesh,
        loader=data.loader_options(config.data),
        metrics=shown,
        num_samples=config.eval.panels,
        num_worst=config.eval.worst,
        boundary=config.eval.boundary,
    )
    with (
        jax.set_mesh(model.mesh),
        Progress(config.train.steps, console=processes.console()) as progress,
    ):
        evaluation = evaluate(model.unstacked_params, model.stats, progress)
        progress.print(f'checkpoint of step {model.step}, {split}, {model.plan}:')
        progress.print(iou_table(evaluation.classes, evaluation.iou.values(), evaluation.miou))
        if evaluation.categories:
            ious = evaluation.category_iou
            progress.print(
                iou_table(ious, ious.values(), evaluation.category_miou, entry='category')
            )
        if line := metrics_line(evaluation.scores):
            progress.print(line)
    if processes.is_process_zero():
        made = evaluations.conditions('evaluate', model.plan, config, dataset, split)
        with places.writing(workdir, '--workdir'):
            evaluations.save(evaluation, dataset, model.step, workdir, made)
            evaluations.save_confusion(evaluation, model.step, workdir, made)
            print(f'report: {report.write(workdir)}')
    return evaluation
