"""Example pictures of a run: the images of its latest evaluation, taken from the panels."""

import dataclasses
import pathlib

import cv2
import numpy as np

from ggcf_jax.display import pictures

_MOST = 6  # pictures that are offered


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture to try a model on.

    Attributes:
        name: its name.
        content: bytes of a PNG file.
        size: (height, width) in pixels.
    """

    name: str
    content: bytes
    size: tuple[int, int]


def of_run(workdir: pathlib.Path) -> tuple[Example, ...]:
    """Takes the images out of the newest panels of a run; () where there are none.

    Args:
        workdir: directory of the run.
    """
    folders = {path.parent for path in (workdir / 'panels').glob('*/*.png')}
    newest = max((each for each in folders if each.name.isdigit()), key=_number, default=None)
    if newest is None:
        return ()
    found = []
    for path in sorted(newest.glob('*.png'), key=lambda each: each.name)[:_MOST]:
        panel = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        image = None if panel is None else pictures.input_of_panel(panel)
        if image is not None:  # or it is no panel, or a damaged one
            content = cv2.imencode('.png', image)[1].tobytes()
            name = path.stem.partition('_')[2] or path.stem
            found.append(Example(name, content, image.shape[:2]))
    return tuple(found)


def _number(folder: pathlib.Path) -> int:
    return int(folder.name)
