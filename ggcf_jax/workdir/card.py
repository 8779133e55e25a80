"""`card.md`: a trained model on one page, for those who get it without its workdir.

Markdown with the front matter that model hubs read. It names no directory of the machine that the
model was trained on.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ggcf_jax import json_files
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import metrics
from ggcf_jax.workdir import classes as classes_lib
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import evaluations as evaluations_lib
from ggcf_jax.workdir import provenance

FILE_NAME = 'card.md'

LOW = 0.5  # IoU below which the card names a class among the limits

Content = Mapping[str, Any]  # a JSON object

# What the recipe lists: name on the card -> field of the configuration.
_RECIPE = {
    'backbone': 'model.backbone.name',
    'width of the backbone': 'model.backbone.width',
    'output stride': 'model.backbone.stride',
    'weights at the start': 'model.backbone.weights',
    'started from': 'train.start_from',
    'input': 'model.input',
    'context module': 'model.context',
    'heads': 'model.heads',
    'loss': 'train.loss',
    'optimiser': 'train.optimizer',
    'learning rate': 'train.learning_rate',
    'steps': 'train.steps',
    'batch size': 'train.batch_size',
    'crop (height, width)': 'data.crop_size',
    'random scales': 'data.scale_range',
    'precision': 'train.dtype',
}
_PLACES = ('model.backbone.weights', 'train.start_from')  # of which the last name is shown


def of_workdir(
    workdir: pathlib.Path,
    step: int | None,
    *,
    plan: str,
    files: Mapping[str, str],
    license_: str = '',
) -> str:
    """Returns the card of a run.

    Args:
        workdir: directory of the run; config.json, classes.json, run.json and evaluations/*.json
            are read as far as they are there.
        step: number of training steps done at the checkpoint; None if there is none yet.
        plan: how the class scores of an image are found.
        files: name of each file that the card comes with -> its SHA-256.
        license_: licence of the model, such as 'cc-by-4.0'; '' if nobody has said.

    Raises:
        InputError: one of the files is damaged.
    """
    config = _content(workdir / workdir_config.FILE_NAME)
    classes = _content(workdir / classes_lib.FILE_NAME)
    run = provenance.read(workdir)
    paths = sorted((workdir / 'evaluations').glob('*.json'))
    found = [each for each in map(evaluations_lib.read, paths) if each['step'] == step]
    # What this plan gave is shown by class, else what training measured.
    found.sort(key=lambda each: (each['inference'] != plan, each['conditions']['by'] != 'training'))
    lines = [
        *_front_matter(license_, found, config),
        f'# {_title(config, classes)}',
        '',
        *_facts(step, run, plan),
        *_data(config, classes),
        *_recipe(config),
        *_metrics(found),
        *_limits(config, found),
        *_files(files),
        *_license(license_),
    ]
    return '\n'.join(lines) + '\n'


def _content(path: pathlib.Path) -> Content:
    """A JSON object; {} where the file is missing."""
    try:
        return json_files.parse_object(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f'{path} is not JSON ({error}); restore or delete it') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error


def _field(config: Content, name: str) -> Any:
    """The value of a field; None where an older file has none."""
    value: Any = config
    for part in name.split('.'):
        value = value.get(part) if isinstance(value, dict) else None
    if name in _PLACES and isinstance(value, str):
        return pathlib.PurePath(value).name
    return value


def _title(config: Content, classes: Content) -> str:
    name = classes.get('dataset') or _field(config, 'data.name') or 'unnamed data'
    context = _field(config, 'model.context')
    network = 'GGCF' if context == 'ggcf' else str(context or 'a network')
    return f'{network} on {name}, {_field(config, "model.backbone.name") or "unknown backbone"}'


def _front_matter(license_: str, found: Sequence[Content], config: Content) -> Iterator[str]:
    yield '---'
    yield f'license: {json.dumps(license_ or "unknown")}'
    yield 'library_name: ggcf_jax'
    yield 'pipeline_tag: image-segmentation'
    yield 'tags: [semantic-segmentation, jax]'
    if found and found[0]['miou'] is not None:
        yield f'miou: {found[0]["miou"]:.4f}'
    yield '---'
    yield ''


def _facts(step: int | None, run: Content, plan: str) -> Iterator[str]:
    rows = [
        ('task', 'semantic segmentation: a class for every pixel of an RGB image'),
        ('checkpoint', 'none yet' if step is None else f'step {step:,}'),
        ('inference', plan),
        ('started', run.get('started')),
        ('devices', run.get('devices')),
        ('source', run.get('git')),
        ('versions', ', '.join(f'{k} {v}' for k, v in (run.get('versions') or {}).items())),
    ]
    yield from _table(('', ''), [(k, str(v)) for k, v in rows if v])


def _data(config: Content, classes: Content) -> Iterator[str]:
    yield '## Data'
    yield ''
    images = classes.get('images') or {}
    counts = ', '.join(f'{count:,} images of {split}' for split, count in images.items())
    split = _field(config, 'data.train_split')
    trained = f'Trained on {split!r}' + (f': {counts}' if counts else '')
    yield f'{trained}. Data set: {classes.get("dataset") or _field(config, "data.name")}.'
    yield ''
    names = classes.get('names') or []
    if names:
        values, colors = classes.get('label_values'), classes.get('colors') or []
        rows = []
        for i, name in enumerate(names):
            value = ', '.join(map(str, values[i])) if values else ''
            color = ', '.join(map(str, colors[i])) if colors else ''
            rows.append((str(i), name, value, color))
        yield from _table(('index', 'class', 'label values', 'colour'), rows)


def _recipe(config: Content) -> Iterator[str]:
    yield '## Recipe'
    yield ''
    rows = [(name, _field(config, field)) for name, field in _RECIPE.items()]
    yield from _table(('', ''), [(name, _shown(x)) for name, x in rows if x not in (None, '')])
    yield 'All fields are in `config.json`.'
    yield ''


def _metrics(found: Sequence[Content]) -> Iterator[str]:
    yield '## Metrics'
    yield ''
    if not found:
        yield 'This checkpoint has not been evaluated.'
        yield ''
        return
    names = list(dict.fromkeys(name for each in found for name in each['metrics']))
    rows = []
    for each in found:
        cells = (_fixed(each['metrics'].get(name)) for name in names)
        images = '' if each['images'] is None else f'{each["images"]:,}'
        rows.append((each['split'], images, each['inference'], *cells))
    yield from _table(('split', 'images', 'inference', *names), rows)
    best = found[0]
    matrix = np.asarray(best['matrix'])
    columns = {
        'IoU': [best['iou'][name] for name in best['classes']],
        'precision': metrics.class_precision(matrix).tolist(),
        'recall': metrics.class_recall(matrix).tolist(),
        'F1': metrics.class_f1(matrix).tolist(),
    }
    yield f'By class: {best["split"]}, {best["inference"]}.'
    yield ''
    rows = [(name, *map(_fixed, cells)) for name, *cells in zip(best['classes'], *columns.values())]
    yield from _table(('class', *columns), rows)


def _limits(config: Content, found: Sequence[Content]) -> Iterator[str]:
    yield '## Limits'
    yield ''
    size, scales = _field(config, 'data.crop_size'), _field(config, 'data.scale_range')
    if size and scales:
        yield (
            f'- Trained on crops of {size[0]} x {size[1]} pixels at {scales[0]} to {scales[1]} '
            'times their size: objects at other scales were not seen.'
        )
    if found:
        best = found[0]
        low = [
            name
            for name in best['classes']
            if best['iou'][name] is not None and best['iou'][name] < LOW
        ]
        yield (
            f'- The figures are of the split {best["split"]!r} of the same data set; nothing was '
            'measured on images of another origin.'
        )
        if low:
            yield f'- IoU below {LOW}: {", ".join(low)}.'
        if best['absent']:
            yield f'- Not measured, since no image has them: {", ".join(best["absent"])}.'
    else:
        yield '- Nothing was measured.'
    yield (
        '- Every pixel gets one of the classes above, also where the image shows none of them, and '
        'probabilities are not calibrated.'
    )
    yield ''


def _files(files: Mapping[str, str]) -> Iterator[str]:
    if not files:
        return
    yield '## Files'
    yield ''
    yield from _table(('file', 'SHA-256'), [(name, f'`{x}`') for name, x in files.items()])


def _license(license_: str) -> Iterator[str]:
    yield '## Licence'
    yield ''
    yield (
        license_
        or 'Not stated. Whoever passes the model on states it (`--license` of `--mode=export`); '
        'the terms of the data set and of the weights at the start apply as well.'
    )


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """A table, followed by an empty line."""
    for row in (header, ('---',) * len(header), *rows):
        cells = (str(cell).replace('|', '\\|').replace('\n', ' ') for cell in row)
        yield f'| {" | ".join(cells)} |'
    yield ''


def _shown(value: Any) -> str:
    return ', '.join(map(str, value)) if isinstance(value, list) else str(value)


def _fixed(value: float | None) -> str:
    return '' if value is None or np.isnan(value) else f'{value:.4f}'
