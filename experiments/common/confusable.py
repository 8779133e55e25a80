"""Groups of confusable classes: the paper's, and our choice for other data sets.

Section 4.3 names wall, fence and building; bus, truck and train; vegetation and terrain. On the
command line and in CSV files a group is called a family.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from ggcf_jax.errors import InputError

_PAPER = ('wall,fence,building', 'bus,truck,train', 'vegetation,terrain')

# By name of the data set. Those of CamVid and ADE20K are our choice: what these data sets
# distinguish of the paper's groups, and other classes of similar appearance.
KNOWN_GROUPS = {
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
class ConfusableGroup:
    """Classes that are easily mistaken for each other.

    Attributes:
        name: class names joined by slashes, 'wall/fence/building'.
        members: train ids of the classes.
    """

    name: str
    members: tuple[int, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --family, whose values `groups_of` takes."""
    parser.add_argument(
        '--family',
        action='append',
        default=[],
        metavar='CLASS,CLASS',
        help='group of confusable classes, instead of the known groups; may be repeated',
    )


def groups_of(
    dataset_name: str, classes: Sequence[str], given: Sequence[str] = ()
) -> tuple[ConfusableGroup, ...]:
    """Returns the groups of confusable classes of a data set.

    Args:
        dataset_name: key of `KNOWN_GROUPS`.
        classes: class names of the data set in train-id order.
        given: groups such as 'wall,fence,building' that replace the known ones.

    Raises:
        InputError: a class that the data set does not have, a group of fewer than two classes, or
            no group at all.
    """
    texts = tuple(given) or KNOWN_GROUPS.get(dataset_name, ())
    if not texts:
        raise InputError(
            f'no groups of confusable classes are known for data set {dataset_name!r}; give them '
            f'as --family=CLASS,CLASS with classes of {", ".join(classes)}'
        )
    return tuple(_parse(text, tuple(classes)) for text in texts)


def _parse(text: str, classes: tuple[str, ...]) -> ConfusableGroup:
    names = [name.strip() for name in text.split(',')]
    for name in names:
        if name not in classes:
            raise InputError(
                f'--family={text}: there is no class {name!r}; there are {", ".join(classes)}'
            )
    if len(set(names)) < len(names) or len(names) < 2:
        raise InputError(f'--family={text}: a family is two or more different classes')
    return ConfusableGroup('/'.join(names), tuple(classes.index(name) for name in names))


def pixel_counts(
    group: ConfusableGroup, matrix: Int[np.ndarray, '*batch classes classes']
) -> Int[np.ndarray, '*batch 3']:
    """Counts the pixels of a group by predicted class.

    Args:
        group: group whose ground truth pixels are counted.
        matrix: confusion matrices; rows are ground truth.

    Returns:
        Pixels predicted as their own class, as another of the group, and as one outside of it.
    """
    rows = matrix[..., group.members, :]
    within = rows[..., group.members]
    right = np.trace(within, axis1=-2, axis2=-1)
    inside = within.sum((-2, -1))
    return np.stack([right, inside - right, rows.sum((-2, -1)) - inside], axis=-1)
