"""The pictures of `report.html`: panels of image, ground truth, prediction and errors."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from ggcf_jax.display import html
from ggcf_jax.errors import InputError

# Wider panels are embedded at this width: a row of four at full size would be many megabytes.
_WIDTH = 2400


def latest(workdir: pathlib.Path, evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The section of the panels of the last evaluation that training made.

    Args:
        workdir: of a run.
        evaluations: what `evaluations/*.json` hold, the latest last; for the colours of classes.

    Raises:
        InputError: a panel is not a picture.
    """
    folders = {path.parent for path in (workdir / 'panels').glob('*/*.png')}
    folders = [folder for folder in folders if folder.name.isdigit()]
    if not folders:
        return html.section('Predictions', html.text('No panels yet.'))
    folder = max(folders, key=lambda each: int(each.name))
    parts = [
        html.text(
            f'Step {int(folder.name)}. Errors are red on the dimmed image, ignored pixels grey '
            '(black in the ground truth).'
        )
    ]
    if evaluations:
        names, colors = evaluations[-1]['classes'], evaluations[-1]['colors']
        parts.append(html.legend(dict(zip(names, map(tuple, colors)))))
    for path in sorted(folder.glob('*.png'), key=lambda each: _panel_index(each.name)):
        name = path.stem.partition('_')[2] or path.stem
        parts.append(html.image(_shrunk(path), name))
    return html.section('Predictions', *parts)


def worst(workdir: pathlib.Path, evaluation: Mapping[str, Any], inference: str) -> str:
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
            parts.append(html.image(_shrunk(path), f'{image["name"]}: {image["miou"]:.3f}'))
    return html.section('Worst images', *parts)


def _panel_index(name: str) -> tuple[int, str]:
    index = name.partition('_')[0]
    return (int(index) if index.isdigit() else 0, name)


def _shrunk(path: pathlib.Path) -> bytes:
    """The PNG file, at most `_WIDTH` pixels wide."""
    data = path.read_bytes()
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        raise InputError(f'{path} is not a readable PNG; delete it')
    height, width = picture.shape[:2]
    if width <= _WIDTH:
        return data
    size = (_WIDTH, max(round(height * _WIDTH / width), 1))
    return cv2.imencode('.png', cv2.resize(picture, size, interpolation=cv2.INTER_AREA))[
        1
    ].tobytes()
