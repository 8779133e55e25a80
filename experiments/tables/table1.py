"""Tables 1 to 3 of the paper from the finished runs of a sweep."""

import csv
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Sequence

from experiments.common import paper, tables
from experiments.tables.sweep_runs import Row, Run
from ggcf_jax import atomic
from ggcf_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Found:
    """A finished row of a run and its evaluation."""

    row: Row
    run: Run
    evaluation: dict


def write(runs: Sequence[Run], out: pathlib.Path) -> str:
    """Writes <out>/table.csv, a line a finished run, and <out>/table.md, means over the seeds.

    The Markdown is printed, too.

    Returns:
        The Markdown.

    Raises:
        InputError: nothing is finished.
    """
    found = [Found(row, run, row.evaluation()) for run in runs for row in run.rows if row.finished]
    if not found:
        raise InputError(f'{out}: none of the {len(runs)} runs of the sweep is finished')
    with atomic.replacing(out / 'table.csv') as temporary:
        _csv(found, temporary)
    text = f'{_means(found, runs)}\n{_by_class(found)}'
    tables.write_text(out / 'table.md', text)
    return text


def _csv(found: Sequence[Found], path: pathlib.Path) -> None:
    classes = found[0].evaluation['classes']
    with path.open('w', encoding='utf-8', newline='') as file:
        lines = csv.writer(file)
        lines.writerow(
            ['row', 'seed', 'overrides', 'miou', 'pixel_accuracy', 'train_sec', *classes]
        )
        for each in found:
            overrides = ' '.join(f'{field}={value}' for field, value in each.row.overrides)
            result = each.evaluation
            scores = (result['miou'], result['pixel_accuracy'], _seconds(each.run))
            iou = (result['iou'][name] for name in classes)
            numbers = map(_number, (*scores, *iou))
            lines.writerow([each.row.name, each.run.seed, overrides, *numbers])


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.6g}'


def _seconds(run: Run) -> float | None:
    """Seconds of training; of a run that was resumed, since then."""
    lines = (run.workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    found = [json.loads(line).get('train/elapsed_sec') for line in lines]
    return max((seconds for seconds in found if seconds is not None), default=None)


def spread(values: Sequence[float]) -> str:
    """'27.31 +- 0.42': mean and sample standard deviation, in percent."""
    text = f'{100 * statistics.mean(values):.2f}'
    return text + (f' +- {100 * statistics.stdev(values):.2f}' if len(values) > 1 else '')


def _by_row(found: Sequence[Found]) -> dict[str, list[dict]]:
    rows: dict[str, list[dict]] = {}
    for each in found:
        rows.setdefault(each.row.name, []).append(each.evaluation)
    return rows


def _means(found: Sequence[Found], runs: Sequence[Run]) -> str:
    """mIoU of each row, and by how much it differs from FULL here and in the paper."""
    published = paper.TABLE2 if found[0].evaluation['dataset'] == 'ade20k' else paper.TABLE1
    overrides = {each.row.name: dict(each.row.overrides) for each in found}
    miou: dict[str, dict[int, float]] = {}
    for each in found:
        miou.setdefault(each.row.name, {})[each.run.seed] = each.evaluation['miou']
    lines = []
    for row, seeds in miou.items():
        told = overrides[row].get('model.heads') or overrides[row].get('model.context', '')
        pruning = overrides[row].get('eval.pruning')
        told = f'`{told}`' + (f', pruned `{pruning}`' if pruning else '')
        # Seed by seed: the same seed means the same crops in the same order for all rows.
        full = miou.get('FULL', {})
        gains = [value - full[seed] for seed, value in seeds.items() if seed in full]
        gain = f'{"+" * (statistics.mean(gains) >= 0)}{spread(gains)}' if gains else ''
        theirs = published.get(row)
        their_gain = '' if theirs is None else f'{theirs - published["FULL"]:+.1f}'
        mean = spread(list(seeds.values()))
        lines.append((row, told, str(len(seeds)), mean, gain, str(theirs or ''), their_gain))
    done = sum(run.trained.finished for run in runs)
    columns = ('module', 'overrides', 'seeds', 'mIoU', 'to FULL', 'paper', 'paper to FULL')
    return (
        'Validation mIoU in percent and its difference to FULL with the same seed, mean +-\n'
        f'standard deviation over seeds; {done} of {len(runs)} runs are finished.\n\n'
        + tables.markdown(columns, lines)
    )


def _by_class(found: Sequence[Found]) -> str:
    """IoU of each class, mean over the seeds; Table 3's form."""
    classes = found[0].evaluation['classes']
    lines = []
    for row, each in _by_row(found).items():
        means = []
        for name in classes:
            values = [result['iou'][name] for result in each if result['iou'][name] is not None]
            means.append(f'{100 * statistics.mean(values):.1f}' if values else '')
        lines.append((row, *means))
        if row in paper.TABLE3 and tuple(classes) == tuple(paper.TABLE3[row]):
            lines.append((f'{row} (paper)', *map(str, paper.TABLE3[row].values())))
    return 'IoU of each class in percent, mean over the seeds.\n\n' + tables.markdown(
        ('module', *classes), lines
    )
