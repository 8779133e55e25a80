"""Which inference plans are compared."""

import pytest

from experiments.tables import inference_plans
from tests.helpers import load_config


@pytest.mark.parametrize(
    ('context', 'half'),
    [
        ('ggcf', 'local:drop=0.5,grid:drop=0.5'),
        ('isa', 'grid:drop=0.5,block:drop=0.5'),
        ('psp', None),
    ],
)
def test_every_kind_of_head_is_pruned_where_there_are_heads(context, half):
    config = load_config('camvid')
    config.model.context = context
    found = inference_plans.plans(config)
    assert len(found) == (6 if half else 3)
    assert [plan['pruning'] for plan in found.values() if 'pruning' in plan] == (
        [half, half, half.replace('0.5', '0.5:random')] if half else []
    )
