import numpy as np
import pytest

from experiments.common import confusable
from ggcf_jax.data.datasets import ade20k, camvid, cityscapes
from ggcf_jax.data.datasets.street_painter import classes as street
from ggcf_jax.errors import InputError

_CLASSES = {
    'cityscapes': cityscapes.CLASSES,
    'street_scenes': street.CLASSES,
    'camvid': camvid.CLASSES,
    'ade20k': ade20k.CLASSES,
}


def test_known_groups_are_of_classes_that_exist():
    assert set(confusable.KNOWN_GROUPS) == set(_CLASSES)
    for name, classes in _CLASSES.items():
        for group in confusable.groups_of(name, classes):
            assert '/'.join(classes[i] for i in group.members) == group.name


def test_given_groups_replace_the_known_ones():
    (group,) = confusable.groups_of('camvid', camvid.CLASSES, ['car, road'])
    assert group == confusable.ConfusableGroup('car/road', (8, 3))


@pytest.mark.parametrize(
    ('name', 'given', 'message'),
    [
        ('mine', [], 'no groups of confusable classes are known'),
        ('camvid', ['car,bus'], "no class 'bus'"),
        ('camvid', ['car'], 'two or more'),
        ('camvid', ['car,car'], 'two or more'),
    ],
)
def test_bad_groups_are_refused(name, given, message):
    with pytest.raises(InputError, match=message):
        confusable.groups_of(name, camvid.CLASSES, given)


def test_counts_against_a_loop(rng):
    matrices = rng.integers(0, 50, (2, 5, 5))
    group = confusable.ConfusableGroup('b/d/e', (1, 3, 4))
    expected = np.zeros((2, 3), int)
    for n in range(2):
        for truth in group.members:
            for guess in range(5):
                kind = 0 if guess == truth else 1 if guess in group.members else 2
                expected[n, kind] += matrices[n, truth, guess]
    np.testing.assert_array_equal(confusable.pixel_counts(group, matrices), expected)
