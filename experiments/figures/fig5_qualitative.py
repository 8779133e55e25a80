"""Fig. 5: predictions side by side, on the images where models differ most in confusable classes.

    python -m experiments.figures.fig5_qualitative --out=runs/fig5 \
        --workdir runs/table1/full/seed_0 runs/table1/local_grid_8_16_24/seed_0 \
        --pruning=local:drop=0.3,grid:drop=0.3

Every image of the split goes through every model. In each image and for each model the pixels that
are mistaken for another class of their family (--family; wall for fence, bus for train) are
counted. The images where this number differs most between the first and the last run of --workdir
are shown, in both directions: the paper's figure shows only images on which its model is better. A
dashed box surrounds the largest region that only one of the two confuses. --pruning adds a column:
the last run with Context Pruning.

Writes <out>/qualitative_less.png (the last run confuses less), <out>/qualitative_more.png,
<out>/qualitative.csv with every image and <out>/qualitative.md. Counts are cached in <out>/kept.
Run it from the root of the repository.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from experiments.common import cache, cli, confusable, pictures, runs, tables
from experiments.common.confusable import ConfusableGroup
from experiments.common.pictures import Cell
from experiments.common.runs import LoadedRun, SelectedRun
from experiments.common.tables import slug
from ggcf_jax import data
from ggcf_jax.data import pipeline
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.display.console import Progress
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference, metrics
from ggcf_jax.evaluation.results import Sample
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.segmenter import Segmenter


@dataclasses.dataclass(frozen=True)
class Column:
    """One way of predicting.

    Attributes:
        title: heading of the column.
        run: run that predicts.
        plan: how images go through its model.
    """

    title: str
    run: SelectedRun
    plan: inference.Plan


@dataclasses.dataclass(frozen=True)
class Row:
    """One image in one column.

    Attributes:
        image: name of the record.
        column: title of the column.
        family: name of the group of confusable classes.
        pixels: pixels whose ground truth is in the group.
        right: pixels of them that are predicted as their own class.
        confused: pixels of them that are predicted as another class of the group.
        labelled: labelled pixels of the image.
    """

    image: str
    column: str
    family: str
    pixels: int
    right: int
    confused: int
    labelled: int


def columns(selected: Sequence[SelectedRun], pruning: str) -> list[Column]:
    """Returns a column for each run and, with `pruning`, one more for the last run.

    Args:
        selected: runs to compare.
        pruning: rules of Context Pruning as in `config.eval.pruning`, '' for none.

    Raises:
        InputError: rules that cannot be parsed.
    """
    found = [Column(run.title, run, inference.SINGLE) for run in selected]
    if pruning:
        try:
            rules = pruning_rules.parse(pruning)
        except ValueError as error:
            raise InputError(f'--pruning={pruning}: {error}') from error
        plan = dataclasses.replace(inference.SINGLE, pruning=rules)
        found.append(Column(f'{selected[-1].title} + ContextPruning', selected[-1], plan))
    return found


def predict_batches(
    loaded: LoadedRun, plan: inference.Plan, batches: pipeline.EvaluationBatches
) -> Iterator[tuple[pipeline.Batch, UInt8[np.ndarray, 'b h w']]]:
    """Predicts batches of images.

    Args:
        loaded: model that predicts, with its data set.
        plan: how images go through the model.
        batches: batches of a split of its data set.

    Yields:
        A batch, and the predicted train ids.
    """

    def predict(network: Segmenter, images: jax.Array) -> jax.Array:
        return inference.scores(network, images, plan).argmax(-1).astype(jnp.uint8)

    for batch in batches.load(loader=data.loader_options(loaded.model.config.data)):
        yield batch, loaded.model.run(predict, batch['image'])


def count(
    loaded: LoadedRun, plan: inference.Plan, split: str, groups: Sequence[ConfusableGroup]
) -> dict[str, np.ndarray]:
    """Counts confused pixels in every image of a split.

    Args:
        loaded: model that predicts, with its data set.
        plan: how images go through the model.
        split: split of its data set.
        groups: confusable classes.

    Returns:
        'counts': int64 [images, groups, 3], the last axis as `confusable.pixel_counts`;
        'labelled': int64 [images], labelled pixels.
    """
    classes, total = loaded.dataset.num_classes, len(loaded.dataset.source(split))
    confusion = jax.jit(
        lambda labels, guesses: metrics.confusion_matrices(labels, guesses, classes, IGNORE)
    )
    counts, labelled = np.zeros((total, len(groups), 3), np.int64), np.zeros(total, np.int64)
    batches = data.evaluation_batches(loaded.model.config, loaded.dataset, split)
    with Progress(loaded.model.step) as progress, progress.evaluating(total, split) as advance:
        for batch, predictions in predict_batches(loaded, plan, batches):
            real = batch['index'] >= 0
            places = batch['index'][real]
            matrices = np.asarray(confusion(batch['label'], predictions))[real].astype(np.int64)
            counts[places] = np.stack(
                [confusable.pixel_counts(group, matrices) for group in groups], axis=1
            )
            labelled[places] = matrices.sum((1, 2))
            advance(len(places))
    return {'counts': counts, 'labelled': labelled}


def count_all(
    wanted: Sequence[Column],
    checkpoint: str,
    split: str,
    groups: Sequence[ConfusableGroup],
    folder: pathlib.Path,
) -> tuple[Int64[np.ndarray, 'columns images groups 3'], Int64[np.ndarray, ' images']]:
    """Calls `count` for every column, unless its counts are cached.

    Args:
        wanted: columns of the comparison.
        checkpoint: 'best', 'latest' or a step number.
        split: split of the data set.
        groups: confusable classes.
        folder: folder of the cache.

    Returns:
        The counts, and the labelled pixels of each image.
    """
    found = []
    for column, loaded in _load_columns(wanted, checkpoint):
        key = {
            **loaded.identity(split),
            'plan': str(column.plan),
            'families': [group.name for group in groups],
        }

        def compute(column: Column = column, loaded: LoadedRun = loaded) -> dict[str, np.ndarray]:
            print(f'{column.title}:', flush=True)
            return count(loaded, column.plan, split, groups)

        path = folder / f'{slug(column.title)}.npz'
        found.append(cache.load_or_compute(path, key, compute))
    return np.stack([each['counts'] for each in found]), found[0]['labelled']


def _load_columns(wanted: Sequence[Column], checkpoint: str) -> Iterator[tuple[Column, LoadedRun]]:
    """Yields each column with its model; columns of one run share it."""
    selected = list(dict.fromkeys(column.run for column in wanted))
    for run, loaded in runs.load_each(selected, checkpoint):
        for column in wanted:
            if column.run == run:
                yield column, loaded


def samples(
    loaded: LoadedRun, plan: inference.Plan, split: str, images: Sequence[int]
) -> dict[int, Sample]:
    """Predicts some images, in the same batches as `count` does.

    Args:
        loaded: model that predicts, with its data set.
        plan: how images go through the model.
        split: split of its data set.
        images: numbers of the images in the split.

    Returns:
        Number of the image -> its pictures.
    """
    every = data.evaluation_batches(loaded.model.config, loaded.dataset, split)
    needed = np.flatnonzero(np.isin(every.indices, images).any(1))
    batches = every.select(needed)
    found = {}
    for batch, predictions in predict_batches(loaded, plan, batches):
        for row, index in enumerate(batch['index'].tolist()):
            if index in images:
                shown = tuple(slice(length) for length in batch['size'][row])
                found[index] = Sample(
                    name=loaded.dataset.source(split)[index]['name'],
                    image=batch['image'][row][shown].copy(),
                    label=batch['label'][row][shown].copy(),
                    prediction=predictions[row][shown].copy(),
                )
    return found


def confused(sample: Sample, groups: Sequence[ConfusableGroup]) -> Bool[np.ndarray, 'h w']:
    """Returns a mask of the pixels that are mistaken for another class of their group.

    Args:
        sample: label and prediction.
        groups: confusable classes.
    """
    masks = [
        np.isin(sample.label, group.members)
        & np.isin(sample.prediction, group.members)
        & (sample.label != sample.prediction)
        for group in groups
    ]
    return np.logical_or.reduce(masks)


def largest_region(mask: Bool[np.ndarray, 'h w']) -> tuple[int, int, int, int] | None:
    """Returns (top, left, bottom, right) of the largest connected region, None of an empty mask."""
    _, _, regions, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if len(regions) < 2:  # the first is the background
        return None
    largest = 1 + regions[1:, cv2.CC_STAT_AREA].argmax()
    left, top, width, height, _ = regions[largest].tolist()
    return top, left, top + height, left + width


def draw(
    path: pathlib.Path,
    wanted: Sequence[Column],
    shown: Sequence[Sequence[Sample]],
    groups: Sequence[ConfusableGroup],
    dataset: Dataset,
) -> None:
    """Draws one row per image: the image, its ground truth and the prediction of each column.

    Args:
        path: PNG file to write.
        wanted: columns of the comparison.
        shown: for each image the samples of the columns.
        groups: confusable classes, whose colours are explained below the table.
        dataset: data set of the images.
    """
    last = len({column.run for column in wanted}) - 1
    table = []
    for row in shown:
        masks = [confused(sample, groups) for sample in row]
        box = largest_region(masks[0] ^ masks[last])
        first = row[0]
        cells = [
            Cell(first.name, first.image, box=box),
            Cell('ground truth', pictures.colorize(first.label, dataset), box=box),
        ]
        labelled = max((first.label != IGNORE).sum(), 1)
        for column, sample, mask in zip(wanted, row, masks):
            title = f'{column.title}\n{mask.sum() / labelled:.1%} confused'
            cells.append(Cell(title, pictures.colorize(sample.prediction, dataset), box=box))
        table.append(cells)
    members = dict.fromkeys(member for group in groups for member in group.members)
    legend = {dataset.classes[member]: dataset.colors[member] for member in members}
    pictures.draw_table(path, table, legend)
    print(path)


def markdown(
    wanted: Sequence[Column],
    counts: Int64[np.ndarray, 'columns images groups 3'],
    groups: Sequence[ConfusableGroup],
    gain: Float[np.ndarray, ' images'],
) -> str:
    """Formats the confusion in the whole split, and on how many images the last run differs.

    Args:
        wanted: columns of the comparison.
        counts: result of `count_all`.
        groups: confusable classes.
        gain: by how much the last run confuses less than the first one in each image.
    """
    totals = counts.sum(1)  # [columns, groups, 3]
    lines = [
        (column.title, *(f'{100 * f[1] / f.sum():.2f}' if f.sum() else '' for f in each))
        for column, each in zip(wanted, totals)
    ]
    last = list(dict.fromkeys(column.run for column in wanted))[-1]
    less, more = int((gain > 0).sum()), int((gain < 0).sum())
    return (
        'Pixels of each family that are mistaken for another class of it, in percent of its '
        'pixels.\n\n'
        + tables.markdown(('model', *(group.name for group in groups)), lines)
        + f'\n{last.title} confuses fewer pixels than {wanted[0].title} in {less} images, more '
        f'in {more}, equally many in {len(gain) - less - more}.\nThe paper (section 4.3, Fig. 5) '
        'says that FULL is easily misled where {LOCAL, GRID} is accurate,\nwithout numbers of '
        'this kind.\n'
    )


def main(options: argparse.Namespace) -> None:
    """Compares the runs of the command line."""
    selected = runs.select(options.workdir)
    if len(selected) < 2:
        raise InputError('--workdir: give two runs or more to compare')
    if options.count < 1:
        raise InputError(f'--count={options.count} must be at least 1')
    wanted = columns(selected, options.pruning)
    dataset = runs.common_dataset(selected)
    groups = confusable.groups_of(dataset.name, dataset.classes, options.family)
    source = dataset.source(options.split)
    dataset.check_labeled(options.split, 'compared')
    counts, labelled = count_all(
        wanted, options.checkpoint, options.split, groups, options.out / 'kept'
    )
    confusions = counts[..., 1].sum(-1)
    gain = (confusions[0] - confusions[len(selected) - 1]) / np.maximum(labelled, 1)
    images = {
        'less': _most_positive(gain, options.count),
        'more': _most_positive(-gain, options.count),
    }
    shown = [number for numbers in images.values() for number in numbers]
    found = [
        samples(loaded, column.plan, options.split, shown)
        for column, loaded in _load_columns(wanted if shown else (), options.checkpoint)
    ]
    for name, numbers in images.items():
        if numbers:
            rows_of_samples = [[each[number] for each in found] for number in numbers]
            path = options.out / f'qualitative_{name}.png'
            draw(path, wanted, rows_of_samples, groups, dataset)
    rows = [
        Row(
            image=source[i]['name'],
            column=column.title,
            family=group.name,
            pixels=int(counts[c, i, g].sum()),
            right=int(counts[c, i, g, 0]),
            confused=int(counts[c, i, g, 1]),
            labelled=int(labelled[i]),
        )
        for i in range(len(gain))
        for c, column in enumerate(wanted)
        for g, group in enumerate(groups)
    ]
    tables.write_csv(options.out / 'qualitative.csv', rows)
    tables.write_text(options.out / 'qualitative.md', markdown(wanted, counts, groups, gain))


def _most_positive(gain: np.ndarray, most: int) -> list[int]:
    """Returns the indices of the largest positive values, the largest first."""
    order = np.argsort(-gain, kind='stable')[:most]
    return [int(i) for i in order if gain[i] > 0]


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__)
    runs.add_workdirs(parser)
    runs.add_checkpoint(parser)
    parser.add_argument('--split', default='validation', help='split to predict [validation]')
    confusable.add_arguments(parser)
    parser.add_argument(
        '--pruning', default='', help='rules of Context Pruning, as config.eval.pruning'
    )
    parser.add_argument('--count', default=4, type=int, help='images to show in each direction [4]')
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
