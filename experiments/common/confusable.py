"""Families of classes that look alike: the paper's, and those of other data sets.

Section 4.3 names wall, fence and building; bus, truck and train; vegetation and terrain.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np

from ggcf_jax.errors import InputError

_PAPER = ('wall,fence,building', 'bus,truck,train', 'vegetation,terrain')

# By the name of the data set. The choices for CamVid and ADE20K are ours: what of the paper's
# families they tell apart, and what else has one appearance there.
FAMILIES = {
    'cityscapes': _PAPER,
    'street_scenes': _PAPER,
    'camvid': ('building,fence', 'road,pavement', 'pole,sign', 'pedestrian,bicyclist'),
    'ade20k': (
        'wall,fence,building,house,skyscraper',
        'bus,truck,van,car',
        'tree,plant,palm,grass',
        'field,grass,earth',
    ),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """Classes that are easily taken for each other; `members` are their train ids."""

    name: str
    members: tuple[int, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --family, what `of` is given."""
    parser.add_argument(
        '--family',
        action='append',
        default=[],
        metavar='CLASS,CLASS',
        help='classes that look alike, instead of the known ones; may be repeated',
    )


def of(name: str, classes: Sequence[str], given: Sequence[str] = ()) -> tuple[Family, ...]:
    """The families of a data set.

    Args:
        name: of the data set. classes: its class names in train-id order.
        given: families as 'wall,fence,building', instead of those of `FAMILIES`.

    Raises:
        InputError: a class that the data set does not have, a family of one, or no families.
    """
    texts = tuple(given) or FAMILIES.get(name, ())
    if not texts:
        raise InputError(
            f'no families are known of data set {name!r}; give them as --family=CLASS,CLASS '
            f'with classes of {", ".join(classes)}'
        )
    return tuple(_parse(text, tuple(classes)) for text in texts)


def _parse(text: str, classes: tuple[str, ...]) -> Family:
    names = [name.strip() for name in text.split(',')]
    for name in names:
        if name not in classes:
            raise InputError(
                f'--family={text}: there is no class {name!r}; there are {", ".join(classes)}'
            )
    if len(set(names)) < len(names) or len(names) < 2:
        raise InputError(f'--family={text}: a family is two or more different classes')
    return Family('/'.join(names), tuple(classes.index(name) for name in names))


def counts(family: Family, matrix: np.ndarray) -> np.ndarray:
    """Pixels of the family by what they are taken for.

    Args:
        matrix: confusion matrix [..., C, C], rows are ground truth.

    Returns:
        [..., 3]: taken for their own class, for another of the family, for one outside of it.
    """
    rows = matrix[..., family.members, :]
    within = rows[..., family.members]
    right = np.trace(within, axis1=-2, axis2=-1)
    inside = within.sum((-2, -1))
    return np.stack([right, inside - right, rows.sum((-2, -1)) - inside], axis=-1)
