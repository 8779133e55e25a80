"""Files of an evaluation in the workdir: numbers, confusion matrix and panels."""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import re
from typing import Any, Literal

import numpy as np
from ml_collections import ConfigDict

from ggcf_jax import atomic, json_files
from ggcf_jax.data.records import names
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.display import charts, pictures
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.evaluation.results import Evaluation, Sample

SINGLE = str(inference.SINGLE)  # one view of the whole image


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What the numbers of an evaluation depend on besides the network, its split and its step.

    Evaluations of other conditions are other results and lie side by side.

    Attributes:
        by: 'training' for what training measured on the way, which nothing else may replace;
            'evaluate' for the mode of that name.
        plan: how the class scores of an image were found.
        split: name of the split.
        data: identity of the data set.
        images: number of images of the split.
        size_multiple: number of pixels that sides were padded to multiples of.
        max_sizes: maximum number of padded sizes.
        dtype: precision of the network.
        boundary: distance to contours of the boundary IoU; 0 if it was not computed.
    """

    by: Literal['training', 'evaluate']
    plan: inference.Plan
    split: str
    data: str
    images: int
    size_multiple: int
    max_sizes: int
    dtype: str
    boundary: float

    @property
    def content(self) -> dict[str, Any]:
        """As the file holds them; older files know no boundary."""
        content = dataclasses.asdict(self) | {'plan': str(self.plan)}
        if not self.boundary:
            del content['boundary']
        return content


def conditions(
    by: Literal['training', 'evaluate'],
    plan: inference.Plan,
    config: ConfigDict,
    dataset: Dataset,
    split: str,
) -> Conditions:
    """The conditions of an evaluation that is made now.

    Args:
        by: who evaluates.
        plan: how the class scores of an image are found.
        config: configuration; reads `eval.size_multiple`, `eval.max_sizes`, `eval.boundary` and
            `train.dtype`.
        dataset: data set that is evaluated.
        split: split of it.
    """
    return _conditions(
        by, plan, config, dataset.identity_of(split), len(dataset.source(split)), split
    )


def _conditions(
    by: Literal['training', 'evaluate'],
    plan: inference.Plan,
    config: ConfigDict,
    data: str,
    images: int,
    split: str,
) -> Conditions:
    return Conditions(
        by,
        plan,
        split,
        data,
        images,
        config.eval.size_multiple,
        config.eval.max_sizes,
        config.train.dtype,
        config.eval.boundary if by == 'evaluate' else 0.0,
    )


def save(
    evaluation: Evaluation,
    dataset: Dataset,
    step: int,
    workdir: pathlib.Path,
    made: Conditions,
) -> list[tuple[str, np.ndarray]]:
    """Writes `evaluations/<stem>.json` and the panels.

    What training measured is `<split>_<step>`; anything else has its plan in the name as well, and
    a digest of its conditions where a file of other conditions has that name already.

    Args:
        evaluation: result to write.
        dataset: data set that was evaluated.
        step: number of training steps done at the checkpoint.
        workdir: directory of the run.
        made: conditions under which it was made.

    Returns:
        (name, uint8 [h, w, 3] panel) of the first images.

    Raises:
        InputError: a file of this name is damaged, or a class or image has a name that no file
            can have.
    """
    this = _stem_of(step, workdir, made)
    # The report shows the folder of the latest step.
    folder = f'{step:08d}' if made.by == 'training' else this
    iou = evaluation.iou
    folders = workdir / 'panels'
    worst = []
    for rank, image in enumerate(evaluation.worst):
        path = _panel_path(folders / f'worst_{this}', rank, image.name)
        pictures.write_png(path, _panel(image.sample, dataset))
        shown = path.relative_to(workdir).as_posix()
        worst.append({'name': image.name, 'miou': image.miou, 'panel': shown})
    content = {
        'step': step,
        'split': evaluation.split,
        'inference': str(made.plan),
        'dataset': dataset.name,
        'images': made.images,
        'conditions': made.content,
        'classes': dataset.classes,
        'colors': dataset.colors,
        'matrix': evaluation.matrix.tolist(),
        'miou': _or_none(evaluation.miou),
        'pixel_accuracy': _or_none(evaluation.pixel_accuracy),
        'metrics': {name: _or_none(value) for name, value in evaluation.scores.items()},
        'iou': iou,
        'per_class': evaluation.per_class,
        'absent': [name for name, value in iou.items() if value is None],
        'category_iou': evaluation.category_iou,
        'category_miou': _or_none(evaluation.category_miou),
        'worst': worst,
    }
    atomic.write(workdir / 'evaluations' / f'{this}.json', json.dumps(content).encode())
    panels = [(sample.name, _panel(sample, dataset)) for sample in evaluation.samples]
    for i, (name, panel) in enumerate(panels):
        pictures.write_png(_panel_path(folders / folder, i, name), panel)
    return panels


def save_confusion(
    evaluation: Evaluation, step: int, workdir: pathlib.Path, made: Conditions
) -> None:
    """Writes `evaluations/<stem>_confusion.png`; drawing 150 classes takes seconds.

    Args:
        evaluation: result with the confusion matrix, which `save` has written.
        step: number of training steps done at the checkpoint.
        workdir: directory of the run.
        made: conditions under which it was made.
    """
    picture = charts.confusion_png(evaluation.matrix, evaluation.classes)
    this = _stem_of(step, workdir, made)
    atomic.write(workdir / 'evaluations' / f'{this}_confusion.png', picture)


def stem(split: str, step: int, plan: inference.Plan | None = None) -> str:
    """Stem of the names of an evaluation's files.

    Args:
        split: name of the split.
        step: number of training steps done at the checkpoint.
        plan: how the class scores of an image were found; None for what training measured.
    """
    own = f'{_slug(split)}_{step:08d}'
    return own if plan is None else f'{own}_{_slug(str(plan))}'


def last(config: ConfigDict, workdir: pathlib.Path, plan: inference.Plan | None) -> pathlib.Path:
    """The file, existing or not, of the validation split at the last step of a run.

    Of evaluations of the mode `evaluate` it is the one of the data that training measured on and of
    the conditions that the configuration gives.

    Args:
        config: configuration of the evaluation; reads `train.steps` and what `conditions` reads.
        workdir: directory of the run.
        plan: how the class scores of an image were found; None for what training measured.

    Raises:
        InputError: an evaluation of the run is damaged.
    """
    split, step = 'validation', config.train.steps
    path = workdir / 'evaluations' / f'{stem(split, step)}.json'
    if plan is None:
        return path
    own = read(path)['conditions'] if path.exists() else {}
    if not {'data', 'images'} <= own.keys():  # of an older version, which could hold one alone
        return path.with_name(f'{stem(split, step, plan)}.json')
    made = _conditions('evaluate', plan, config, own['data'], own['images'], split)
    return path.with_name(f'{_stem_of(step, workdir, made)}.json')


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads what `save` wrote; what older versions did not write is completed.

    Args:
        path: a file in `evaluations`.

    Raises:
        InputError: the file is damaged.
    """
    try:
        content = json_files.parse_object(path.read_bytes())
        return _checked(content, path.stem)
    except ValueError as error:
        raise InputError(f'{path} is damaged ({error}); restore or delete it') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error


def _checked(content: dict[str, Any], name: str) -> dict[str, Any]:
    need = functools.partial(json_files.need, content)
    step = need('step', json_files.is_count, 'a whole number')
    split = need('split', json_files.is_text, 'a text')
    classes = need(
        'classes', lambda x: json_files.is_list(x, json_files.is_text), 'a list of names'
    )
    count = len(classes)
    by = 'training' if name == stem('validation', step) else 'evaluate'
    content = {
        'inference': SINGLE,
        'images': None,
        'conditions': {'by': by if split == 'validation' else 'evaluate'},
        'metrics': {'pixel_accuracy': content.get('pixel_accuracy')},
        'category_iou': {},
        'category_miou': None,
        'worst': [],
    } | content
    need = functools.partial(json_files.need, content)
    is_row = lambda x: json_files.is_list(x, json_files.is_count) and len(x) == count  # noqa: E731
    need('inference', json_files.is_text, 'a text')
    need('images', lambda x: x is None or json_files.is_count(x), 'a whole number')
    made = need('conditions', lambda x: isinstance(x, dict), 'an object')
    json_files.need(made, 'by', lambda x: x in ('training', 'evaluate'), 'training or evaluate')
    need(
        'colors',
        lambda x: json_files.is_list(x, json_files.is_color) and len(x) == count,
        f'a list of {count} colours [red, green, blue] in 0..255',
    )
    need(
        'matrix',
        lambda x: json_files.is_list(x, is_row) and len(x) == count,
        f'a matrix of {count} x {count} whole numbers',
    )
    need('miou', json_files.is_number_or_none, 'a number')
    for field in ('metrics', 'category_iou'):
        need(
            field,
            lambda x: json_files.is_mapping(x, json_files.is_number_or_none),
            'an object of numbers',
        )
    need(
        'iou',
        lambda x: json_files.is_mapping(x, json_files.is_number_or_none) and set(x) == set(classes),
        'an object of a number for each class',
    )
    need('absent', lambda x: json_files.is_list(x, json_files.is_text), 'a list of names')
    need('worst', lambda x: json_files.is_list(x, _is_worst), 'a list of images with their panels')
    return content


def _is_worst(value: Any) -> bool:
    if not isinstance(value, dict) or not all(
        json_files.is_text(value.get(name)) for name in ('name', 'panel')
    ):
        return False
    folder, _, panel = value['panel'].partition('/')
    try:
        names.check(panel, 'the panel')
    except InputError:
        return False
    return folder == 'panels' and json_files.is_number_or_none(value.get('miou'))


def _stem_of(step: int, workdir: pathlib.Path, made: Conditions) -> str:
    """Stem of an evaluation, which no evaluation of other conditions has."""
    if made.by == 'training':
        return stem(made.split, step)
    this = stem(made.split, step, made.plan)
    path = workdir / 'evaluations' / f'{this}.json'
    if not path.exists() or read(path)['conditions'] == made.content:
        return this
    digest = hashlib.sha256(json.dumps(made.content, sort_keys=True).encode())
    return f'{this}_{digest.hexdigest()[:8]}'


def _slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub('[^A-Za-z0-9._]+', '-', text)


def _panel(sample: Sample, dataset: Dataset) -> np.ndarray:
    return pictures.panel(sample.image, sample.label, sample.prediction, dataset.colors, IGNORE)


def _panel_path(folder: pathlib.Path, number: int, name: str) -> pathlib.Path:
    """Path of a panel; what a file name should not have becomes an underscore."""
    shown = re.sub(r'[/\\\x00-\x1f]', '_', name)[:50]  # 255 bytes are a limit of file systems
    return folder / f'{number:02d}_{shown}.png'


def _or_none(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
