"""Fig. 5: predictions of models side by side, on the images where they differ most in families.

    python -m experiments.figures.fig5_qualitative --out=runs/fig5 \
        --workdir runs/table1/full/seed_0 runs/table1/local_grid_8_16_24/seed_0 \
        --pruning=local:drop=0.3,grid:drop=0.3

Every image of the split goes through every model. Of each image and model it counts the pixels that
are taken for another class of their family (--family; wall for fence, bus for train). The images
where this differs most between the first and the last run of --workdir are shown, in both
directions: the paper's figure shows only images on which its model is better. A dashed box is
around the largest part that only one of the two confuses. --pruning adds a column, the last run
with Context Pruning.

Writes <out>/qualitative_less.png (the last run confuses less), <out>/qualitative_more.png,
<out>/qualitative.csv with every image and <out>/qualitative.md. Counts are kept in <out>/kept. Run
it from the root of the repository.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import cache, cli, confusable, pictures, tables
from experiments.common import runs as chosen
from experiments.common.confusable import Family
from experiments.common.pictures import Cell
from experiments.common.trained import Trained
from experiments.tables.sweep_runs import slug
from ggcf_jax import data
from ggcf_jax.data import pipeline
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.display.console import Progress
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference, metrics
from ggcf_jax.evaluation.results import Sample
from ggcf_jax.models import merge
from ggcf_jax.models.contexts import pruning_rules


@dataclasses.dataclass(frozen=True)
class Column:
    """One way of predicting.

    Attributes:
        title: above its pictures. run: the model. plan: how images go through it.
    """

    title: str
    run: chosen.Chosen
    plan: inference.Plan


@dataclasses.dataclass(frozen=True)
class Row:
    """One image in one column.

    Attributes:
        image: name of the record. column: title.
        family: name. pixels: of it in the image. right: taken for their own class.
        confused: taken for another class of the family.
        labelled: labelled pixels of the image.
    """

    image: str
    column: str
    family: str
    pixels: int
    right: int
    confused: int
    labelled: int


def columns(runs: Sequence[chosen.Chosen], pruning: str) -> list[Column]:
    """A column a run and, with `pruning`, one more of the last.

    Raises:
        InputError: rules that cannot be read.
    """
    found = [Column(run.title, run, inference.SINGLE) for run in runs]
    if pruning:
        try:
            rules = pruning_rules.parse(pruning)
        except ValueError as error:
            raise InputError(f'--pruning={pruning}: {error}') from error
        plan = dataclasses.replace(inference.SINGLE, pruning=rules)
        found.append(Column(f'{runs[-1].title} + ContextPruning', runs[-1], plan))
    return found


def evaluated(
    trained: Trained, plan: inference.Plan, split: str, batches: pipeline.EvaluationPlan
) -> Iterator[tuple[pipeline.Batch, np.ndarray]]:
    """Each of the batches with its predictions, uint8 [b, h, w] of train ids."""

    @jax.jit
    def predict(params, stats, images):
        scores = inference.scores(merge(trained.graphdef, params, stats), images, plan)
        return scores.argmax(-1).astype(jnp.uint8)

    reading = data.reading(trained.config.data)
    for batch in pipeline.evaluation_batches(trained.dataset, split, batches, reading=reading):
        yield batch, np.asarray(predict(trained.params, trained.stats, batch['image']))


def count(
    trained: Trained, plan: inference.Plan, split: str, known: Sequence[Family]
) -> dict[str, np.ndarray]:
    """Counts pixels in every image of `split`.

    Returns:
        counts: int64 [n, families, 3], the last axis as `families.counts`; labelled: int64 [n].
    """
    classes, total = trained.dataset.num_classes, len(trained.dataset.source(split))
    confusion = jax.jit(
        lambda labels, guesses: metrics.confusion_matrices(labels, guesses, classes, IGNORE)
    )
    counts, labelled = np.zeros((total, len(known), 3), np.int64), np.zeros(total, np.int64)
    batches = data.evaluation_plan(trained.config, trained.dataset, split)
    with Progress(trained.step) as progress, progress.evaluating(total, split) as advance:
        for batch, predictions in evaluated(trained, plan, split, batches):
            real = batch['index'] >= 0
            places = batch['index'][real]
            matrices = np.asarray(confusion(batch['label'], predictions))[real].astype(np.int64)
            counts[places] = np.stack([confusable.counts(f, matrices) for f in known], axis=1)
            labelled[places] = matrices.sum((1, 2))
            advance(len(places))
    return {'counts': counts, 'labelled': labelled}


def count_all(
    wanted: Sequence[Column], which: str, split: str, known: Sequence[Family], folder: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """`count` of every column, computed or kept: int64 [columns, n, families, 3] and [n]."""
    found = []
    for column, trained in _loaded(wanted, which):
        key = {
            'workdir': str(column.run.workdir.resolve()),
            'step': trained.step,
            'split': split,
            'plan': str(column.plan),
            'families': [family.name for family in known],
        }

        def compute(column=column, trained=trained):
            print(f'{column.title}:', flush=True)
            return count(trained, column.plan, split, known)

        found.append(cache.arrays(folder / f'{slug(column.title)}.npz', key, compute))
    return np.stack([each['counts'] for each in found]), found[0]['labelled']


def _loaded(wanted: Sequence[Column], which: str) -> Iterator[tuple[Column, Trained]]:
    """Each column with its model; columns of one run share it."""
    for run, trained in chosen.load(list(dict.fromkeys(c.run for c in wanted)), which):
        for column in wanted:
            if column.run == run:
                yield column, trained


def samples(
    trained: Trained, plan: inference.Plan, split: str, images: Sequence[int]
) -> dict[int, Sample]:
    """The pictures of some images, predicted in the same batches as `count` had them in."""
    every = data.evaluation_plan(trained.config, trained.dataset, split)
    needed = np.flatnonzero(np.isin(every.indices, images).any(1))
    batches = pipeline.EvaluationPlan(tuple(every.sizes[i] for i in needed), every.indices[needed])
    found = {}
    for batch, predictions in evaluated(trained, plan, split, batches):
        for row, index in enumerate(batch['index'].tolist()):
            if index in images:
                shown = tuple(slice(length) for length in batch['size'][row])
                name = trained.dataset.source(split)[index]['name']
                pixels = (x[row][shown].copy() for x in (batch['image'], batch['label']))
                found[index] = Sample(name, *pixels, predictions[row][shown].copy())
    return found


def confused(sample: Sample, known: Sequence[Family]) -> np.ndarray:
    """Bool [h, w], the pixels that are taken for another class of their family."""
    masks = [
        np.isin(sample.label, family.members)
        & np.isin(sample.prediction, family.members)
        & (sample.label != sample.prediction)
        for family in known
    ]
    return np.logical_or.reduce(masks)


def largest_part(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of the largest connected part of a mask; None of an empty one."""
    _, _, parts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if len(parts) < 2:  # the first is the outside
        return None
    left, top, width, height, _ = parts[1 + parts[1:, cv2.CC_STAT_AREA].argmax()].tolist()
    return top, left, top + height, left + width


def draw(
    path: pathlib.Path,
    wanted: Sequence[Column],
    shown: Sequence[Sequence[Sample]],
    known: Sequence[Family],
    dataset: Dataset,
) -> None:
    """Draws a row an image: the image, its ground truth and each column's prediction.

    Args:
        path: of the PNG. wanted: the columns. shown: for each image the samples of the columns.
        known: families, whose colours are explained below. dataset: of the images.
    """
    last = len({column.run for column in wanted}) - 1
    table = []
    for row in shown:
        masks = [confused(sample, known) for sample in row]
        box = largest_part(masks[0] ^ masks[last])
        first = row[0]
        cells = [
            Cell(first.name, first.image, box=box),
            Cell('ground truth', pictures.painted(first.label, dataset), box=box),
        ]
        labelled = max((first.label != IGNORE).sum(), 1)
        for column, sample, mask in zip(wanted, row, masks):
            title = f'{column.title}\n{mask.sum() / labelled:.1%} confused'
            cells.append(Cell(title, pictures.painted(sample.prediction, dataset), box=box))
        table.append(cells)
    members = dict.fromkeys(member for family in known for member in family.members)
    pictures.draw(path, table, {dataset.classes[m]: dataset.colors[m] for m in members})
    print(path)


def markdown(
    wanted: Sequence[Column], counts: np.ndarray, known: Sequence[Family], gain: np.ndarray
) -> str:
    """Confusion in the whole split, and on how many images the last run does better or worse."""
    totals = counts.sum(1)  # [columns, families, 3]
    lines = [
        (column.title, *(f'{100 * f[1] / f.sum():.2f}' if f.sum() else '' for f in each))
        for column, each in zip(wanted, totals)
    ]
    last = list(dict.fromkeys(column.run for column in wanted))[-1]
    less, more = int((gain > 0).sum()), int((gain < 0).sum())
    return (
        'Pixels of each family that are taken for another class of it, in percent of its '
        'pixels.\n\n'
        + tables.markdown(('model', *(family.name for family in known)), lines)
        + f'\n{last.title} confuses fewer pixels than {wanted[0].title} in {less} images, more '
        f'in {more}, equally many in {len(gain) - less - more}.\nThe paper (section 4.3, Fig. 5) '
        'says that FULL is easily misled where {LOCAL, GRID} is accurate,\nwithout numbers of '
        'this kind.\n'
    )


def main(options) -> None:
    runs = chosen.choose(options.workdir)
    if len(runs) < 2:
        raise InputError('--workdir: give two runs or more, they are compared')
    if options.count < 1:
        raise InputError(f'--count={options.count} must be at least 1')
    wanted = columns(runs, options.pruning)
    dataset = chosen.common_dataset(runs)
    known = confusable.of(dataset.name, dataset.classes, options.family)
    dataset.source(options.split)
    dataset.check_labeled(options.split, 'compared')
    folder = options.out / 'kept'
    counts, labelled = count_all(wanted, options.checkpoint, options.split, known, folder)
    confusions = counts[..., 1].sum(-1)
    gain = (confusions[0] - confusions[len(runs) - 1]) / np.maximum(labelled, 1)
    chosen_images = {}
    for name, sign in (('less', 1), ('more', -1)):
        order = np.argsort(-sign * gain, kind='stable')[: options.count]
        chosen_images[name] = [int(i) for i in order if sign * gain[i] > 0]
    both = [i for images in chosen_images.values() for i in images]
    found = [
        samples(trained, column.plan, options.split, both)
        for column, trained in _loaded(wanted if both else (), options.checkpoint)
    ]
    for name, images in chosen_images.items():
        if images:
            shown = [[each[i] for each in found] for i in images]
            draw(options.out / f'qualitative_{name}.png', wanted, shown, known, dataset)
    source = dataset.source(options.split)
    rows = [
        Row(source[i]['name'], column.title, family.name, *_numbers(counts[c, i, f]), labelled[i])
        for i in range(len(gain))
        for c, column in enumerate(wanted)
        for f, family in enumerate(known)
    ]
    tables.write_csv(options.out / 'qualitative.csv', rows)
    tables.write_text(options.out / 'qualitative.md', markdown(wanted, counts, known, gain))


def _numbers(taken_for: np.ndarray) -> tuple[int, int, int]:
    """Pixels, right and confused of a `Row`."""
    return int(taken_for.sum()), int(taken_for[0]), int(taken_for[1])


if __name__ == '__main__':
    parser = cli.parser(__doc__)
    chosen.add_workdirs(parser)
    chosen.add_checkpoint(parser)
    parser.add_argument('--split', default='validation')
    confusable.add_arguments(parser)
    parser.add_argument('--pruning', default='', help='rules as in config.eval.pruning')
    parser.add_argument('--count', default=4, type=int, help='images in each direction [4]')
    cli.run(main, parser)
