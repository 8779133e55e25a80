"""Examination of a configuration, its data and this machine before hours are spent on training."""

import contextlib
import dataclasses
import io
import itertools
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl.flags import FlagValues
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from ggcf_jax import atomic, buckets, data, models, places
from ggcf_jax import config as config_lib
from ggcf_jax.data import advice, label_survey, mixture, pipeline
from ggcf_jax.data.records import depth
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.data.scan import Scan, scan
from ggcf_jax.display import pictures
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.distributed import platforms
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import evaluator, inference
from ggcf_jax.training import (
    auto_fields,
    memory,
    objective,
    optim,
    overview,
    parameter_groups,
    profiling,
    train_step,
    warm_start,
)
from ggcf_jax.training import state as state_lib

SHOWN = 10  # number of problems of a split that are printed
NAMES = 5  # number of classes that a warning names
ROWS = 40  # number of classes from which on their table goes to a file
SAMPLES = 8  # number of augmented training samples in the picture
SECONDS = 5.0  # for which a throughput is measured, at least
LONGEST = 90.0  # seconds after which a throughput is taken that is not stable yet
STABLE = 0.05  # relative change of a throughput by a further round of batches


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

    Writes `doctor/report.txt`, `doctor/samples.png` (augmented training samples and their labels)
    and, where there are many classes, `doctor/classes.txt` into the workdir, which is not claimed
    for a run.

    Args:
        config: configuration to examine.
        workdir: directory of the planned run.

    Returns:
        Whether nothing was found that keeps the training from working.
    """
    folder = places.expand(workdir) / 'doctor'
    console = Console(record=True)
    with Progress(console=console) as progress:
        found = Findings(progress)
        with _reported(found):
            places.check_writable(folder, '--workdir')
            with places.writing(folder, '--workdir'):
                folder.mkdir(parents=True, exist_ok=True)
            _examine(config, folder, found, progress)
        if found.errors:
            errors = _counted(found.errors, 'error')
            verdict = f'not ready: {errors}, {_counted(found.warnings, "warning")}'
        else:
            verdict = f'ready to train, {_counted(found.warnings, "warning")}'
        found.say(f'\n{verdict}')
    with contextlib.suppress(OSError):  # reported above
        if folder.is_dir() or isinstance(folder, buckets.BucketPath):
            atomic.write(folder / 'report.txt', console.export_text().encode())
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
    found.say(f'devices: {overview.describe_devices(mesh_lib.make_mesh())}')
    if idle := platforms.unused(platforms.gpus_of_machine(), len(devices)):
        found.warning(idle)
    with _reported(found):
        config_lib.check(config, len(devices))
    with _reported(found):
        config = auto_fields.resolve(config, None)
        network = models.abstract(config, num_classes=1)
        inference.build(config)
        stacks = models.stacks(*network)
        optim.optimizer(config.train, stacks)
        parameter_groups.build(config.train, stacks).check(network[1])
        objective.build(config.train, ())
        profiling.parse(config.train.profile, config.train.steps)
        warm_start.check(config)
    if found.errors:
        return
    dataset = data.build(config.data)
    parts = mixture.parse(config.data.train_split)
    mixture.records(dataset, parts)
    splits = dict.fromkeys([*(split for part in parts for split in part.splits), 'validation'])
    data.check_writable(config, dataset)
    scans = {}
    for split in splits:
        count = len(dataset.source(split))
        with progress.working('read', 'read', count, split) as advance:
            scans[split] = scan(dataset, split, config.data.threads, advance)
    for split, look in scans.items():
        _tell_split(look, found)
        if (labels := label_survey.survey(dataset, split)) is not None:
            for line in label_survey.lines(labels, dataset):
                found.say(line)
    _judge_depth(list(scans.values()), config.data.image_bits, found)
    _tell_classes(dataset, list(scans.values()), folder, found)
    _judge_classes(dataset, scans, found)
    if found.errors:
        found.say('the pipeline and the training step are not tried with such data')
        return

    shard = pipeline.Shard()
    batches = data.training_batches(config, dataset, 0, shard)
    with contextlib.closing(batches):
        batch = _draw_samples(batches, dataset, folder / 'samples.png')
        found.say(f'augmented samples: {folder / "samples.png"}')
        found.say(f'measuring the input pipeline, for up to {LONGEST:.0f} s')
        rate = _pipeline_rate(batches, config.train.batch_size, _round(config.data))
    unsure = '' if rate.stable else f' (still changing after {LONGEST:.0f} s)'
    found.say(
        f'pipeline: {rate.images_per_sec:.1f} images/s with {config.data.threads} threads and '
        f'{config.data.workers} workers on {advice.cores()} cores{unsure}'
    )
    weights = data.class_weights_of(config, dataset)
    state = _try_step(config, dataset, weights, batch, rate.images_per_sec, folder, found, progress)
    _try_evaluation(config, dataset, state, found, progress)


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


def _judge_depth(scans: list[Scan], bits: int, found: Findings) -> None:
    """Compares the values of 16-bit images with what `config.data.image_bits` says of them."""
    count = sum(look.deep for look in scans)
    if not count:
        return
    look = max(scans, key=lambda each: each.largest)
    needed = depth.needed_bits(look.largest)
    fact = (
        f'{count} images have 16 bits; their largest value is {look.largest} ({look.largest_of}), '
        f'of {needed} bits'
    )
    if needed > bits:
        found.error(f'{fact}: set --config.data.image_bits={needed}, which is {bits}')
    elif needed <= bits - depth.UNUSED and look.largest:
        found.warning(
            f'{fact}, so that they become almost black with config.data.image_bits={bits}: set '
            f'--config.data.image_bits={needed}'
        )
    else:
        found.say(fact)


def _tell_classes(
    dataset: Dataset, scans: list[Scan], folder: pathlib.Path, found: Findings
) -> None:
    """Prints the table of the classes, or writes it to a file if it is longer than a screen."""
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
    if dataset.num_classes <= ROWS:
        found.say(table)
        return
    path = folder / 'classes.txt'
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    with places.writing(path, '--workdir'):
        atomic.write(path, text.getvalue().encode())
    found.say(f'classes: the table of all {dataset.num_classes} is in {path}')


def _judge_classes(dataset: Dataset, scans: dict[str, Scan], found: Findings) -> None:
    of_training = [look.images for split, look in scans.items() if split != 'validation']
    trained = np.sum(of_training or [scans['validation'].images], axis=0)
    if not trained.any():
        found.error(
            'no pixel of the training images has a class, so that nothing can be learned: all '
            'label values are ignored; correct config.data.ignore or the class file'
        )
        return
    if dataset.num_classes > 1 and np.count_nonzero(trained) == 1:
        only = dataset.classes[int(trained.argmax())]
        found.error(
            f'all labelled pixels of the training images are of the class {only!r}. Masks of 0 and '
            '255 need 255 as the label value of a class (ids in the class file) and not in '
            'config.data.ignore'
        )
        return
    validated = scans['validation'].images
    unseen = [name for name, count in zip(dataset.classes, trained) if not count]
    unmeasured = [
        name for name, seen, count in zip(dataset.classes, trained, validated) if seen and not count
    ]
    for names, what in (
        (unseen, 'in no training image and cannot be learned'),
        (unmeasured, 'in no validation image and not measured'),
    ):
        if names:
            verb = 'is' if len(names) == 1 else 'are'
            found.warning(
                f'{len(names)} of {dataset.num_classes} classes {verb} {what}: {_first(names)}'
            )


def _first(names: list[str]) -> str:
    """The first of many names."""
    rest = len(names) - NAMES
    return ', '.join(names[:NAMES]) + (f' and {rest} more' if rest > 0 else '')


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
    with places.writing(path, '--workdir'):
        pictures.write_png(path, np.concatenate(rows))
    return first


@dataclasses.dataclass(frozen=True)
class _Rate:
    """A measured throughput.

    Attributes:
        images_per_sec: images per second.
        stable: whether a further round of batches changed it by less than `STABLE`.
    """

    images_per_sec: float
    stable: bool


def _round(settings: ConfigDict) -> int:
    """Number of batches that the pipeline works on at once, which arrive in a burst."""
    loader = data.loader_options(settings)
    return max(loader.buffer, loader.threads) * max(loader.workers, 1)


def _pipeline_rate(batches: Iterator[pipeline.Batch], batch_size: int, together: int) -> _Rate:
    """Measures rounds of batches until their mean rate no longer changes.

    Batches of a slow pipeline arrive in bursts, one a thread: a rate within a round is too low
    before the burst and too high after it. The first round is ready already and does not count.

    Args:
        batches: training batches.
        batch_size: number of images in a batch.
        together: number of batches in a round.
    """
    began = time.perf_counter()
    for _ in range(together):
        next(batches)
    count, since, before = 0, time.perf_counter(), 0.0
    while True:
        for _ in range(together):
            next(batches)
        count += together
        now = time.perf_counter()
        rate = count * batch_size / (now - since)
        if abs(rate - before) <= STABLE * rate and now - since >= SECONDS:
            return _Rate(rate, stable=True)
        if now - began >= LONGEST:
            return _Rate(rate, stable=False)
        before = rate


def _try_step(
    config: ConfigDict,
    dataset: Dataset,
    weights: tuple[float, ...],
    batch: pipeline.Batch,
    rate: float,
    folder: pathlib.Path,
    found: Findings,
    progress: Progress,
) -> Any:
    """Compiles the step and runs it if it fits into memory; returns the shapes of the state."""
    mesh = mesh_lib.make_mesh(space=config.mesh.space)
    network = models.abstract(config, dataset.num_classes)
    with jax.set_mesh(mesh):
        create = state_lib.creator(config, dataset.num_classes, mesh)
        shapes = jax.eval_shape(create)
        arrays = mesh_lib.global_batch(mesh, batch)
        step = train_step.build(config.train, weights, network, mesh)
        with progress.compiling('the training step'):
            compiled = step.lower(shapes, arrays).compile()
        _judge_disk(shapes, folder, found)
        if not _fits('the training step', memory.needed(compiled), found):
            found.error(
                'the training step does not fit the device: lower config.train.batch_size or '
                'config.data.crop_size, or raise config.train.accumulate'
            )
            return shapes
        state = jax.block_until_ready(compiled(create(), arrays))
        if int(state.consecutive_skips):
            found.error('the first training step gave a loss or gradients that are not finite')
            return shapes
        count, began = 0, time.perf_counter()
        while count < 3 or time.perf_counter() - began < SECONDS:
            state = jax.block_until_ready(compiled(state, arrays))
            count += 1
        need = count * config.train.batch_size / (time.perf_counter() - began)
    found.say(f'training step: {need:.1f} images/s')
    if rate < need:
        found.warning(
            f'the pipeline makes {rate:.1f} images/s, the step needs {need:.1f}: '
            f'{advice.faster(config.data, advice.cores())}'
        )
    elif mesh.devices.flat[0].platform == 'cpu':
        found.say('pipeline and step were measured apart; in training they share the cores')
    return shapes


def _try_evaluation(
    config: ConfigDict, dataset: Dataset, state: Any, found: Findings, progress: Progress
) -> None:
    """Compiles and runs the evaluation of the largest images, as training does on its way.

    Args:
        config: configuration of the planned run.
        dataset: its data set.
        state: shapes of the training state, which stays in memory meanwhile.
        found: what was found.
        progress: display.
    """
    mesh = mesh_lib.make_mesh(space=config.mesh.space)
    graphdef, params, stats = models.abstract(config, dataset.num_classes)
    batches = data.evaluation_batches(config, dataset, 'validation')
    height, width = max(batches.sizes, key=lambda size: size[0] * size[1])
    what = f'the evaluation of {height} x {width} pixels'
    count = config.eval.batch_size
    step: Any = evaluator.make_eval_step(
        graphdef, dataset.num_classes, mesh, inference.of_training(config)
    )

    def zeros(shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        return mesh_lib.place(np.zeros(shape, dtype), sharding)

    everywhere = mesh_lib.replicated(mesh)
    with jax.set_mesh(mesh):
        matrix = zeros((dataset.num_classes,) * 2, np.int32, everywhere)
        images = mesh_lib.global_batch(
            mesh,
            {
                'image': np.zeros((count, height, width, 3), np.uint8),
                'label': np.zeros((count, height, width), np.uint8),
                'size': np.full((count, 2), (height, width), np.int32),
            },
        )
        with progress.compiling(what):
            compiled = step.lower(params, stats, matrix, images).compile()
        needed = memory.needed(compiled)
        if needed is not None:
            # The network's own parameters are among the arguments of both.
            held = _bytes(state) - _bytes((params, stats))
            needed += held
        if not _fits(f'{what} beside the state of the training', needed, found):
            found.error(
                f'{what} does not fit the device beside the state of the training: lower '
                f'config.eval.batch_size={count}, or config.eval.max_sizes if few images are so '
                'large'
            )
            return
        ours = jax.tree.map(lambda x: zeros(x.shape, x.dtype, everywhere), (params, stats))
        matrix, *_ = jax.block_until_ready(compiled(*ours, matrix, images))
        began = time.perf_counter()
        jax.block_until_ready(compiled(*ours, matrix, images))
        seconds = time.perf_counter() - began
    sizes = np.array(batches.sizes, np.float64)
    total = seconds * (sizes.prod(1) / (height * width)).sum()
    found.say(
        f'evaluation: {seconds:.2g} s for a batch of {count} of {height} x {width}; by that about '
        f'{total:.0f} s for the {len(dataset.source("validation"))} images of validation, '
        f'{-(-config.train.steps // config.train.eval_every)} times in training'
    )


def _fits(what: str, needed: int | None, found: Findings) -> bool:
    """Says how much memory a program needs; returns whether a device has it."""
    if needed is None:
        found.say(f'{what}: the memory that it needs is not known')
        return True
    limit = memory.limit(jax.local_devices())
    found.say(
        f'{what} needs {memory.text(needed)} of {memory.text(limit)} on each device, as compiled'
    )
    return needed <= limit


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _judge_disk(state: Any, folder: pathlib.Path, found: Findings) -> None:
    """Checks that four checkpoints fit: three are kept while another is being written."""
    size = _bytes(state)
    if isinstance(folder, buckets.BucketPath):
        there = tempfile.gettempdir()
        free = shutil.disk_usage(there).free
        found.say(f'checkpoint: {memory.text(size)}; {memory.text(free)} free in {there}')
        if free < size:
            found.error(
                f'a checkpoint is written to {there} before it is uploaded, where it does not fit; '
                'make room, or set TMPDIR to a folder on a larger disk'
            )
        return
    free = shutil.disk_usage(folder).free
    found.say(f'checkpoint: {memory.text(size)} each; {memory.text(free)} free on the disk')
    if free < 4 * size:
        found.error(
            f'not enough disk space for four checkpoints in {folder}; choose another --workdir'
        )
