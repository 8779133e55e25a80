"""Training, from the configuration to the report: read it from top to bottom."""

import contextlib
import pathlib
import time

import jax
from absl.flags import FlagValues
from ml_collections import ConfigDict

from ggcf_jax import config as config_lib
from ggcf_jax import data, evaluate, models
from ggcf_jax.data import advice
from ggcf_jax.display.console import Progress, facts, iou_table, metrics_line
from ggcf_jax.distributed import chips, platforms, processes
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.distributed.preemption import synchronized_stop_requests
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import evaluator, inference, metrics
from ggcf_jax.evaluation.results import Evaluation
from ggcf_jax.training import (
    clock,
    flops,
    losses,
    memory,
    optim,
    overview,
    profiling,
    train_step,
    warm_start,
)
from ggcf_jax.training import state as state_lib
from ggcf_jax.workdir import checkpoints, classes, evaluations, provenance, report
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir.metrics_log import NoWriter, Writer


class NotFinite(InputError):
    """Loss or gradients were not finite for too many steps in a row."""


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=train`."""
    train_and_evaluate(config, workdir)
    return 0


def train_and_evaluate(config: ConfigDict, workdir: str | pathlib.Path) -> Evaluation | None:
    """Trains until `config.train.steps`, with evaluations and checkpoints on the way.

    Resumes from the newest checkpoint of `workdir`; on one machine an interrupted and resumed run
    ends in the same bits as an uninterrupted one. SIGTERM or Ctrl-C save a checkpoint and return. A
    finished run is only evaluated.

    In a run of several processes (`processes.joined`) all call this; process 0 alone prints and
    writes into the workdir, except for its share of each checkpoint.

    Args:
        config: configuration, see `ggcf_jax.config.default`.
        workdir: directory of the run, made if missing.

    Returns:
        The last evaluation; None if the run was told to stop before it.

    Raises:
        InputError: the configuration, the data or the workdir cannot be used.
        NotFinite: training diverged; the workdir keeps the last checkpoints.
    """
    began = time.perf_counter()
    workdir = pathlib.Path(workdir)
    train = config.train

    # Whatever can be wrong is found before anything expensive or lasting is done.
    config_lib.check(config, jax.device_count())
    mesh = mesh_lib.make_mesh(space=config.mesh.space)
    shard = mesh_lib.shard(mesh)
    models.abstract(config, num_classes=1)
    inference.build(config)
    shown = metrics.build(config)
    first = processes.is_process_zero()
    if first and not checkpoints.exists(workdir):  # a resumed run needs no weights
        warm_start.check(config)
    with processes.process_zero_first():
        dataset = data.build(config.data)
    optim.optimizer(train)
    losses.build(train, ())
    learning_rate = optim.schedule(train)
    profiled = profiling.parse(train.profile, train.steps)
    with processes.process_zero_first():
        class_weights = data.class_weights_of(config, dataset)
    if first:
        workdir_config.claim_workdir(config, workdir)
        classes.save(dataset, workdir)

    # The network, its state on the mesh, and the newest checkpoint if there is one.
    graphdef, _, _ = models.abstract(config, dataset.num_classes)
    state = state_lib.creator(config, dataset.num_classes, mesh)()
    checkpointer = checkpoints.Checkpointer(workdir)
    trees = checkpointer.restore_latest(state.to_trees())
    weights: list[str] = []
    if trees is None:
        state = warm_start.with_weights(config, state, weights.append)
    else:
        state = state_lib.TrainState.from_trees(trees)
    start = int(state.step)
    if start >= train.steps:
        processes.log_once(f'{workdir}: finished at step {start}; only evaluating')
        checkpointer.close()
        return evaluate.evaluate_workdir(config, workdir, 'validation', 'best')
    if start:
        processes.log_once(f'{workdir}: resuming at step {start} of {train.steps}')
        weights.append(f'checkpoint of step {start}')
    if first:
        provenance.save(workdir)

    # The compiled training step and its batches, the evaluator and its own.
    step_fn = train_step.build(train, class_weights, graphdef, mesh)
    with processes.process_zero_first():
        batches = data.training_batches(config, dataset, start, shard)
    # Training evaluates one view of the whole image, whatever `config.eval` asks for later.
    single = inference.SINGLE
    evaluate_validation = evaluator.Evaluator(
        evaluator.make_eval_step(graphdef, dataset.num_classes, mesh, single),
        data.evaluation_batches(config, dataset, 'validation'),
        mesh,
        loader=data.loader_options(config.data),
        metrics=shown,
        num_samples=config.eval.panels,
    )

    plan = overview.rows(
        config, mesh, dataset, state, '; '.join(weights) or 'from scratch, random parameters'
    )
    idle = platforms.unused(
        platforms.gpus_of_machine(), jax.local_device_count() * processes.on_this_machine()
    )
    # FLOPs of a step as a share of the peak of the devices, where that is known.
    peak = chips.peak_flops(mesh.devices.flat[0].device_kind)
    work = (
        None
        if peak is None
        else flops.of_training(graphdef, state.params, state.stats, tuple(config.data.crop_size))
        / (peak * mesh.size)
    )

    evaluation = previous = None
    ready = time.perf_counter()
    with (
        jax.set_mesh(mesh),
        contextlib.closing(checkpointer),
        contextlib.closing(batches),
        Writer(workdir, start) if first else NoWriter() as writer,
        Progress(train.steps, start, processes.console()) as progress,
        synchronized_stop_requests() as stop_requested,
        contextlib.closing(
            profiling.Profiler(profiled if first else None, workdir / profiling.FOLDER)
        ) as profiler,
    ):
        progress.print(facts(plan))
        if idle:
            progress.print(f'warning: {idle}', style='yellow')
        batch = mesh_lib.global_batch(mesh, next(batches))
        with progress.compiling('the training step'):
            compiled = processes.compile_together(step_fn, state, batch)
        if (needed := memory.needed(compiled)) is not None:
            progress.print(
                f'the training step needs {memory.text(needed)} of {memory.text(memory.limit())} '
                'on each device'
            )
        steps = clock.StepClock(start)
        told_input_bound = False
        for step in range(start + 1, train.steps + 1):
            if step > start + 1:
                with steps.waiting_for_data():
                    batch = mesh_lib.global_batch(mesh, next(batches))
            processes.report_progress(f'step {step}')
            profiler.before(step, state)
            with jax.profiler.StepTraceAnnotation('train', step_num=step):
                state = step_fn(state, batch)
            steps.keep_up(state)
            if profiler.after(step, state):
                progress.print(f'profile of steps {train.profile}: {workdir / profiling.FOLDER}')
            if step == start + 1:
                jax.block_until_ready(state)
                progress.print(
                    f'first step done {time.perf_counter() - began:.1f} s after the start'
                )
                steps = clock.StepClock(step)  # what comes before is the price of the start

            if step % train.log_every == 0:
                row = _train_row(state, train, float(learning_rate(step - 1)))
                times = steps.row(step, train.batch_size)
                on_device = _on_device(times['train/images_per_sec'], work)
                elapsed = {'train/elapsed_sec': time.perf_counter() - ready}
                writer.scalars(step, row | times | on_device | elapsed)
                progress.update(
                    step,
                    row['train/loss'],
                    row['train/learning_rate'],
                    times['train/images_per_sec'],
                    utilisation=on_device.get('train/model_flop_utilisation'),
                )
                _stop_if_diverged(state, train.max_skipped, workdir)
                if clock.is_input_bound(times) and not told_input_bound:
                    told_input_bound = True
                    progress.print(_input_bound(times, config), style='yellow')

            evaluation = None
            if step % train.eval_every == 0 or step == train.steps:
                jax.block_until_ready(state)  # so that training is not timed as evaluation
                paused = time.perf_counter()
                evaluation = evaluate_validation(state.eval_params, state.stats, progress)
                seconds = time.perf_counter() - paused
                writer.scalars(step, evaluation.row() | {'val/evaluation_sec': seconds})
                if first:
                    panels = evaluations.save(evaluation, dataset, step, workdir, single)
                    for name, panel in panels:
                        writer.image(step, f'validation/{name}', panel)
                iou = list(evaluation.iou.values())
                progress.print(iou_table(dataset.classes, iou, evaluation.miou, previous))
                if line := metrics_line(evaluation.scores):
                    progress.print(line)
                previous = iou
                steps.leave_out(time.perf_counter() - paused)

            stop = stop_requested(step)
            if evaluation or stop or step % train.checkpoint_every == 0:
                miou = None if evaluation is None else evaluation.miou
                checkpointer.save(step, state.to_trees(), miou=miou)
            if stop:
                break
    if first:
        print(f'report: {report.write(workdir)}')
    if stop and step < train.steps:
        processes.log_once(
            f'stopped by {stop} after step {step}, which is saved; the same command resumes'
        )
    return evaluation


def _train_row(
    state: state_lib.TrainState, train: ConfigDict, learning_rate: float
) -> dict[str, float]:
    """Means over the last `log_every` steps, without those that were skipped."""
    sums = jax.device_get(state.metric_sums)
    skipped = float(sums.pop('skipped'))
    steps = train.log_every - skipped
    means = {
        f'train/{name}': float(value) / steps if steps else float('nan')
        for name, value in sums.items()
    }
    return means | {'train/learning_rate': learning_rate, 'train/skipped_steps': skipped}


def _on_device(images_per_sec: float | None, work: float | None) -> dict[str, float]:
    """Model FLOP utilisation and device memory, where they are known.

    Args:
        images_per_sec: throughput of all devices.
        work: seconds that all devices need for one image at their peak.
    """
    row = {}
    if images_per_sec is not None and work is not None:
        row['train/model_flop_utilisation'] = images_per_sec * work
    if (peak := memory.peak()) is not None:
        row['train/device_memory_gib'] = peak / 2**30
    return row


def _input_bound(times: dict[str, float | None], config: ConfigDict) -> str:
    return (
        f'warning: the devices wait for data: {times["train/data_wait_sec"]:.3g} of '
        f'{times["train/step_sec"]:.3g} s a step. {advice.faster(config.data, advice.cores())}'
    )


def _stop_if_diverged(state: state_lib.TrainState, limit: int, workdir: pathlib.Path) -> None:
    skipped = int(state.consecutive_skips)
    if skipped >= limit:
        raise NotFinite(
            f'loss or gradients were not finite in the last {skipped} steps up to step '
            f'{int(state.step)}, which were skipped. Lower config.train.learning_rate or check the '
            f'data with --mode=doctor; checkpoints are in {workdir}'
        )
