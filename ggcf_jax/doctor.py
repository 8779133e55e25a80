"""Examination of a configuration, its data and this machine before hours are spent on training."""

import contextlib
import itertools
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl.flags import FlagValues
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from ggcf_jax import config as config_lib
from ggcf_jax import data, models
from ggcf_jax.data import mixture, pipeline
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.data.scan import Scan, scan
from ggcf_jax.display import pictures
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.training import losses, optim, train_step, warm_start
from ggcf_jax.training import state as state_lib

SHOWN = 10  # number of problems of a split that are printed
SAMPLES = 8  # number of augmented training samples in the picture
SECONDS = 5.0  # for which a throughput is measured


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=doctor`: examines this machine alone."""
    return 0 if examine(config, workdir) else 1


class Findings:
    """Prints and counts what was found.

    Attributes:
        errors: number of errors so far.
        warnings: number of warnings so far.
    """

    def __init__(self, progress: Progress):
        """
        Args:
            progress: display that prints the findings.
        """
        self._print = progress.print
        self.errors = 0
        self.warnings = 0

    def say(self, text: str | Table) -> None:
        """Prints a fact or a table."""
        self._print(text)

    def warning(self, text: str) -> None:
        """Prints and counts something that may be wrong."""
        self.warnings += 1
        self._print(f'warning: {text}', style='yellow')

    def error(self, text: str) -> None:
        """Prints and counts something that keeps the training from working."""
        self.errors += 1
        self._print(f'error: {text}', style='red')


def examine(config: ConfigDict, workdir: str | pathlib.Path) -> bool:
    """Examines a configuration, its data and this machine, and prints a verdict.

    Writes `doctor/report.txt` and `doctor/samples.png` (augmented training samples and their
    labels) into the workdir, which is not claimed for a run.

    Args:
        config: configuration to examine.
        workdir: directory of the planned run.

    Returns:
        Whether nothing was found that keeps the training from working.
    """
    folder = pathlib.Path(workdir) / 'doctor'
    console = Console(record=True)
    with Progress(console=console) as progress:
        found = Findings(progress)
        with _reported(found):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f'workdir {str(workdir)!r} cannot be written: {error}') from error
            _examine(config, folder, found, progress)
        if found.errors:
            errors = _counted(found.errors, 'error')
            verdict = f'not ready: {errors}, {_counted(found.warnings, "warning")}'
        else:
            verdict = f'ready to train, {_counted(found.warnings, "warning")}'
        found.say(f'\n{verdict}')
    with contextlib.suppress(OSError):  # reported above
        console.save_text(str(folder / 'report.txt'))
    return not found.errors


def _counted(number: int, noun: str) -> str:
    """'1 error', '2 errors'."""
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


@contextlib.contextmanager
def _reported(found: Findings) -> Iterator[None]:
    """Reports an error and goes on, so that it does not hide what is wrong with other things."""
    try:
        yield
    except InputError as error:
        found.error(str(error))


def _examine(config: ConfigDict, folder: pathlib.Path, found: Findings, progress: Progress) -> None:
    devices = jax.devices()
    found.say(f'devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform})')
    with _reported(found):
        config_lib.check(config, len(devices))
    with _reported(found):
        models.abstract(config, num_classes=1)
        inference.build(config)
        optim.optimizer(config.train)
        losses.build(config.train, ())
        warm_start.check(config)
    if found.errors:
        return
    dataset = data.build(config.data)
    parts = mixture.parse(config.data.train_split)
    mixture.records(dataset, parts)
    splits = dict.fromkeys([*(split for part in parts for split in part.splits), 'validation'])
    scans = {}
    for split in splits:
        count = len(dataset.source(split))
        with progress.working('read', 'read', count, split) as advance:
            scans[split] = scan(dataset, split, config.data.threads, advance)
    for look in scans.values():
        _tell_split(look, found)
    found.say(_class_table(dataset, list(scans.values())))
    _judge_classes(dataset, scans, found)
    if found.errors:
        found.say('the pipeline and the training step are not tried with such data')
        return

    shard = pipeline.Shard()
    batches = data.training_batches(config, dataset, 0, shard)
    with contextlib.closing(batches):
        batch = _draw_samples(batches, dataset, folder / 'samples.png')
        found.say(f'augmented samples: {folder / "samples.png"}')
        rate = _pipeline_rate(batches, config.train.batch_size)
    found.say(
        f'pipeline: {rate:.1f} images/s with {config.data.threads} threads and '
        f'{config.data.workers} workers'
    )
    weights = data.class_weights_of(config, dataset)
    _try_step(config, dataset, weights, batch, rate, folder, found)


def _tell_split(look: Scan, found: Findings) -> None:
    sizes = look.sizes.most_common(4)
    common = ', '.join(f'{n} of {h} x {w}' for (h, w), n in sizes)
    more = f' and {len(look.sizes) - 4} more sizes' if len(look.sizes) > 4 else ''
    found.say(
        f'{look.split}: {look.count} images: {common}{more}; {look.ignored_share:.1%} of the '
        'pixels have no class'
    )
    if look.problems:
        shown = ''.join(f'\n  {problem}' for problem in look.problems[:SHOWN])
        rest = len(look.problems) - SHOWN
        more = f'\n  and {rest} more' if rest > 0 else ''
        found.error(f'{len(look.problems)} of {look.split} cannot be used:{shown}{more}')
    if look.ignored_share > 0.5:
        found.warning(
            f'{look.ignored_share:.0%} of the pixels of {look.split} have no class; is the map '
            'from label values to classes right?'
        )


def _class_table(dataset: Dataset, scans: list[Scan]) -> Table:
    table = Table(title='classes: share of the labelled pixels, images', title_justify='left')
    table.add_column('class')
    for look in scans:
        table.add_column(look.split, justify='right')
    for c, name in enumerate(dataset.classes):
        cells = (
            f'{look.pixels[c] / max(look.pixels.sum(), 1):.3%}  {look.images[c]:6d}'
            for look in scans
        )
        table.add_row(name, *cells)
    return table


def _judge_classes(dataset: Dataset, scans: dict[str, Scan], found: Findings) -> None:
    of_training = [look.images for split, look in scans.items() if split != 'validation']
    trained = np.sum(of_training or [scans['validation'].images], axis=0)
    for c, name in enumerate(dataset.classes):
        if not trained[c]:
            found.warning(f'class {name!r} is in no training image and cannot be learned')
        elif not scans['validation'].images[c]:
            found.warning(f'class {name!r} is in no validation image and is not measured')


def _draw_samples(
    batches: Iterator[pipeline.Batch], dataset: Dataset, path: pathlib.Path
) -> pipeline.Batch:
    """Writes a picture of augmented samples above their labels; returns the first batch."""
    first = next(batches)
    drawn = list(
        itertools.islice(
            itertools.chain.from_iterable(
                zip(b['image'], b['label']) for b in itertools.chain([first], batches)
            ),
            SAMPLES,
        )
    )
    columns = [
        np.concatenate([image, pictures.colorize(label, dataset.colors, IGNORE)])
        for image, label in drawn
    ]
    half = len(columns) // 2
    rows = [np.concatenate(columns[i : i + half], axis=1) for i in range(0, len(columns), half)]
    pictures.write_png(path, np.concatenate(rows))
    return first


def _pipeline_rate(batches: Iterator[pipeline.Batch], batch_size: int) -> float:
    """Images per second, measured after the prefetched batches are used up."""
    for _ in range(pipeline.LoaderOptions().buffer):
        next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        next(batches)
        count += batch_size
    return count / (time.perf_counter() - began)


def _try_step(
    config: ConfigDict,
    dataset: Dataset,
    weights: tuple[float, ...],
    batch: pipeline.Batch,
    rate: float,
    folder: pathlib.Path,
    found: Findings,
) -> None:
    """Compiles the training step, and runs it if it fits into memory."""
    mesh = mesh_lib.make_mesh(space=config.mesh.space)
    graphdef, _, _ = models.abstract(config, dataset.num_classes)
    with jax.set_mesh(mesh):
        create = state_lib.creator(config, dataset.num_classes, mesh)
        shapes = jax.eval_shape(create)
        arrays = mesh_lib.global_batch(mesh, batch)
        began = time.perf_counter()
        step = (
            train_step.build(config.train, weights, graphdef, mesh).lower(shapes, arrays).compile()
        )
        seconds = time.perf_counter() - began
        memory: Any = step.memory_analysis()
        needed = (
            memory.temp_size_in_bytes
            + memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
        )
        limit = _memory_limit()
        found.say(
            f'training step: compiled in {seconds:.0f} s; needs {needed / 2**30:.2f} of '
            f'{limit / 2**30:.1f} GiB on each device, as compiled'
        )
        _judge_disk(shapes, folder, found)
        if needed > limit:
            found.error(
                'the training step does not fit the device: lower config.train.batch_size or '
                'config.data.crop_size, or raise config.train.accumulate'
            )
            return
        state = jax.block_until_ready(step(create(), arrays))
        if int(state.consecutive_skips):
            found.error('the first training step gave a loss or gradients that are not finite')
            return
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            state = jax.block_until_ready(step(state, arrays))
            count += 1
        need = count * config.train.batch_size / (time.perf_counter() - began)
    found.say(f'training step: {need:.1f} images/s')
    if rate < need:
        found.warning(
            f'the pipeline makes {rate:.1f} images/s, the step needs {need:.1f}: raise '
            "config.data.threads or config.data.workers, or take config.data.storage='compact'"
        )


def _judge_disk(state: Any, folder: pathlib.Path, found: Findings) -> None:
    """Checks that four checkpoints fit: three are kept while another is being written."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(folder).free
    found.say(f'checkpoint: {size / 2**20:.1f} MiB each; {free / 2**30:.1f} GiB free on the disk')
    if free < 4 * size:
        found.error(
            f'not enough disk space for four checkpoints in {folder}; choose another --workdir'
        )


def _memory_limit() -> int:
    """Bytes of memory of one device; a CPU device has an equal part of the machine's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and 'bytes_limit' in stats:
        return stats['bytes_limit']
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count()
