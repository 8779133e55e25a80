"""Tables 1 to 3 of the paper from the finished runs of a sweep."""

import csv
import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from experiments import paper
from experiments.runs import Run
from ggcf_jax.errors import InputError


def write(runs: Sequence[Run], out: pathlib.Path) -> str:
    """Writes <out>/table.csv, a line a finished run, and <out>/table.md, means over the seeds.

    Returns:
        The Markdown.

    Raises:
        InputError: nothing is finished.
    """
    done = [run for run in runs if run.finished]
    if not done:
        raise InputError(f'{out}: none of the {len(runs)} runs of the sweep is finished')
    results = {run: run.evaluation() for run in done}
    _replace(out / 'table.csv', lambda file: _csv(results, file))
    text = f'{_means(results, runs)}\n{_by_class(results)}'
    _replace(out / 'table.md', lambda file: file.write(text))
    return text


def _replace(path: pathlib.Path, fill) -> None:
    temporary = path.with_suffix('.tmp')
    with temporary.open('w', encoding='utf-8', newline='') as file:
        fill(file)
    os.replace(temporary, path)


def _csv(results: Mapping[Run, dict], file) -> None:
    lines = csv.writer(file)
    classes = next(iter(results.values()))['classes']
    lines.writerow(['row', 'seed', 'overrides', 'miou', 'pixel_accuracy', 'train_sec', *classes])
    for run, result in results.items():
        overrides = ' '.join(f'{field}={value}' for field, value in run.overrides)
        scores = (result['miou'], result['pixel_accuracy'], _seconds(run))
        iou = (result['iou'][name] for name in classes)
        lines.writerow([run.row, run.seed, overrides, *map(_number, (*scores, *iou))])


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


def _by_row(results: Mapping[Run, dict]) -> dict[str, list[dict]]:
    rows: dict[str, list[dict]] = {}
    for run, result in results.items():
        rows.setdefault(run.row, []).append(result)
    return rows


def _means(results: Mapping[Run, dict], runs: Sequence[Run]) -> str:
    """mIoU of each row, and by how much it differs from FULL here and in the paper."""
    rows = _by_row(results)
    published = (
        paper.TABLE2 if next(iter(results.values()))['dataset'] == 'ade20k' else paper.TABLE1
    )
    full = statistics.mean(each['miou'] for each in rows['FULL']) if 'FULL' in rows else None
    lines = [
        f'Validation mIoU in percent, mean +- standard deviation over seeds; {len(results)} of '
        f'{len(runs)} runs are finished.',
        '',
        '| module | overrides | seeds | mIoU | to FULL | paper | paper to FULL |',
        '|---|---|--:|--:|--:|--:|--:|',
    ]
    overrides = {run.row: dict(run.overrides) for run in results}
    for row, found in rows.items():
        values = [each['miou'] for each in found]
        told = overrides[row].get('model.heads') or overrides[row].get('model.context', '')
        gain = '' if full is None else f'{100 * (statistics.mean(values) - full):+.2f}'
        theirs, their_gain = published.get(row), ''
        if theirs is not None:
            their_gain = f'{theirs - published["FULL"]:+.1f}'
        lines.append(
            f'| {row} | `{told}` | {len(values)} | {spread(values)} | {gain} | '
            f'{"" if theirs is None else theirs} | {their_gain} |'
        )
    return '\n'.join(lines) + '\n'


def _by_class(results: Mapping[Run, dict]) -> str:
    """IoU of each class, mean over the seeds; Table 3's form."""
    rows = _by_row(results)
    classes = next(iter(results.values()))['classes']
    lines = [f'| module | {" | ".join(classes)} |', '|---|' + '--:|' * len(classes)]
    for row, found in rows.items():
        means = []
        for name in classes:
            values = [each['iou'][name] for each in found if each['iou'][name] is not None]
            means.append(f'{100 * statistics.mean(values):.1f}' if values else '')
        lines.append(f'| {row} | {" | ".join(means)} |')
        if row in paper.TABLE3 and tuple(classes) == tuple(paper.TABLE3[row]):
            theirs = ' | '.join(str(value) for value in paper.TABLE3[row].values())
            lines.append(f'| {row} (paper) | {theirs} |')
    return 'IoU of each class in percent, mean over the seeds.\n\n' + '\n'.join(lines) + '\n'
