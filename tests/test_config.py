import importlib.util

import pytest

from ggcf_jax import config as config_lib
from ggcf_jax import models
from ggcf_jax.errors import InputError
from tests.helpers import RECIPES, ROOT, load_config, load_module


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'train.batch_size': 12}, r'train.batch_size=12 is not divisible by 8 devices.*of 8'),
        ({'train.accumulate': 2}, r'8 is not divisible by 8 devices.*accumulate=2.*of 16'),
        ({'eval.batch_size': 9}, 'eval.batch_size=9 is not divisible by 8 devices'),
        ({'train.steps': 0}, 'train.steps=0 must be at least 1'),
        ({'train.learning_rate': -0.1}, 'train.learning_rate=-0.1 must not be negative'),
        ({'train.momentum': 1.0}, r'train.momentum=1.0 must be in \[0, 1\)'),
        ({'data.crop_size': (24,)}, r'data.crop_size=\(24,\) must be \(height, width\)'),
        ({'data.scale_range': (1.5, 0.5)}, r'data.scale_range=\(1.5, 0.5\) must be'),
        (
            {'train.class_weights': '1,-1'},
            "class_weights='1,-1' is not one of none",
        ),
        ({'train.warmup_steps': 2400}, 'warmup_steps=2400 must be less than config.train.steps'),
        ({'data.class_uniform': 1.5}, r'data.class_uniform=1.5 must be in \[0, 1\]'),
        ({'eval.max_sizes': 0}, 'eval.max_sizes=0 must be at least 1'),
        (
            {'model.backbone.statistics': 'running'},
            "='running' keeps .*give config.model.backbone.weights",
        ),
        ({'eval.windows_at_once': 0}, 'eval.windows_at_once=0 must be at least 1'),
        ({'eval.worst': -1}, 'eval.worst=-1 must not be negative'),
        ({'predict.max_side': 32}, 'predict.max_side=32 must be at least 64'),
        ({'predict.label_ids': 'ids'}, "label_ids='ids' is not one of train, dataset, server"),
        ({'train.loss': 'ohem', 'train.ohem.threshold': 0.0}, 'ohem.threshold=0.0 must be in'),
        ({'train.weight_decay': float('nan')}, 'train.weight_decay=nan must be a finite number'),
        ({'data.scale_range': (1.0,)}, r'data.scale_range=\(1.0,\) must be'),
        (
            {'train.frozen': 'backbone'},
            "train.frozen='backbone' keeps .*give config.train",
        ),
        ({'train.layer_decay': 0.0}, r'train.layer_decay=0.0 must be in \(0, 1\]'),
        ({'train.adamw.epsilon': 0.0}, 'train.adamw.epsilon=0.0 must be above 0'),
        ({'train.boundary.radius': 0}, 'train.boundary.radius=0 must be at least 1'),
        ({'train.ema_statistics': 'new'}, "ema_statistics='new' is not one of latest, averaged"),
        ({'train.patience': -1}, 'train.patience=-1 must not be negative'),
        ({'data.storage': 'zip'}, "config.data.storage='zip' is not one of original, compact"),
        ({'data.train_split': 'train,'}, "data.train_split='train,': write a split such as"),
        ({'eval.pruning': None}, "config.eval.pruning=None must be of type str, such as ''"),
        ({'mesh.space': 3}, 'mesh.space=3 does not divide the 8 devices'),
        ({'mesh.space': 2, 'data.crop_size': (24, 24)}, 'the height 24 must be a multiple of 16'),
        (
            {
                'mesh.space': 2,
                'data.crop_size': (176, 24),
                'model.backbone.name': 'convnext_tiny',
            },
            'devices 88 rows of an image, convnext_tiny needs 96; .* a height of 192 at least',
        ),
    ],
)
def test_impossible_values(tiny_config, change, message):
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=message):
        config_lib.check(tiny_config, devices=8)


# Of every kind what people give by mistake, and what only a program gives.
_NOT_A_NUMBER = [
    'x', '', '1', 'nan', b'1', (), (1,), [1], {}, {'a': 1}, True, False, object(), 1j, len, int,
    float('nan'), float('inf'), float('-inf'), -float('nan'), 1e300, -1e300,
    2.0**128, -(2.0**128), Ellipsis, NotImplemented, set(), frozenset({1}), range(3), slice(1),
]  # fmt: skip
_BAD = {
    int: [*_NOT_A_NUMBER, 0.5, 1.5, -1.5, 10**400, -(10**400)],
    float: _NOT_A_NUMBER,
    bool: [
        'True', 'False', 'yes', '', 0, 1, 2, -1, 0.0, 1.0, float('nan'), (), (True,), [True], {},
        {'a': True}, b'True', object(), 1j, len, bool, set(), frozenset(), range(1), 'x', '0', '1',
        10**30, 1e300, slice(1), Ellipsis, NotImplemented,
    ],
    str: [
        0, 1, -1, 1.5, float('nan'), True, False, (), ('a',), ['a'], {}, {'a': 1}, b'a', object(),
        1j, len, str, set(), frozenset(), range(1), slice(1), Ellipsis, '\0', 'a\0b', '\n', 'a\nb',
        '\t', '\x1b[31m', '\r', '\x7f', '\u2028', '\ud800', '\u200e',
    ],
    tuple: [
        0, 1, -1, 1.5, True, 'x', '', '1,2', b'ab', {}, {'a': 1}, object(), 1j, len, tuple, set(),
        range(3), ('x',), (True,), (None,), ((1, 2),), ([1],), ({},), (float('nan'),),
        (float('inf'), 1.0), (1, float('nan')), (10**400,), (1j,), (-1,), (-1, -1), (1, -1),
        (b'a',), (object(), 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize('name', list(config_lib.fields(config_lib.default())))
def test_every_field_has_a_type_and_a_range(name):
    """At least 30 values that it cannot have end in one line that names it."""
    config = config_lib.default()
    expected = config_lib.get(config, name)
    bad = _BAD[str if expected is None else type(expected)]
    assert len(bad) >= 30
    *sections, field = name.split('.')
    section = config_lib.get(config, '.'.join(sections)) if sections else config
    for value in bad:
        with section.unlocked(), section.ignore_type():
            # ml_collections converts to the type of the value that is there, the last bad one.
            section[field] = None
            section[field] = value
        with pytest.raises(InputError) as refused:
            config_lib.check(config, devices=1)
        message = str(refused.value)
        assert field in message and '\n' not in message, (value, message)


@pytest.mark.parametrize(
    'change',
    [
        {'seed': -1},
        {'model.backbone.width': 0},
        {'model.ggcf.key_channels': 0},
        {'model.ggcf.scale': 0.0},
        {'model.aspp.rates': (0,)},
        {'model.backbone.multi_grid': (1.5,)},
        {'train.learning_rate': float('nan')},
        {'train.learning_rate': float('inf')},
        {'eval.window': (0, 5)},
        {'eval.stride': (5,)},
        {'data.ignore': (-1,)},
        {'data.num_images': (4, -1, 5)},
        {'data.manual_dir': 'a\0b'},
    ],
)
def test_ranges(tiny_config, change):
    ((name, _),) = change.items()
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=f'config.*{name.split(".")[-1]}'):
        config_lib.check(tiny_config, devices=1)


def test_a_field_that_is_missing_is_named(tiny_config):
    with tiny_config.unlocked():
        del tiny_config.train.accumulate
    with pytest.raises(InputError, match=r'no field train.accumulate \(default 1\)'):
        config_lib.check(tiny_config, devices=1)


def test_batches_may_have_any_size_where_there_are_none(tiny_config):
    tiny_config.update_from_flattened_dict({'eval.batch_size': 9, 'mesh.space': 3})
    config_lib.check(tiny_config, devices=None)
    tiny_config.eval.worst = -1
    with pytest.raises(InputError, match=r'eval\.worst'):
        config_lib.check(tiny_config, devices=None)


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_are_possible_and_have_the_default_fields(name):
    config = load_config(name)
    config_lib.check(config, devices=1)
    assert set(config_lib.fields(config)) == set(config_lib.fields(config_lib.default()))


def test_default_is_possible_and_refuses_misspelt_fields():
    config = config_lib.default()
    config_lib.check(config, devices=1)
    with pytest.raises(AttributeError, match='Did you mean "steps"'):
        config.train.step = 3
    with config.unlocked():
        config.data.mine = 3
    config_lib.check(config, devices=1)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('cityscapes', 'full,local:8,16,24,grid:8,16,24'),
        ('camvid', 'full,local:3,6,9,grid:3,6,9'),
        ('street_scenes', 'full,local:2,4,6,grid:2,4,6'),
    ],
)
def test_rows_of_table_1_have_the_sizes_of_the_recipe(name, expected):
    rows = dict(load_module(name).sweep())
    assert len(rows) == 18
    assert rows['FULL, {LOCAL, GRID}_{8,16,24}'] == {'model.heads': expected}
    assert rows['{LOCAL, GRID}_{8,16,24}'] == {'model.heads': load_config(name).model.heads}
    assert set(rows['FULL + ContextPruning']) == {'model.heads', 'eval.pruning'}


@pytest.mark.parametrize('name', RECIPES)
@pytest.mark.parametrize(
    ('context', 'heads'),
    [
        ('none', ()), ('aspp', ()), ('psp', ()), ('nonlocal', ('full',)),
        ('ccnet', ('cross', 'cross')), ('isa', ('grid', 'block')),
    ],
)  # fmt: skip
def test_every_recipe_takes_every_context_module(name, context, heads):
    config = load_config(name)
    config.model.context = context
    config_lib.check(config, devices=1)
    assert tuple(graph.kind() for graph in models.prunable_heads(config.model)) == heads


@pytest.mark.parametrize('name', ['ade20k', 'camvid', 'cityscapes', 'street_scenes'])
def test_peers_are_compared_with_rows_of_table_1(name):
    module = load_module(name)
    rows, table1 = dict(module.peers()), dict(module.sweep())
    assert list(rows) == [
        'Baseline', 'ASPP', 'FULL', '{LOCAL, GRID}_{8,16,24}', 'PSPNet', 'Non-local', 'CCNet',
        'ISA',
    ]  # fmt: skip
    assert all(rows[row] == table1[row] for row in rows.keys() & table1.keys())
    assert len(rows.keys() & table1.keys()) == (3 if name == 'ade20k' else 4)


def test_contexts_are_rows_of_other_papers_and_of_the_paper_with_pruning_of_their_kinds():
    module = load_module('camvid')
    known = dict(module.peers()) | dict(module.sweep())
    plain = {name: row for name, row in module.contexts() if 'eval.pruning' not in row}
    assert len(plain) == 10 and plain.items() <= known.items()
    names = ['{LOCAL, GRID}_{8,16,24}', 'FULL']
    rows = dict(module.table1.contexts((3, 6, 9), dict.fromkeys(names, 0.25)))
    assert [name for name in rows if name not in known] == []
    assert [rows[f'{name} + ContextPruning'] for name in names] == [
        rows[names[0]] | {'eval.pruning': 'local:drop=0.25,grid:drop=0.25'},
        rows[names[1]] | {'eval.pruning': 'full:drop=0.25'},
    ]


def test_rows_of_table_2():
    assert list(load_module('ade20k').sweep()) == [
        ('Baseline', {'model.context': 'none'}),
        ('FULL', {'model.heads': 'full'}),
        ('{LOCAL, GRID}_{8,16,24}', {'model.heads': 'local:8,16,24,grid:8,16,24'}),
        (
            '{LOCAL, GRID}_{8,16,24} + ContextPruning',
            {
                'model.heads': 'local:8,16,24,grid:8,16,24',
                'eval.pruning': 'local:drop=0.5,grid:drop=0.5',
            },
        ),
    ]


def test_reference_page_is_that_of_the_source():
    spec = importlib.util.spec_from_file_location('page', ROOT / 'docs' / 'configuration.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.page()
    assert module.PAGE.read_text() == text, 'run python -m docs.configuration'
    rows = [line.split(' | ') for line in text.splitlines() if line.startswith('| `')]
    assert sorted(row[0][3:-1] for row in rows) == sorted(config_lib.fields(config_lib.default()))
    assert all(len(row) == 3 and len(row[2]) > 10 for row in rows), rows
