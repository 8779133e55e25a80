import math

import pytest

from ggcf_jax.training import patience


@pytest.mark.parametrize(
    ('mious', 'expected'),
    [
        ([], 0),
        ([0.3], 0),
        ([0.3, 0.4], 0),
        ([0.4, 0.3, 0.39], 2),
        ([0.4, 0.4, 0.4], 2),  # as good is not better
        ([math.nan, math.nan], 1),
        ([math.nan, 0.0, math.nan], 1),
    ],
)
def test_evaluations_since_the_best(mious, expected):
    assert patience.since_best(mious) == expected
    assert not patience.is_exhausted(mious, 0)
    assert not patience.is_exhausted(mious, expected + 1)
    assert patience.is_exhausted(mious, expected) == (expected > 0)


def test_history_is_what_was_evaluated_up_to_a_step():
    rows = [
        {'step': 2, 'train/loss': 1.0},
        {'step': 4, 'val/miou': 0.25},
        {'step': 8, 'val/miou': None},
        {'step': 12, 'val/miou': 0.5},
    ]
    found = patience.history(rows, 8)
    assert found[0] == 0.25 and math.isnan(found[1]) and len(found) == 2
