import jax
import pytest

from ggcf_jax.attention import graphs
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.contexts.pruning_rules import Rule


@pytest.mark.parametrize(
    ('text', 'rules'),
    [
        ('', ()),
        (' ', ()),
        ('full:drop=0.5', (Rule('full', drop_rate=0.5),)),
        (
            'local:keep=200, grid:drop=.25',
            (Rule('local', keep=200), Rule('grid', drop_rate=0.25)),
        ),
        ('learned:drop=0:random', (Rule('learned', drop_rate=0.0, priority='random'),)),
        ('grid:keep=1:random=7', (Rule('grid', keep=1, priority='random', seed=7),)),
        ('block:keep=9,union:drop=0.5', (Rule('block', keep=9), Rule('union', drop_rate=0.5))),
    ],
)
def test_grammar(text, rules):
    assert pruning_rules.parse(text) == rules
    assert pruning_rules.parse(','.join(map(str, rules))) == rules


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('full', "'full': it is not of this form"),
        ('full=0.5', 'not of this form'),
        ('full:drop=', 'not of this form'),
        ('full:drop=1', r'full:drop=1.0 must be in \[0, 1\)'),
        ('full:drop=0.1.2', 'could not convert string to float'),
        ('full:keep=0', 'full:keep=0 must be at least 1'),
        ('full:keep=1.5', 'not of this form'),
        ('ful:keep=1', "'ful' is not one of full, local, grid, row"),
        ('full:keep=1:best', 'not of this form'),
        ('full:keep=1,', "'': it is not of this form"),
        ('full:keep=1,full:keep=2', 'two rules for full heads'),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(ValueError, match=message):
        pruning_rules.parse(text)


def test_rules_are_assigned_by_kind():
    rules = pruning_rules.parse('local:keep=9,learned:drop=0.5,union:keep=3,cross:keep=4')
    heads = graphs.parse('local:8,16@2,grid:8,learned:4,local:1|cross,cross')
    expected = (rules[0], rules[0], None, rules[1], rules[2], rules[3])
    assert pruning_rules.assign(rules, heads) == expected
    with pytest.raises(ValueError, match=r"'local:keep=9': the model has no local head.* full"):
        pruning_rules.assign(rules, graphs.parse('full,learned'))


def test_every_head_draws_its_own():
    top, random = pruning_rules.parse('full:keep=3,grid:keep=3:random=5')
    assert top.key(0) is None
    first, second = (jax.random.key_data(random.key(head)).tolist() for head in (0, 1))
    assert first != second
