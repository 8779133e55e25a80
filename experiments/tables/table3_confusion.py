"""The claim of section 4.3 in numbers: how often confusable classes are mistaken for each other.

    python -m experiments.tables.table3_confusion --out=runs/families \
        --workdir runs/table1/baseline runs/table1/full runs/table1/local_grid_8_16_24

Reads the confusion matrices in <workdir>/evaluations and needs neither data nor checkpoints: the
latest step for each inference plan (whole image, with Context Pruning, ...). For each family of
confusable classes (--family; wall/fence/building, bus/truck/train, vegetation/terrain) it reports
the share of the family's pixels that is mistaken for another class of the family, mean and standard
deviation over the seeds, and the mean IoU of its classes beside the paper's Table 3, which has no
confusions.

Writes <out>/confusion.csv, <out>/confusion.md and <out>/confusion.png. Run it from the root of the
repository.
"""

import argparse
import dataclasses
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.common import cli, confusable, paper, pictures, runs, tables
from experiments.common.confusable import ConfusableGroup
from experiments.common.runs import SelectedRun
from experiments.common.tables import spread
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import metrics
from ggcf_jax.workdir import evaluations as evaluations_lib

_SINGLE = 'whole image'


@dataclasses.dataclass(frozen=True)
class Row:
    """One family in one evaluation of one run.

    Attributes:
        model: name of the model, with the inference plan unless that is the whole image at once.
        run: title of the run.
        step: step of the checkpoint.
        family: name of the group of confusable classes.
        pixels: number of pixels whose ground truth is in the group.
        right: share of them that is predicted as its own class.
        confused: share of them that is predicted as another class of the group.
        outside: share of them that is predicted as a class outside of the group.
        confused_inside: share of the confused ones among those predicted as a class of the group.
        iou: mean IoU of the classes of the group that occur.
    """

    model: str
    run: str
    step: int
    family: str
    pixels: int
    right: float
    confused: float
    outside: float
    confused_inside: float
    iou: float


def evaluations(run: SelectedRun, split: str) -> list[dict[str, Any]]:
    """Reads the latest evaluation of a split for each inference plan.

    Args:
        run: run that was evaluated.
        split: name of the split.

    Returns:
        Contents of the files in <workdir>/evaluations.

    Raises:
        InputError: there is none.
    """
    latest: dict[str, dict[str, Any]] = {}
    for path in sorted((run.workdir / 'evaluations').glob('*.json')):
        found = evaluations_lib.read(path)
        plan = found['inference']
        if found['split'] == split and found['step'] >= latest.get(plan, found)['step']:
            latest[plan] = found
    if not latest:
        raise InputError(
            f'{run.workdir} has no evaluation of split {split!r}; make one with python main.py '
            f'--mode=evaluate --workdir={run.workdir} --split={split}'
        )
    return list(latest.values())


def name_with_plan(model: str, plan: str) -> str:
    """Returns the name of a model, with the inference plan it was evaluated with.

    Args:
        model: name of the model.
        plan: `inference.Plan` as a string; the whole image at once adds nothing.
    """
    if plan == _SINGLE:
        return model
    rules = plan.removeprefix(f'{_SINGLE}, pruning ')
    if rules == plan or ':random' in rules:
        return f'{model}, {plan}'
    return f'{model} + ContextPruning ({rules})'


def measure(
    evaluation: dict[str, Any], model: str, run: str, groups: Sequence[ConfusableGroup]
) -> list[Row]:
    """Returns a row for each group of confusable classes, NaN where it has no pixels.

    Args:
        evaluation: content of an evaluation file.
        model: name of the model.
        run: title of the run.
        groups: confusable classes.
    """
    matrix = np.asarray(evaluation['matrix'], np.int64)
    iou = metrics.class_iou(matrix)
    rows = []
    for group in groups:
        right, confused, outside = confusable.pixel_counts(group, matrix).tolist()
        pixels, inside = right + confused + outside, right + confused
        members = iou[list(group.members)]
        rows.append(
            Row(
                model=model,
                run=run,
                step=evaluation['step'],
                family=group.name,
                pixels=pixels,
                right=_share(right, pixels),
                confused=_share(confused, pixels),
                outside=_share(outside, pixels),
                confused_inside=_share(confused, inside),
                iou=float(np.nanmean(members)) if not np.isnan(members).all() else float('nan'),
            )
        )
    return rows


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float('nan')


def published(model: str, family: str) -> float | None:
    """Returns the mean IoU of a group's classes in the paper's Table 3, None if it is not there.

    Args:
        model: name of a model; it stands for the paper's model of the same form, whatever the sizes
            of its heads and its drop rates.
        family: name of the group, class names joined by slashes.

    Returns:
        Percent.
    """
    model = re.sub(r' \(.*\)$', '', model)
    for name, iou in paper.TABLE3.items():
        if re.sub(r'\d+', '', name) == re.sub(r'\d+', '', model):
            classes = family.split('/')
            if not all(each in iou for each in classes):
                return None
            return statistics.mean(iou[each] for each in classes)
    return None


def by_model(
    rows: Sequence[Row], value_of: Callable[[Row], float]
) -> dict[str, dict[str, list[float]]]:
    """Groups a value of the rows: model -> family -> values of the seeds, without NaN.

    Args:
        rows: rows of all runs.
        value_of: function from a row to its value.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        values = found.setdefault(row.model, {}).setdefault(row.family, [])
        value = value_of(row)
        if value == value:
            values.append(value)
    return found


def markdown(rows: Sequence[Row]) -> str:
    """Formats a table for each share, and one of the IoU beside the paper's."""
    names = list(dict.fromkeys(row.family for row in rows))
    captions: dict[str, Callable[[Row], float]] = {
        "Mistaken for another class of the family, in percent of the family's pixels.": (
            lambda row: row.confused
        ),
        'The same, in percent of the pixels predicted as a class of the family.': (
            lambda row: row.confused_inside
        ),
        "Mistaken for a class outside of the family, in percent of the family's pixels.": (
            lambda row: row.outside
        ),
    }
    parts = []
    for caption, value_of in captions.items():
        lines = [
            (model, str(_seeds(rows, model)), *(_percent(values[name]) for name in names))
            for model, values in by_model(rows, value_of).items()
        ]
        parts.append(f'{caption}\n\n{tables.markdown(("model", "seeds", *names), lines)}')
    iou_lines: list[tuple[str, ...]] = []
    for model, values in by_model(rows, lambda row: row.iou).items():
        iou_lines.append((model, *(_percent(values[name]) for name in names)))
        theirs = [published(model, name) for name in names]
        if any(value is not None for value in theirs):
            shown = ('' if value is None else f'{value:.1f}' for value in theirs)
            iou_lines.append((f'{model} (paper, Cityscapes)', *shown))
    parts.append(
        'Mean IoU of the classes of the family in percent; the paper claims "obvious advantages" '
        'of\n{LOCAL, GRID} over FULL in all three of its families.\n\n'
        + tables.markdown(('model', *names), iou_lines)
    )
    return '\n'.join(parts)


def _percent(values: Sequence[float]) -> str:
    return spread(values) if values else ''


def _seeds(rows: Sequence[Row], model: str) -> int:
    return len({row.run for row in rows if row.model == model})


def main(options: argparse.Namespace) -> None:
    """Measures the runs of the command line."""
    rows: list[Row] = []
    common: tuple[str, tuple[str, ...]] | None = None
    for run in runs.select(options.workdir):
        for evaluation in evaluations(run, options.split):
            data = evaluation['dataset'], tuple(evaluation['classes'])
            common = common or data
            if data != common:
                raise InputError(f'{run.workdir} is of {data[0]!r}, others of {common[0]!r}')
            model = name_with_plan(run.model, evaluation.get('inference', _SINGLE))
            groups = confusable.groups_of(*common, options.family)
            rows += measure(evaluation, model, run.title, groups)
    tables.write_csv(options.out / 'confusion.csv', rows)
    names = list(dict.fromkeys(row.family for row in rows))
    shares = {
        model: [[100 * value for value in values[name]] for name in names]
        for model, values in by_model(rows, lambda row: row.confused).items()
    }
    pictures.draw_bars(options.out / 'confusion.png', names, shares, 'confused in the family, %')
    tables.write_text(options.out / 'confusion.md', markdown(rows))


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__)
    runs.add_workdirs(parser)
    parser.add_argument(
        '--split', default='validation', help='split of the evaluations [validation]'
    )
    confusable.add_arguments(parser)
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
