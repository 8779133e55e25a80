"""`report.html`: one page about a run, made from its workdir alone."""

import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np

from ggcf_jax import atomic, json_files, places
from ggcf_jax.display import charts, html
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import metrics
from ggcf_jax.workdir import card, host_times, metrics_log, provenance, released
from ggcf_jax.workdir import evaluations as evaluations_lib

Content = Mapping[str, Any]  # a JSON object
Rows = Sequence[Content]

FILE_NAME = 'report.html'

_READERS = 8  # threads that read evaluations

# Classes in one bar chart; more are shown in several side by side.
_BARS = 50

# Panels are embedded at the width of the page, with this WebP quality: rows of four at full size
# would be many megabytes.
_PANEL_WIDTH = 1200
_PANEL_QUALITY = 80


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Writes `report.html` and `card.md` into the workdir of a run, finished or not.

    Reads metrics.jsonl, config.json, run.json, evaluations/*.json and the latest panels; what is
    not there yet is left out and said so. The page has no scripts and everything that it shows is
    inside; its thumbnails lead to the full panels in the workdir.

    Returns:
        The path of the report.

    Raises:
        InputError: the workdir does not exist, or a file in it is damaged.
    """
    workdir = places.expand(workdir)
    if not workdir.is_dir():
        raise InputError(f'workdir {workdir} does not exist; give the directory of a run')
    config = _configuration_file(workdir / 'config.json')
    run = provenance.read(workdir)
    rows = _merged(metrics_log.read_rows(workdir))
    paths = sorted((workdir / 'evaluations').glob('*.json'))
    with ThreadPoolExecutor(_READERS) as pool:  # which a bucket needs
        contents = list(pool.map(evaluations_lib.read, paths))
    evaluations = sorted(contents, key=lambda each: each['step'])
    main = _headline(evaluations)
    best = max(main, key=lambda each: _score(each['miou']), default=None)

    body = [html.facts(_facts(config, rows, main, best)), _curves(rows)]
    body += [_times(rows, run.get('machines') or [])] if _column(rows, 'train/step_sec')[0] else []
    if best is None:
        body.append(html.section('Evaluation', html.text('No evaluation yet.')))
    else:
        body.append(_classes(best))
    body.append(_predictions(workdir, evaluations))
    body += [
        _worst_images(workdir, each, each['inference']) for each in evaluations if each.get('worst')
    ][-1:]
    body += [_evaluations(evaluations)] if evaluations else []
    segments = config.pop('segments', [])
    body += [_segments(segments)] if segments else []
    body += [_provenance(run), _configuration(config)]
    title = str(_section(config, 'data').get('name') or workdir.resolve().name)
    document = html.page(f'GGCF on {title}', _subtitle(config, run), body)

    if not released.is_one(workdir):  # which has the card that it was released with
        text = card.of_workdir(
            workdir,
            None if best is None else best['step'],
            plan=evaluations_lib.SINGLE if best is None else best['inference'],
            files={},
        )
        atomic.write(workdir / card.FILE_NAME, text.encode(errors='replace'))
    path = workdir / FILE_NAME
    # Names of files may hold bytes that are no characters.
    atomic.write(path, document.encode(errors='replace'))
    return path


def _configuration_file(path: pathlib.Path) -> dict[str, Any]:
    """The configuration as it is written, {} where the file is missing; any fields are shown."""
    if not path.exists():
        return {}
    try:
        return json_files.parse_object(path.read_bytes())
    except ValueError as error:
        raise InputError(f'{path} is not JSON ({error}); restore or delete it') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error


def _section(config: Content, name: str) -> Content:
    """A section of the configuration; {} where there is none."""
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _merged(rows: Rows) -> list[dict[str, Any]]:
    """One row a step in step order; a later row wins, as when a finished run evaluates again."""
    steps: dict[int, dict[str, Any]] = {}
    for row in rows:
        steps.setdefault(row['step'], {}).update(row)
    return [steps[step] for step in sorted(steps)]


def _headline(evaluations: Rows) -> list[Content]:
    """What training measured on the way; if it did not, one kind of what was evaluated later.

    That is the validation split, or else the first there is, by one view of the whole image if
    that was tried, and with one number of images.
    """
    own = [each for each in evaluations if each['conditions']['by'] == 'training']
    if own or not evaluations:
        return own
    splits = sorted({each['split'] for each in evaluations}, key=lambda s: (s != 'validation', s))
    found = [each for each in evaluations if each['split'] == splits[0]]
    found = [each for each in found if each['inference'] == evaluations_lib.SINGLE] or found
    return [each for each in found if each['conditions'] == found[-1]['conditions']]


def _metrics(evaluation: Content) -> dict[str, float | None]:
    """Value of each metric but the mIoU, by its name."""
    return {name: value for name, value in evaluation['metrics'].items() if name != 'miou'}


def _label(metric: str) -> str:
    return metric.replace('_', ' ')


def _score(miou: float | None) -> float:
    return -math.inf if miou is None or math.isnan(miou) else miou


def _column(rows: Rows, name: str) -> tuple[list[int], list[float | None]]:
    """Steps and values of the rows that have `name`; NaN was written as null and reads as None."""
    found = [(row['step'], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]


def _facts(
    config: Content, rows: Rows, main: Rows, best: Content | None
) -> list[tuple[str, str, str]]:
    """Headline figures, each (label, value, remark)."""
    items = []
    if best is not None:
        items.append(('best mIoU', _fixed(best['miou']), f'{best["split"]}, step {best["step"]}'))
        final = main[-1]
        items.append(('final mIoU', _fixed(final['miou']), f'step {final["step"]}'))
        for name, value in _metrics(best).items():
            items.append((_label(name), _fixed(value), 'at the best mIoU'))
    else:
        items.append(('best mIoU', '–', 'no evaluation yet'))
    planned = _section(config, 'train').get('steps')
    done = max((row['step'] for row in rows), default=0)
    items.append(('steps', f'{done:,}', f'of {planned:,}' if isinstance(planned, int) else ''))
    rates = [value for value in _column(rows, 'train/images_per_sec')[1] if value is not None]
    if rates:
        rate = statistics.median(rates)
        items.append(('throughput', f'{rate:.{0 if rate >= 100 else 1}f}', 'images/s, median'))
    shares = _column(rows, 'train/model_flop_utilisation')[1]
    known = [value for value in shares if value is not None]
    if known:
        items.append(
            ('utilisation', f'{statistics.median(known):.1%}', 'of the bfloat16 peak, median')
        )
    seconds = _wall_time(_column(rows, 'train/elapsed_sec')[1])
    if seconds:
        items.append(('wall time', _duration(seconds), 'of training'))
    return items


def _wall_time(elapsed: Sequence[float | None]) -> float:
    """Seconds over all the sessions of a run: the clock may start again where it was resumed."""
    total = last = 0.0
    for value in elapsed:
        if value is not None:
            total += value - last if value >= last else value
            last = value
    return total


def _curves(rows: Rows) -> str:
    columns = {
        label: _column(rows, name)
        for label, name in (
            ('loss', 'train/loss'),
            ('auxiliary loss', 'train/aux_loss'),
            ('validation loss', 'val/loss'),
        )
    }
    losses = {label: column for label, column in columns.items() if column[0]}
    rate, miou = _column(rows, 'train/learning_rate'), _column(rows, 'val/miou')
    curves = []
    if losses:
        curves.append(charts.curve_chart('training loss', losses))
    if rate[0]:
        curves.append(charts.curve_chart('learning rate', {'learning rate': rate}))
    if miou[0]:
        curves.append(charts.curve_chart('validation mIoU', {'mIoU': miou}))
    if not curves:
        return html.section('Training', html.text('No metrics yet.'))
    parts = [html.group('charts', (curve.decode() for curve in curves))]
    lost = sum(value is None for value in losses.get('loss', ([], []))[1])
    if lost:
        parts.append(html.text(f'Not finite in {lost} rows: gaps in the loss curve.'))
    return html.section('Training', *parts)


def _times(rows: Rows, machines: Sequence[str]) -> str:
    """The section of where the time went: steps, data, compilation; and the hosts.

    Args:
        rows: rows of metrics.jsonl.
        machines: name of the machine of each process at the last start; [] if it is not known.
    """
    names = {'step': 'train/step_sec', 'wait for data': 'train/data_wait_sec'}
    columns = {label: _column(rows, name) for label, name in names.items()}
    chart = charts.curve_chart('seconds of a step', columns)
    starts = [i for i, row in enumerate(rows) if row.get('run/start_sec') is not None]
    last = rows[starts[-1] if starts else 0 :]
    facts = [
        (f'{label}, median', _seconds(_median(_column(rows, name)[1])))
        for label, name in names.items()
    ]
    facts += [
        ('compilation, all starts', _seconds(sum(_known(rows, 'run/compile_sec')))),
        ('first step after the start', ', '.join(map(_seconds, _known(rows, 'run/start_sec')))),
    ]
    if peaks := _known(rows, 'train/device_memory_gib'):
        facts.append(('device memory, at most', f'{max(peaks):.2f} GiB'))
    table = html.group('wide', [html.table(x for x in facts if x[1])])
    parts = [html.group('charts', [chart.decode(), table])]
    waits = host_times.medians(last)
    if waits:
        parts += _hosts(waits, _median(_column(last, 'train/step_sec')[1]), machines)
    return html.section('Time', *parts)


def _hosts(waits: Sequence[float], step: float | None, machines: Sequence[str]) -> list[str]:
    """The wait of every host since the last start, and which of them holds up the others."""
    slow = host_times.slowest(waits, step)
    names = [*machines, *([''] * len(waits))][: len(waits)]
    rows = []
    for index, (wait, name) in enumerate(zip(waits, names)):
        share = f'{wait / step:.0%}' if step else ''
        rows.append(
            (str(index), name, _seconds(wait), share, 'holds up the others' * (index == slow))
        )
    if slow is None:
        told = 'No host waits much longer for its data than the others.'
    else:
        where = f' on {names[slow]}' if names[slow] else ''
        told = (
            f'Process {slow}{where} holds up the others: look at its disk, its cores and what else '
            'runs there.'
        )
    header = ('process', 'machine', 'wait for data', 'of a step', '')
    return [
        html.text(f'Since the last start, medians. {told}'),
        html.group('wide', [html.table(rows, header)]),
    ]


def _known(rows: Rows, name: str) -> list[float]:
    return [value for value in _column(rows, name)[1] if value is not None]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _seconds(value: float | None) -> str:
    return f'{value:.3g} s' if value else ''


def _classes(best: Content) -> str:
    names, colors = best['classes'], best['colors']
    source = f'{best["split"]}, step {best["step"]}'
    bars = []
    for first in range(0, len(names), _BARS):
        part = slice(first, first + _BARS)
        iou = [best['iou'][name] for name in names[part]]
        bars.append(charts.iou_chart(names[part], iou, colors[part]).decode())
    absent = 'Every class occurs in the ground truth or the prediction.'
    if best['absent']:
        absent = (
            'Absent, in neither ground truth nor prediction, and excluded from the mean: '
            + ', '.join(best['absent'])
            + '.'
        )
    ious = html.section(
        'IoU per class',
        html.text(source),
        html.group('charts', bars),
        html.text(absent),
    )
    matrix = html.section(
        'Confusion matrix',
        html.text(f'{source}; percent of the pixels of each ground truth class'),
        charts.confusion_chart(np.asarray(best['matrix']), names).decode(),
    )
    shown = html.group('pair', [ious, matrix]) if len(bars) == 1 else ious + matrix
    return shown + html.section('Precision, recall and F1 per class', *_per_class(best))


def _per_class(best: Content) -> list[str]:
    """A table of the metrics of each class, which follow from the confusion matrix."""
    matrix = np.asarray(best['matrix'])
    columns = {
        'IoU': [best['iou'][name] for name in best['classes']],
        'precision': metrics.class_precision(matrix).tolist(),
        'recall': metrics.class_recall(matrix).tolist(),
        'F1 (Dice)': metrics.class_f1(matrix).tolist(),
        'pixels': matrix.sum(1).tolist(),
    }
    rows = []
    for name, *values, pixels in zip(best['classes'], *columns.values()):
        cells = ('' if _score(value) == -math.inf else f'{value:.4f}' for value in values)
        rows.append((name, *cells, f'{pixels:,}'))
    return [html.group('wide', [html.table(rows, ('class', *columns))])]


def _predictions(workdir: pathlib.Path, evaluations: Rows) -> str:
    """The section of the panels of the last evaluation that training made.

    Args:
        workdir: of a run.
        evaluations: what `evaluations/*.json` hold, the latest last; for the colours of classes.

    Raises:
        InputError: a panel is not a picture.
    """
    paths = (workdir / 'panels').glob('*/*.png')
    folders = {path.parent for path in paths if path.parent.name.isdigit()}
    if not folders:
        return html.section('Predictions', html.text('No panels yet.'))
    folder = max(folders, key=lambda each: int(each.name))
    parts = [
        html.text(
            f'Step {int(folder.name)}. Errors are red on the dimmed image, ignored pixels grey '
            '(black in the ground truth). A click opens the full panel.'
        )
    ]
    if evaluations:
        names, colors = evaluations[-1]['classes'], evaluations[-1]['colors']
        parts.append(html.legend(dict(zip(names, map(tuple, colors)))))
    for path in sorted(folder.glob('*.png'), key=lambda each: _panel_index(each.name)):
        name = path.stem.partition('_')[2] or path.stem
        parts.append(_thumbnail(workdir, path, name))
    return html.section('Predictions', *parts)


def _worst_images(workdir: pathlib.Path, evaluation: Content, inference: str) -> str:
    """The section of the images with the lowest mean IoU.

    Args:
        workdir: of a run.
        evaluation: what a file in `evaluations` holds.
        inference: how its images were looked at.

    Raises:
        InputError: a panel is not a picture.
    """
    parts = [
        html.text(
            f'{evaluation["split"]}, step {evaluation["step"]}, {inference}: the '
            'images with the lowest mean IoU over their own classes.'
        )
    ]
    for image in evaluation['worst']:
        path = workdir / image['panel']
        if path.is_file():  # or it was removed
            parts.append(_thumbnail(workdir, path, f'{image["name"]}: {image["miou"]:.3f}'))
    return html.section('Worst images', *parts)


def _panel_index(name: str) -> tuple[int, str]:
    index = name.partition('_')[0]
    return (int(index) if index.isdigit() else 0, name)


def _thumbnail(workdir: pathlib.Path, path: pathlib.Path, caption: str) -> str:
    """A panel at most `_PANEL_WIDTH` pixels wide, which leads to the file."""
    data = path.read_bytes()
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        raise InputError(f'{path} is not a readable PNG; delete it')
    height, width = picture.shape[:2]
    if width > _PANEL_WIDTH:
        size = (_PANEL_WIDTH, max(round(height * _PANEL_WIDTH / width), 1))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    options = (cv2.IMWRITE_WEBP_QUALITY, _PANEL_QUALITY)
    small = cv2.imencode('.webp', picture, options)[1].tobytes()
    return html.thumbnail(small, caption, path.relative_to(workdir).as_posix())


def _evaluations(evaluations: Rows) -> str:
    names = dict.fromkeys(name for each in evaluations for name in _metrics(each))
    rows = []
    for each in evaluations:
        values = _metrics(each)
        cells = (_fixed(values[name]) if name in values else '' for name in names)
        images = '' if each['images'] is None else f'{each["images"]:,}'
        how = (str(each['step']), each['split'], images, each['inference'], _made(each))
        rows.append((*how, _fixed(each['miou']), *cells))
    header = ('step', 'split', 'images', 'inference', 'made', 'mIoU', *map(_label, names))
    return html.section('Evaluations', html.group('wide', [html.table(rows, header)]))


def _made(evaluation: Content) -> str:
    """Who evaluated, and how sides were padded and numbers computed where the file says so."""
    made = evaluation['conditions']
    by = 'in training' if made['by'] == 'training' else 'later'
    known = [str(made[name]) for name in ('dtype',) if name in made]
    if 'size_multiple' in made:
        known.append(f'multiples of {made["size_multiple"]}')
    return ', '.join([by, *known])


def _provenance(run: Content) -> str:
    if not run:
        text = 'run.json is missing: command and versions were not recorded.'
        return html.section('How it was made', html.text(text))
    parts = [html.verbatim(str(run['command']))] if run.get('command') else []
    names = ('started', 'devices', 'platform', 'git')
    facts = [(name, str(run[name])) for name in names if run.get(name) is not None]
    versions = run.get('versions') or {}
    if versions:
        facts.append(('versions', ', '.join(f'{name} {value}' for name, value in versions.items())))
    return html.section('How it was made', *parts, html.table(facts))


def _segments(segments: Rows) -> str:
    """The section of the changes that were accepted while the run went on."""
    rows = [
        (str(number), str(each['step']), name, _shown(before), _shown(now))
        for number, each in enumerate(segments, 1)
        for name, (before, now) in each['changes'].items()
    ]
    return html.section(
        'Segments',
        html.text('After these steps the run went on with other values than before.'),
        html.group('wide', [html.table(rows, ('segment', 'after step', 'field', 'before', 'now'))]),
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _configuration(config: Content) -> str:
    rows = _flat(config)
    if not rows:
        return html.section(
            'Configuration', html.text('config.json is missing: it was not recorded.')
        )
    return html.section('Configuration', html.group('columns', [html.table(rows)]))


def _flat(config: Content, prefix: str = '') -> list[tuple[str, str]]:
    """Dotted names and values, in the file's order; values as JSON writes them, text bare."""
    rows = []
    for name, value in config.items():
        if isinstance(value, dict):
            rows += _flat(value, f'{prefix}{name}.')
        else:
            rows.append((prefix + name, _shown(value)))
    return rows


def _subtitle(config: Content, run: Content) -> str:
    model = _section(config, 'model')
    backbone = _section(model, 'backbone').get('name')
    context, heads = model.get('context'), model.get('heads')
    pieces = [backbone, context, heads if context == 'ggcf' else None, run.get('started')]
    return ' · '.join(str(piece) for piece in pieces if piece)


def _fixed(value: float | None) -> str:
    return 'undefined' if _score(value) == -math.inf else f'{value:.4f}'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes:02d} min' if hours else f'{minutes} min {rest:02d} s'
