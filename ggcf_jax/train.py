"""Training, from the configuration to the report: read it from top to bottom."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import numpy as np
from absl.flags import FlagValues
from flax import nnx
from ml_collections import ConfigDict

from ggcf_jax import config as config_lib
from ggcf_jax import data, evaluate, models, places
from ggcf_jax.data import advice, pipeline, teaching
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.display.console import Progress, facts, iou_table, metrics_line
from ggcf_jax.distributed import chips, cpu_devices, platforms, processes
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.distributed.preemption import (
    Interrupted,
    interruptible,
    synchronized_stop_requests,
)
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import evaluator, inference, metrics
from ggcf_jax.evaluation.results import Evaluation
from ggcf_jax.models import stacking
from ggcf_jax.training import (
    auto_fields,
    clock,
    flops,
    hosts,
    memory,
    objective,
    optim,
    overview,
    parameter_groups,
    patience,
    profiling,
    train_step,
    warm_start,
)
from ggcf_jax.training import state as state_lib
from ggcf_jax.workdir import (
    checkpoints,
    claim,
    evaluations,
    lease,
    metrics_log,
    provenance,
    report,
)
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir.config import Segment
from ggcf_jax.workdir.metrics_log import NoWriter, Writer

_NOTHING_LOST = 'before the first step: nothing is lost'


class NotFinite(InputError):
    """Loss or gradients were not finite for too many steps in a row."""


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=train`: reads `--accept_changes` and `--log_format`."""
    echo = functools.partial(print, flush=True) if flags.log_format == 'json' else None
    train_and_evaluate(config, workdir, accept_changes=flags.accept_changes, echo=echo)
    return 0


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    accept_changes: bool = False,
    echo: Callable[[str], None] | None = None,
) -> Evaluation | None:
    """Trains until `config.train.steps`, with evaluations and checkpoints on the way.

    Resumes from the newest checkpoint of `workdir`; on the CPUs of one machine an interrupted and
    resumed run ends in the same bits as an uninterrupted one (docs/faults.md). SIGTERM, Ctrl-C,
    SIGHUP or SIGUSR1 save a checkpoint and return. A finished run is only evaluated.

    In a run of several processes (`processes.joined`) all call this; process 0 alone prints and
    writes into the workdir, except for its share of each checkpoint.

    Args:
        config: configuration, see `ggcf_jax.config.default`.
        workdir: directory of the run, made if missing.
        accept_changes: whether a run goes on although `config`, the classes or the number of images
            are not those that it was trained with (`workdir.claim`). The change begins a new
            segment of the run, which config.json, metrics.jsonl and the report record.
        echo: called with each line of metrics.jsonl, for logs that are searched.

    Returns:
        The last evaluation; None if the run was told to stop before it.

    Raises:
        InputError: the configuration, the data or the workdir cannot be used.
        NotFinite: training diverged; the workdir keeps the last checkpoints.
    """
    began = time.perf_counter()
    workdir = places.expand(workdir)
    config = _resolved(config, workdir)
    this = _checked(config, workdir, accept_changes=accept_changes)
    with contextlib.ExitStack() as stack:
        if processes.is_process_zero():
            held = stack.enter_context(lease.taken(this.workdir))
            # Again, since another process may have written there until now.
            claimed = claim.check(config, this.dataset, this.workdir, accept_changes=accept_changes)
            this = dataclasses.replace(this, claimed=claimed, held=held)
        return _train(_prepared(this), began, echo)


@dataclasses.dataclass(frozen=True)
class _Start:
    """A start that has passed the checks.

    Attributes:
        config: configuration.
        dataset: its data set.
        workdir: directory of the run.
        mesh: devices.
        class_weights: weight of each class in the losses, () for equal ones.
        claimed: how it relates to the run in the workdir; None but on process 0.
        held: the lease on the workdir; None but on process 0.
    """

    config: ConfigDict
    dataset: Dataset
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    class_weights: tuple[float, ...]
    claimed: claim.Claim | None = None
    held: lease.Lease | None = None


@dataclasses.dataclass(frozen=True)
class _Run:
    """Everything that the training loop works with.

    Attributes:
        start: what was checked.
        checkpointer: checkpoints of the run.
        state: the newest one, or the initial state.
        step_fn: compiled training step.
        batches: batches from the step of the state on.
        evaluate: evaluator of the validation split.
        segments: segments of the run; () but on process 0.
        weights: where the state comes from, in words.
        work: seconds that all devices need for one image at their peak; None where that is unknown.
    """

    start: _Start
    checkpointer: checkpoints.Checkpointer
    state: state_lib.TrainState
    step_fn: jax.stages.Wrapped
    batches: Generator[pipeline.Batch, None, None]
    evaluate: evaluator.Evaluator
    segments: tuple[Segment, ...]
    weights: str
    work: float | None


@interruptible(_NOTHING_LOST)
def _resolved(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """Fields that are 'auto' get their values: process 0 reads the weights for all."""
    if not auto_fields.asked(config):
        return config
    text = ''
    if processes.is_process_zero():
        text = workdir_config.to_text(auto_fields.resolve(config, workdir))
    return workdir_config.from_text(processes.text_from_process_zero(text))


@interruptible(_NOTHING_LOST)
def _checked(config: ConfigDict, workdir: pathlib.Path, *, accept_changes: bool) -> _Start:
    """Whatever can be wrong is found before anything expensive or lasting is done."""
    train = config.train
    config_lib.check(config, jax.device_count())
    network = models.abstract(config, num_classes=1)
    mesh = mesh_lib.make_mesh(_devices(train, config.data.crop_size, network), config.mesh.space)
    mesh_lib.shard(mesh)
    inference.build(config)
    metrics.build(config)
    first = processes.is_process_zero()
    if first and not checkpoints.exists(workdir):  # a resumed run needs no weights
        warm_start.check(config)
    with processes.process_zero_first():
        dataset = data.build(config.data)
    stacks = models.stacks(*network)
    optim.optimizer(train, stacks)
    parameter_groups.build(train, stacks).check(network[1])
    objective.build(train, ())
    profiling.parse(train.profile, train.steps)
    data.check_writable(config, dataset)
    with processes.process_zero_first():
        class_weights = data.class_weights_of(config, dataset)
    if first:
        claim.check(config, dataset, workdir, accept_changes=accept_changes)
    return _Start(config, dataset, workdir, mesh, class_weights)


def _devices(
    train: ConfigDict,
    crop_size: tuple[int, int],
    network: tuple[nnx.GraphDef, nnx.State, nnx.State],
) -> Sequence[jax.Device]:
    pixels = train.batch_size // train.accumulate * math.prod(crop_size)
    stacks = models.unstacked_for(mesh_lib.make_mesh(jax.devices()), *network)
    params = jax.eval_shape(functools.partial(stacking.unstack, stacks=stacks), network[1])
    return cpu_devices.of_training(params, pixels)


@interruptible(_NOTHING_LOST)
def _prepared(this: _Start) -> _Run:
    """The network, its state on the mesh, its batches; the workdir is written at the end."""
    config, dataset, workdir, mesh = this.config, this.dataset, this.workdir, this.mesh
    network = models.abstract(config, dataset.num_classes)
    graphdef, _, _ = network
    checkpointer = checkpoints.Checkpointer(workdir)
    weights: list[str] = []
    state = _initial_state(this, checkpointer, weights.append)
    start = int(state.step)
    if start:
        weights.append(f'checkpoint of step {start}')
    step_fn = train_step.build(config.train, this.class_weights, network, mesh)
    with processes.process_zero_first():
        batches = data.training_batches(
            config,
            dataset,
            start,
            mesh_lib.shard(mesh),
            niceness=cpu_devices.niceness_beside(mesh),
        )
    evaluate_validation = evaluator.Evaluator(
        evaluator.make_eval_step(
            graphdef,
            dataset.num_classes,
            mesh,
            inference.of_training(config),
            objective.build(config.train, this.class_weights).loss
            if config.train.validation_loss
            else None,
        ),
        data.evaluation_batches(config, dataset, 'validation'),
        mesh,
        loader=data.loader_options(config.data),
        metrics=metrics.build(config),
        num_samples=config.eval.panels,
    )
    peak = chips.peak_flops(mesh.devices.flat[0].device_kind)
    work = (
        None
        if peak is None
        else flops.of_training(
            graphdef,
            state.params,
            state.stats,
            tuple(config.data.crop_size),
            parameter_groups.build(
                config.train, models.stacks(graphdef, state.params, state.stats)
            ).is_frozen(state.params),
        )
        / (peak * mesh.size)
    )
    if this.claimed is not None:
        _check_space(state, this)
    state = state.unstacked(models.unstacked_for(mesh, *network))
    # Every check has passed: from here on the workdir is written.
    segments = () if this.claimed is None else this.claimed.save(start)
    return _Run(
        this,
        checkpointer,
        state,
        step_fn,
        batches,
        evaluate_validation,
        segments,
        '; '.join(weights),
        work,
    )


def _train(run: _Run, began: float, echo: Callable[[str], None] | None) -> Evaluation | None:
    this, state, checkpointer = run.start, run.state, run.checkpointer
    config, workdir, train = this.config, this.workdir, this.config.train
    first = processes.is_process_zero()
    learning_rate = optim.schedule(train)
    start = int(state.step)
    # An evaluation that was interrupted, or failed, is made up for: the step before was saved.
    is_due = start > 0 and _is_evaluated(start, train) and not checkpointer.scored(start)
    # Sums of metrics begin anew where the number of steps that they are taken over changes, or
    # what is summed.
    resetting = {'train.log_every', 'train.gradient_norms'}
    changed = [each.step for each in run.segments if resetting & each.changes.keys()]
    since = int(processes.broadcast_from_process_zero(np.int32(max(changed, default=0))))
    if since == start > 0:
        state = state.without_metrics()
    is_new_segment = _tell_segment(run.segments, start, workdir)
    before = start - 1 if is_due else start
    mious = patience.history(metrics_log.read_rows(workdir), before) if first else []
    if (start >= train.steps or _is_over(mious, train)) and not is_due:
        processes.log_once(f'{workdir}: finished at step {start}; only evaluating')
        return evaluate.evaluate_workdir(config, workdir, 'validation', 'best')
    if start:
        processes.log_once(f'{workdir}: resuming at step {start} of {train.steps}')
    machines = processes.host_names()
    if first:
        with places.writing(workdir, '--workdir'):
            provenance.save(workdir, machines, this.mesh)

    plan = overview.rows(config, this.mesh, this.dataset, state, run.weights)
    idle = platforms.unused(
        platforms.gpus_of_machine(), jax.local_device_count() * processes.on_this_machine()
    )
    profiled = profiling.parse(train.profile, train.steps)

    evaluation = stop = None
    ready = time.perf_counter()
    with (
        jax.set_mesh(this.mesh),
        contextlib.closing(checkpointer),
        contextlib.closing(run.batches),
        Writer(workdir, start, evaluate_again=is_due, echo=echo) if first else NoWriter() as writer,
        Progress(train.steps, start, processes.console()) as progress,
        synchronized_stop_requests() as stop_requested,
        contextlib.closing(
            profiling.Profiler(profiled if first else None, workdir / profiling.FOLDER)
        ) as profiler,
    ):
        progress.print(facts(plan))
        if idle:
            progress.print(f'warning: {idle}', style='yellow')
        validation = _Validation(run, mious, writer, progress, stop_requested)
        if is_new_segment:
            writer.scalars(start, {'run/segment': len(run.segments)})
        if is_due:
            evaluation = validation(start, state)
        over = is_due and _is_over(mious, train)
        last = start if validation.interrupted or over else train.steps
        if start < last:
            batch = _compiled_together(run, state, progress)
        steps = clock.StepClock(start)
        told_input_bound = False
        watch = teaching.LabelWatch(this.dataset.classes)
        others = hosts.HostWatch(machines)
        of_start: dict[str, float] = {}  # metrics of the next row alone
        for step in range(start + 1, last + 1):
            if step > start + 1:
                with steps.waiting_for_data():
                    local = next(run.batches)
                    batch = mesh_lib.global_batch(this.mesh, local)
                if warning := watch.add(local['label']):
                    progress.print(warning, style='yellow')
            processes.report_progress(f'step {step}')
            profiler.before(step, state)
            with (
                _training_memory(),
                jax.profiler.StepTraceAnnotation('train', step_num=step),
            ):
                state = run.step_fn(state, batch)
                steps.keep_up(state)
            if profiler.after(step, state):
                progress.print(f'profile of steps {train.profile}: {workdir / profiling.FOLDER}')
            if step == start + 1:
                with _training_memory(), interruptible(_NOTHING_LOST):
                    jax.block_until_ready(state)
                of_start = {'run/start_sec': time.perf_counter() - began}
                progress.print(f'first step done {of_start["run/start_sec"]:.1f} s after the start')
                steps = clock.StepClock(step)  # what comes before is the price of the start

            if step % train.log_every == 0:
                counted = min(train.log_every, step - since)
                row = _train_row(state, counted, float(learning_rate(step - 1)))
                times = steps.row(step, train.batch_size)
                on_device = _on_device(times['train/images_per_sec'], run.work)
                elapsed = {'train/elapsed_sec': time.perf_counter() - ready}
                waits, slow = others.row(times)
                compiling = _compiling(progress)
                writer.scalars(
                    step, row | times | waits | on_device | elapsed | of_start | compiling
                )
                of_start = {}
                progress.update(
                    step,
                    row['train/loss'],
                    row['train/learning_rate'],
                    times['train/images_per_sec'],
                    utilisation=on_device.get('train/model_flop_utilisation'),
                )
                _stop_if_diverged(state, train.max_skipped, workdir)
                if slow:
                    progress.print(slow, style='yellow')
                if clock.is_input_bound(times) and not told_input_bound:
                    told_input_bound = True
                    progress.print(_input_bound(times, config), style='yellow')

            evaluation, stop = None, stop_requested()
            if stop or _is_saved(step, train):
                if this.held is not None:
                    this.held.check()
                writer.upload()
                checkpointer.save(step, state.to_trees())
            if not stop and _is_evaluated(step, train):
                jax.block_until_ready(state)  # so that training is not timed as evaluation
                paused = time.perf_counter()
                evaluation = validation(step, state)
                steps.leave_out(time.perf_counter() - paused)
                over = step < last and _is_over(mious, train)
            if stop or validation.interrupted or over:
                break
    if over and not stop and not validation.interrupted:
        processes.log_once(
            f'stopped early: no better mIoU in {train.patience} evaluations; a higher '
            '--config.train.patience, or 0, goes on'
        )
    if validation.interrupted:
        processes.log_once(str(validation.interrupted))
    elif stop:
        processes.log_once(
            f'stopped by {stop} after step {step}, which is saved; the same command resumes'
        )
    if first:
        with places.writing(workdir, '--workdir'):
            print(f'report: {report.write(workdir)}')
    return evaluation


def _compiled_together(run: _Run, state: state_lib.TrainState, progress: Progress) -> Any:
    """Compiles the training step on all processes; returns the first batch."""
    with _training_memory(), interruptible(_NOTHING_LOST):
        batch = mesh_lib.global_batch(run.start.mesh, next(run.batches))
        with progress.compiling('the training step'):
            compiled = processes.compile_together(run.step_fn, state, batch)
    if (needed := memory.needed(compiled)) is not None:
        limit = memory.text(memory.limit(run.start.mesh.local_devices))
        progress.print(f'the training step needs {memory.text(needed)} of {limit} on each device')
    return batch


class _Validation:
    """Evaluates states that are saved, and writes what comes of it.

    Attributes:
        interrupted: the stop request that ended an evaluation; None if there was none.
        mious: validation mIoU of all evaluations of the run, on process 0.
    """

    def __init__(
        self,
        run: _Run,
        mious: list[float],
        writer: Writer | NoWriter,
        progress: Progress,
        stop_requested: Callable[[], str | None],
    ):
        self._run = run
        self._writer = writer
        self._progress = progress
        self._stop_requested = stop_requested
        self._previous: list[float | None] | None = None
        self.interrupted: Interrupted | None = None
        self.mious = mious

    def __call__(self, step: int, state: state_lib.TrainState) -> Evaluation | None:
        """Evaluates a state.

        Args:
            step: its step, which has been saved.
            state: the state.

        Returns:
            The evaluation; None if it was interrupted, which the next start makes up for.
        """
        began = time.perf_counter()
        where = f'during the evaluation of step {step}, which is saved; the same command resumes'
        try:
            with (
                interruptible(where, finish=self._finish, code=0),
                memory.explained(
                    'the evaluation',
                    'repeat the command with a lower --config.eval.batch_size, and if that is one '
                    'image a device, with a lower --config.eval.size_multiple; the run goes on '
                    'from the step that is saved',
                ),
            ):
                evaluation = self._run.evaluate(
                    state.eval_params,
                    state.eval_stats,
                    self._progress,
                    functools.partial(self._check_stop, where),
                )
        except Interrupted as interrupted:
            self.interrupted = interrupted
            return None
        self._keep(evaluation, step, seconds=time.perf_counter() - began)
        return evaluation

    def _check_stop(self, where: str) -> None:
        """One process is interrupted where it is, several only together."""
        if jax.process_count() > 1 and (stop := self._stop_requested()):
            raise Interrupted(stop, where)

    def _finish(self) -> None:
        """What is left to do where the main thread cannot: see `preemption.interruptible`."""
        self._run.checkpointer.finish_writing()
        if self._run.start.held is not None:
            self._run.start.held.release()

    def _keep(self, evaluation: Evaluation, step: int, *, seconds: float) -> None:
        dataset, workdir = self._run.start.dataset, self._run.start.workdir
        times = {'val/evaluation_sec': seconds} | _compiling(self._progress)
        self._writer.scalars(step, evaluation.row() | times)
        if processes.is_process_zero():
            config = self._run.start.config
            plan = inference.of_training(config)
            made = evaluations.conditions('training', plan, config, dataset, 'validation')
            with places.writing(workdir, '--workdir'):
                panels = evaluations.save(evaluation, dataset, step, workdir, made)
            for name, panel in panels:
                self._writer.image(step, f'validation/{name}', panel)
        self._writer.upload()
        # Last, since a step with a score is not evaluated again.
        self._run.checkpointer.score(step, evaluation.miou)
        iou = list(evaluation.iou.values())
        self._progress.print(iou_table(dataset.classes, iou, evaluation.miou, self._previous))
        if line := metrics_line(evaluation.scores):
            self._progress.print(line)
        if evaluation.loss is not None:
            self._progress.print(f'validation loss {evaluation.loss:.4f}')
        self._previous = iou
        self.mious.append(evaluation.miou)


def _is_over(mious: Sequence[float], train: ConfigDict) -> bool:
    """Whether patience is exhausted; process 0, which has the evaluations, decides for all."""
    over = patience.is_exhausted(mious, train.patience)
    return bool(processes.broadcast_from_process_zero(np.bool_(over)))


def _is_evaluated(step: int, train: ConfigDict) -> bool:
    return step % train.eval_every == 0 or step == train.steps


def _is_saved(step: int, train: ConfigDict) -> bool:
    return _is_evaluated(step, train) or step % train.checkpoint_every == 0


def _check_space(state: state_lib.TrainState, this: _Start) -> None:
    """Refuses a disk that the checkpoints of the run do not fit on."""
    train, start = this.config.train, int(state.step)
    saves = sum(_is_saved(step, train) for step in range(start + 1, train.steps + 1))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.to_trees()))
    needed = size * checkpoints.further(this.workdir, saves)
    places.check_writable(this.workdir, '--workdir', needed=needed)


def _training_memory() -> contextlib.AbstractContextManager[None]:
    return memory.explained(
        'the training step',
        'raise config.train.accumulate, set config.train.remat=inplace_abn or block, or lower '
        'config.data.crop_size or config.train.batch_size (docs/memory.md); a run that has '
        'checkpoints accepts all of these but remat with --accept_changes only',
    )


def _initial_state(
    this: _Start, checkpointer: checkpoints.Checkpointer, report: Callable[[str], None]
) -> state_lib.TrainState:
    """The newest checkpoint, or the state at step 0 if there is none; reports its weights."""
    config, classes = this.config, this.dataset.num_classes
    fresh = state_lib.creator(config, classes, this.mesh)()
    trained = None if this.claimed is None else this.claimed.trained
    changes: set[str] = set()
    if this.claimed is not None:
        # The norms of layers are sums in the state.
        changes = {*this.claimed.changes} | ({*this.claimed.noted} & {'train.gradient_norms'})
    text = ''
    if trained is not None and any(name.startswith('train.') for name in changes):
        text = workdir_config.to_text(trained)
    if text := processes.text_from_process_zero(text):
        # A checkpoint has the arrays of the optimiser that it was trained with.
        trained = workdir_config.from_text(text)
        saved = state_lib.creator(trained, classes, this.mesh)()
    else:
        saved = fresh
    trees = checkpointer.restore_latest(saved.to_trees())
    if trees is None:
        return warm_start.with_weights(config, fresh, report, classes=this.dataset.classes)
    return state_lib.continued(state_lib.TrainState.from_trees(trees), fresh, processes.log_once)


def _tell_segment(segments: Sequence[Segment], start: int, workdir: pathlib.Path) -> bool:
    """Prints what changes where a new segment begins; returns whether metrics.jsonl lacks it."""
    if not segments or segments[-1].step != start:
        return False
    changes = segments[-1].changes.items()
    text = ', '.join(f'{name} {old!r} -> {new!r}' for name, (old, new) in changes)
    print(f'{workdir}: segment {len(segments)} of the run begins after step {start}: {text}')
    rows = metrics_log.read_rows(workdir)
    return (start, len(segments)) not in {(row['step'], row.get('run/segment')) for row in rows}


def _train_row(state: state_lib.TrainState, steps: int, learning_rate: float) -> dict[str, float]:
    """Means over the last steps, without those that were skipped."""
    sums = jax.device_get(state.metric_sums)
    skipped = float(sums.pop('skipped'))
    counted = steps - skipped
    means = {
        f'train/{name}': float(value) / counted if counted else float('nan')
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


def _compiling(progress: Progress) -> dict[str, float]:
    """Seconds that programs were compiled for since the last row; {} for none."""
    seconds = progress.compile_seconds()
    return {'run/compile_sec': seconds} if seconds else {}


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
            f'{int(state.step)}, which were skipped. Lower config.train.learning_rate and add '
            f'--accept_changes to go on from the last checkpoint in {workdir}, or check the data '
            'with --mode=doctor'
        )
