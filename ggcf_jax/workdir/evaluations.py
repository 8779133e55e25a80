"""Files of an evaluation in the workdir: numbers, confusion matrix and panels."""

import json
import math
import pathlib
import re

import numpy as np

from ggcf_jax import atomic
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.display import charts, pictures
from ggcf_jax.evaluation import inference
from ggcf_jax.evaluation.results import Evaluation, Sample


def save(
    evaluation: Evaluation, dataset: Dataset, step: int, workdir: pathlib.Path, plan: inference.Plan
) -> list[tuple[str, np.ndarray]]:
    """Writes `evaluations/<stem>.json` and the panels.

    Args:
        evaluation: result to write.
        dataset: data set that was evaluated.
        step: number of training steps done at the checkpoint.
        workdir: directory of the run.
        plan: how the class scores of an image were found.

    Returns:
        (name, uint8 [h, w, 3] panel) of the first images.
    """
    this = stem(evaluation.split, step, plan)
    # The report shows the folder of the latest step.
    folder = f'{step:08d}' if this == f'validation_{step:08d}' else this
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
        'inference': str(plan),
        'dataset': dataset.name,
        'classes': dataset.classes,
        'colors': dataset.colors,
        'matrix': evaluation.matrix.tolist(),
        'miou': _or_none(evaluation.miou),
        'pixel_accuracy': _or_none(evaluation.pixel_accuracy),
        'metrics': {name: _or_none(value) for name, value in evaluation.scores.items()},
        'iou': iou,
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
    evaluation: Evaluation, step: int, workdir: pathlib.Path, plan: inference.Plan
) -> None:
    """Writes `evaluations/<stem>_confusion.png`; drawing 150 classes takes seconds.

    Args:
        evaluation: result with the confusion matrix.
        step: number of training steps done at the checkpoint.
        workdir: directory of the run.
        plan: how the class scores of an image were found.
    """
    picture = charts.confusion_png(evaluation.matrix, evaluation.classes)
    this = stem(evaluation.split, step, plan)
    atomic.write(workdir / 'evaluations' / f'{this}_confusion.png', picture)


def stem(split: str, step: int, plan: inference.Plan) -> str:
    """Stem of the names of an evaluation's files, one for each split, step and plan.

    It is `<split>_<step>`, followed by the plan unless that is one view of the whole image, so that
    evaluations by other plans do not replace those of training.
    """
    single = f'{split}_{step:08d}'
    return single if plan.is_single else f'{single}_{re.sub("[^a-z0-9.]+", "-", str(plan))}'


def _panel(sample: Sample, dataset: Dataset) -> np.ndarray:
    return pictures.panel(sample.image, sample.label, sample.prediction, dataset.colors, IGNORE)


def _panel_path(folder: pathlib.Path, number: int, name: str) -> pathlib.Path:
    """Path of a panel; slashes in the name of a record become underscores."""
    return folder / f'{number:02d}_{name.replace("/", "_")}.png'


def _or_none(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
