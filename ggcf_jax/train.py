"""Training, from the configuration to the report: read it from top to bottom."""

import pathlib
import time

import jax

from ggcf_jax import checkpoint, data, evaluate, models, optim, provenance, report
from ggcf_jax import config as config_lib
from ggcf_jax import mesh as mesh_lib
from ggcf_jax import start as start_lib
from ggcf_jax import state as state_lib
from ggcf_jax.console import Progress, iou_table
from ggcf_jax.data import pipeline, transforms
from ggcf_jax.errors import InputError
from ggcf_jax.interrupt import stop_requests
from ggcf_jax.train_step import make_train_step
from ggcf_jax.writer import Writer


class NotFinite(RuntimeError):
    """Loss or gradients were not finite for too many steps in a row."""


def train_and_evaluate(config, workdir: str | pathlib.Path) -> evaluate.Evaluation | None:
    """Trains until `config.train.steps`, evaluating and saving on the way.

    Resumes from the newest checkpoint of `workdir`; on one machine an interrupted and resumed run
    ends in the same bits as an uninterrupted one. SIGTERM or Ctrl-C save and return. A run that
    is finished already is only evaluated.

    Args:
        config: a configuration, see `configs/`.
        workdir: directory of the run, made if missing.

    Returns:
        The last evaluation; None if the run was told to stop before.

    Raises:
        InputError: something in the configuration, the data or the workdir is wrong.
        NotFinite: training diverged; the workdir keeps the last checkpoints.
    """
    workdir = pathlib.Path(workdir)
    train = config.train

    # What can be wrong is found before anything expensive or lasting is done.
    config_lib.check(config, jax.device_count())
    models.abstract(config, num_classes=1)
    if not checkpoint.exists(workdir):  # a run that resumes does not need the weights any more
        start_lib.check(config)
    dataset = data.build(config.data)
    if len(train.class_weights) not in (0, dataset.num_classes):
        raise InputError(
            f'config.train.class_weights has {len(train.class_weights)} numbers, but data set '
            f'{dataset.name!r} has {dataset.num_classes} classes; give one a class, or () for none'
        )
    config_lib.claim_workdir(config, workdir)

    # The network, its state on the mesh, and the newest checkpoint if there is one.
    mesh = mesh_lib.make_mesh()
    graphdef, _, _ = models.abstract(config, dataset.num_classes)
    tx = optim.optimizer(train)

    def create() -> state_lib.TrainState:
        return state_lib.create(models.build(config, dataset.num_classes), tx, config.seed)

    state = jax.jit(create, out_shardings=mesh_lib.replicated(mesh))()
    checkpointer = checkpoint.Checkpointer(workdir)
    state = checkpointer.restore_latest(state) or start_lib.with_weights(config, state)
    start = int(state.step)
    if start >= train.steps:
        print(f'{workdir}: finished at step {start}; only evaluating')
        checkpointer.close()
        return evaluate.evaluate_workdir(config, workdir, 'validation', 'best')
    if start:
        print(f'{workdir}: resuming at step {start} of {train.steps}')
    provenance.save(workdir)

    # The two compiled functions and the data.
    train_step = jax.jit(
        make_train_step(
            graphdef,
            tx,
            aux_weight=train.aux_weight,
            class_weights=tuple(train.class_weights),
            accumulate=train.accumulate,
            log_every=train.log_every,
        ),
        donate_argnums=0,
        out_shardings=mesh_lib.replicated(mesh),
    )
    eval_step = evaluate.make_eval_step(graphdef, dataset.num_classes, mesh)
    learning_rate = optim.schedule(train)
    batches = pipeline.train_batches(
        dataset,
        'train',
        transforms.TrainTransform(tuple(config.data.crop_size), tuple(config.data.scale_range)),
        seed=config.seed,
        batch_size=train.batch_size,
        start_step=start,
        shard=pipeline.Shard(jax.process_index(), jax.process_count()),
        threads=config.data.threads,
    )

    evaluation = previous = None
    began = window = time.perf_counter()
    with (
        jax.set_mesh(mesh),
        Writer(workdir, start) as writer,
        Progress(train.steps, start) as progress,
        stop_requests() as stop_requested,
    ):
        for step in range(start + 1, train.steps + 1):
            state = train_step(state, mesh_lib.global_batch(mesh, next(batches)))

            if step % train.log_every == 0:
                row = _train_row(state, train, float(learning_rate(step - 1)))
                now = time.perf_counter()
                images_per_sec = train.batch_size * train.log_every / (now - window)
                row |= {'train/images_per_sec': images_per_sec, 'train/elapsed_sec': now - began}
                writer.scalars(step, row)
                progress.update(step, row['train/loss'], row['train/learning_rate'], images_per_sec)
                _stop_if_diverged(state, train.max_skipped, workdir)
                window = now

            evaluation = None
            if step % train.eval_every == 0 or step == train.steps:
                jax.block_until_ready(state)  # or the evaluation's time would hold training's
                paused = time.perf_counter()
                evaluation = evaluate.evaluate(
                    eval_step,
                    state.params,
                    state.stats,
                    dataset,
                    'validation',
                    image_size=tuple(config.eval.image_size),
                    batch_size=config.eval.batch_size,
                    num_samples=config.eval.panels,
                    mesh=mesh,
                    progress=progress,
                )
                seconds = time.perf_counter() - paused
                writer.scalars(step, evaluation.row() | {'val/evaluation_sec': seconds})
                for name, panel in evaluate.save(evaluation, dataset, step, workdir):
                    writer.image(step, f'validation/{name}', panel)
                iou = list(evaluation.iou.values())
                progress.print(iou_table(dataset.classes, iou, evaluation.miou, previous))
                previous = iou
                window += time.perf_counter() - paused

            stop = stop_requested()
            if evaluation or stop or step % train.checkpoint_every == 0:
                checkpointer.save(state, evaluation.miou if evaluation else None)
            if stop:
                break
    checkpointer.close()
    print(f'report: {report.write(workdir)}')
    if stop and step < train.steps:
        print(f'stopped by {stop} after step {step}, which is saved; the same command resumes')
    return evaluation


def _train_row(state: state_lib.TrainState, train, learning_rate: float) -> dict[str, float]:
    """Means over the last `log_every` steps; skipped ones count only as skipped."""
    sums = jax.device_get(state.running)
    skipped = float(sums.pop('skipped'))
    steps = train.log_every - skipped
    means = {
        f'train/{name}': float(value) / steps if steps else float('nan')
        for name, value in sums.items()
    }
    return means | {'train/learning_rate': learning_rate, 'train/skipped_steps': skipped}


def _stop_if_diverged(state: state_lib.TrainState, limit: int, workdir: pathlib.Path) -> None:
    skipped = int(state.skipped)
    if skipped >= limit:
        raise NotFinite(
            f'loss or gradients were not finite in the last {skipped} steps until step '
            f'{int(state.step)}; parameters are those of before. Lower '
            f'config.train.learning_rate or look at the data; checkpoints are in {workdir}'
        )
