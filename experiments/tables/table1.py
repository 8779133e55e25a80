"""Tables 1 to 3 of the paper from the finished runs of a sweep."""

import csv
import dataclasses
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from experiments.common import paper, tables
from experiments.common.tables import spread
from experiments.tables.sweep_runs import Row, Run
from ggcf_jax import atomic
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import metrics_log


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished row of a run.

    Attributes:
        row: row of the table.
        run: run that the row evaluates.
        evaluation: content of its evaluation file.
    """

    row: Row
    run: Run
    evaluation: dict[str, Any]


def write(runs: Sequence[Run], out: pathlib.Path) -> str:
    """Writes <out>/table.csv, one line per finished run, and <out>/table.md, means over the seeds.

    The Markdown is printed, too.

    Args:
        runs: runs of the sweep.
        out: folder of the tables.

    Returns:
        The Markdown.

    Raises:
        InputError: no run is finished.
    """
    finished = [
        Finished(row, run, row.evaluation()) for run in runs for row in run.rows if row.finished
    ]
    if not finished:
        raise InputError(f'{out}: none of the {len(runs)} runs of the sweep is finished')
    with atomic.replacing(out / 'table.csv') as temporary:
        _write_csv(finished, temporary)
    text = f'{_means(finished, runs)}\n{_by_class(finished)}'
    tables.write_text(out / 'table.md', text)
    return text


def _write_csv(finished: Sequence[Finished], path: pathlib.Path) -> None:
    classes = finished[0].evaluation['classes']
    with path.open('w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(
            ['row', 'seed', 'overrides', 'miou', 'pixel_accuracy', 'train_sec', *classes]
        )
        for each in finished:
            overrides = ' '.join(f'{field}={value}' for field, value in each.row.overrides)
            result = each.evaluation
            scores = (result['miou'], result['pixel_accuracy'], _training_seconds(each.run))
            iou = (result['iou'][name] for name in classes)
            numbers = map(_format_number, (*scores, *iou))
            writer.writerow([each.row.name, each.run.seed, overrides, *numbers])


def _format_number(value: float | None) -> str:
    return '' if value is None else f'{value:.6g}'


def _training_seconds(run: Run) -> float | None:
    """Returns the seconds of training; of a resumed run, those since it was resumed."""
    found = (row.get('train/elapsed_sec') for row in metrics_log.read_rows(run.workdir))
    return max((seconds for seconds in found if seconds is not None), default=None)


def _means(finished: Sequence[Finished], runs: Sequence[Run]) -> str:
    """Formats the mIoU of each row, and its difference to FULL here and in the paper."""
    published = paper.TABLE2 if finished[0].evaluation['dataset'] == 'ade20k' else paper.TABLE1
    overrides = {each.row.name: dict(each.row.overrides) for each in finished}
    miou: dict[str, dict[int, float]] = {}
    for each in finished:
        miou.setdefault(each.row.name, {})[each.run.seed] = each.evaluation['miou']
    lines = []
    for row, seeds in miou.items():
        context = overrides[row].get('model.heads') or overrides[row].get('model.context', '')
        pruning = overrides[row].get('eval.pruning')
        context = f'`{context}`' + (f', pruned `{pruning}`' if pruning else '')
        # Seed by seed: the same seed means the same crops in the same order for all rows.
        full = miou.get('FULL', {})
        gains = [value - full[seed] for seed, value in seeds.items() if seed in full]
        gain = f'{"+" * (statistics.mean(gains) >= 0)}{spread(gains)}' if gains else ''
        theirs = published.get(row)
        their_gain = '' if theirs is None else f'{theirs - published["FULL"]:+.1f}'
        mean = spread(list(seeds.values()))
        lines.append((row, context, str(len(seeds)), mean, gain, str(theirs or ''), their_gain))
    done = sum(run.trained.finished for run in runs)
    columns = ('module', 'overrides', 'seeds', 'mIoU', 'to FULL', 'paper', 'paper to FULL')
    return (
        'Validation mIoU in percent and its difference to FULL with the same seed, mean +-\n'
        f'standard deviation over seeds; {done} of {len(runs)} runs are finished.\n\n'
        + tables.markdown(columns, lines)
    )


def _by_class(finished: Sequence[Finished]) -> str:
    """Formats the IoU of each class, mean over the seeds, as in Table 3."""
    classes = finished[0].evaluation['classes']
    by_row: dict[str, list[dict[str, Any]]] = {}
    for each in finished:
        by_row.setdefault(each.row.name, []).append(each.evaluation)
    lines = []
    for row, evaluations in by_row.items():
        means = []
        for name in classes:
            values = [
                result['iou'][name] for result in evaluations if result['iou'][name] is not None
            ]
            means.append(f'{100 * statistics.mean(values):.1f}' if values else '')
        lines.append((row, *means))
        if row in paper.TABLE3 and tuple(classes) == tuple(paper.TABLE3[row]):
            lines.append((f'{row} (paper)', *map(str, paper.TABLE3[row].values())))
    return 'IoU of each class in percent, mean over the seeds.\n\n' + tables.markdown(
        ('module', *classes), lines
    )
