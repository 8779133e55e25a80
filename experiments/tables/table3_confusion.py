"""The claim of section 4.3 in numbers: how often classes that look alike are taken for each other.

    python -m experiments.tables.table3_confusion --out=runs/families \
        --workdir runs/table1/baseline runs/table1/full runs/table1/local_grid_8_16_24

Reads the confusion matrices in <workdir>/evaluations and needs neither data nor checkpoints: of
each way of evaluating (whole image, with Context Pruning, ...) the latest step. For each family of
classes (--family; wall/fence/building, bus/truck/train, vegetation/terrain) it tells which share of
the family's pixels is taken for another class of the family, mean and standard deviation over the
seeds, and the mean IoU of its classes beside the paper's Table 3, which has no confusions.

Writes <out>/confusion.csv, <out>/confusion.md and <out>/confusion.png. Run it from the root of the
repository.
"""

import dataclasses
import json
import re
import statistics
from collections.abc import Sequence

import numpy as np

from experiments.common import cli, confusable, paper, pictures, runs, tables
from experiments.common.confusable import Family
from experiments.tables.table1 import spread
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import metrics

_SINGLE = 'whole image'


@dataclasses.dataclass(frozen=True)
class Row:
    """One family in one evaluation of one run.

    Attributes:
        model: its name, with how it was evaluated unless that was the whole image at once.
        run: title. step: of the checkpoint.
        family: name. pixels: whose ground truth is in the family.
        right, confused, outside: shares of them that are taken for their own class, for another of
            the family, for one outside of it.
        confused_inside: share of confused ones among those that are taken for one of the family.
        iou: mean IoU of the classes of the family that occur.
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


def evaluations(run: runs.Chosen, split: str) -> list[dict]:
    """The latest evaluation of a split for each way of evaluating, as `evaluation_files` wrote it.

    Raises:
        InputError: there is none.
    """
    latest: dict[str, dict] = {}
    for path in sorted((run.workdir / 'evaluations').glob('*.json')):
        found = json.loads(path.read_text(encoding='utf-8'))
        way = found.get('inference', _SINGLE)
        if found['split'] == split and found['step'] >= latest.get(way, found)['step']:
            latest[way] = found
    if not latest:
        raise InputError(
            f'{run.workdir} has no evaluation of split {split!r}; make one by python main.py '
            f'--mode=evaluate --workdir={run.workdir} --split={split}'
        )
    return list(latest.values())


def named(model: str, way: str) -> str:
    """The model's name with how it was evaluated (`inference.Plan` as a string)."""
    if way == _SINGLE:
        return model
    rules = way.removeprefix(f'{_SINGLE}, pruning ')
    if rules == way or ':random' in rules:
        return f'{model}, {way}'
    return f'{model} + ContextPruning ({rules})'


def measure(evaluation: dict, model: str, run: str, known: Sequence[Family]) -> list[Row]:
    """A row a family; NaN where the family has no pixels."""
    matrix = np.asarray(evaluation['matrix'], np.int64)
    iou = metrics.class_iou(matrix)
    rows = []
    for family in known:
        right, confused, outside = confusable.counts(family, matrix).tolist()
        pixels, inside = right + confused + outside, right + confused
        members = iou[list(family.members)]
        rows.append(
            Row(
                model,
                run,
                evaluation['step'],
                family.name,
                pixels,
                _share(right, pixels),
                _share(confused, pixels),
                _share(outside, pixels),
                _share(confused, inside),
                float(np.nanmean(members)) if not np.isnan(members).all() else float('nan'),
            )
        )
    return rows


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float('nan')


def published(model: str, family: str) -> float | None:
    """Mean IoU in percent of the family's classes in the paper's Table 3, None of others.

    A model stands for the paper's of the same form, whatever the sizes of its heads and whatever
    is pruned.
    """
    model = re.sub(r' \(.*\)$', '', model)
    for name, iou in paper.TABLE3.items():
        if re.sub(r'\d+', '', name) == re.sub(r'\d+', '', model):
            values = [iou.get(each) for each in family.split('/')]
            return None if None in values else statistics.mean(values)
    return None


def seeds(rows: Sequence[Row], field: str) -> dict[str, dict[str, list[float]]]:
    """Model -> family -> the values of a field over the seeds, without NaN."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        values = found.setdefault(row.model, {}).setdefault(row.family, [])
        value = getattr(row, field)
        if value == value:
            values.append(value)
    return found


def markdown(rows: Sequence[Row]) -> str:
    """A table for each share, and one of the IoU beside the paper's."""
    names = list(dict.fromkeys(row.family for row in rows))
    parts = []
    for field, what in (
        ('confused', "Taken for another class of the family, in percent of the family's pixels."),
        ('confused_inside', 'The same, in percent of those taken for a class of the family.'),
        ('outside', "Taken for a class outside of the family, in percent of the family's pixels."),
    ):
        lines = [
            (model, str(_count(rows, model)), *(_percent(values[name]) for name in names))
            for model, values in seeds(rows, field).items()
        ]
        parts.append(f'{what}\n\n{tables.markdown(("model", "seeds", *names), lines)}')
    lines = []
    for model, values in seeds(rows, 'iou').items():
        lines.append((model, *(_percent(values[name]) for name in names)))
        theirs = [published(model, name) for name in names]
        if any(value is not None for value in theirs):
            shown = ('' if value is None else f'{value:.1f}' for value in theirs)
            lines.append((f'{model} (paper, Cityscapes)', *shown))
    parts.append(
        'Mean IoU of the classes of the family in percent; the paper claims "obvious advantages" '
        'of\n{LOCAL, GRID} over FULL in all three of its families.\n\n'
        + tables.markdown(('model', *names), lines)
    )
    return '\n'.join(parts)


def _percent(values: Sequence[float]) -> str:
    return spread(values) if values else ''


def _count(rows: Sequence[Row], model: str) -> int:
    return len({row.run for row in rows if row.model == model})


def main(options) -> None:
    rows: list[Row] = []
    common = None
    for run in runs.choose(options.workdir):
        for evaluation in evaluations(run, options.split):
            data = evaluation['dataset'], tuple(evaluation['classes'])
            common = common or data
            if data != common:
                raise InputError(f'{run.workdir} is of {data[0]!r}, others of {common[0]!r}')
            model = named(run.model, evaluation.get('inference', _SINGLE))
            known = confusable.of(*common, options.family)
            rows += measure(evaluation, model, run.title, known)
    tables.write_csv(options.out / 'confusion.csv', rows)
    names = list(dict.fromkeys(row.family for row in rows))
    shares = {
        model: [[100 * value for value in values[name]] for name in names]
        for model, values in seeds(rows, 'confused').items()
    }
    pictures.bars(options.out / 'confusion.png', names, shares, 'confused in the family, %')
    tables.write_text(options.out / 'confusion.md', markdown(rows))


if __name__ == '__main__':
    parser = cli.parser(__doc__)
    runs.add_workdirs(parser)
    parser.add_argument('--split', default='validation')
    confusable.add_arguments(parser)
    cli.run(main, parser)
