import json
import re

import pytest

from ggcf_jax import config as config_lib
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import claim
from ggcf_jax.workdir import config as workdir_config
from tests.helpers import RECIPES, load_config


@pytest.mark.parametrize('name', RECIPES)
def test_saved_and_loaded_config_is_the_same(tmp_path, name):
    config = load_config(name)
    config.data.data_dir = 'somewhere'
    workdir_config.save(config, tmp_path)
    loaded = workdir_config.load(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert workdir_config.differing(loaded, config) == {}
    # A field without a value still knows its type.
    loaded.model.backbone.weights = 'file'
    with pytest.raises(TypeError):
        loaded.model.backbone.weights = 3


def test_a_copy_that_has_forgotten_the_types_of_empty_fields(tmp_path):
    config = config_lib.default()
    workdir_config.save(config.copy_and_resolve_references(), tmp_path)
    assert workdir_config.load(tmp_path).to_dict() == config.to_dict()


@pytest.fixture
def edit(tiny_config, tmp_path):
    """Saves the configuration, as (content of config.json) -> None changes it."""

    def save_edited(change):
        workdir_config.save(tiny_config, tmp_path)
        saved = json.loads((tmp_path / 'config.json').read_text())
        change(saved)
        (tmp_path / 'config.json').write_text(json.dumps(saved))

    return save_edited


def _without_new_fields(saved):
    """What version 0.1.0 wrote for configs/camvid.py, or an even older one."""
    del saved['predict'], saved['eval']['window'], saved['eval']['scales']
    for name in ('classes', 'ignore', 'splits', 'image_size', 'num_images'):
        del saved['data'][name]


def test_config_of_an_older_run_is_completed_and_says_so(edit, tiny_config, tmp_path):
    edit(_without_new_fields)
    lines = []
    loaded = workdir_config.load(tmp_path, lines.append)
    assert loaded.to_dict() == tiny_config.to_dict()
    (line,) = lines
    assert f'{tmp_path / "config.json"} is from an older version; defaults are taken for' in line
    assert "data.classes='classes.csv'" in line and 'eval.scales=(1.0,)' in line
    assert 'train.steps' not in line


def test_older_run_resumes(edit, tiny_config, tmp_path):
    edit(_without_new_fields)
    claim.check_config(tiny_config, tmp_path)
    workdir_config.check_model(tiny_config, tmp_path)
    tiny_config.train.steps = 7
    with pytest.raises(InputError, match=r'train.steps: 12 there, 7 now'):
        claim.check_config(tiny_config, tmp_path)


def test_context_modules_that_the_network_does_not_have_may_be_of_another_size(
    edit, tiny_config, tmp_path
):
    """Recipes set them; runs from before they existed have the defaults."""
    edit(lambda saved: [saved['model'].pop(name) for name in ('psp', 'non_local', 'isa', 'ccnet')])
    assert tiny_config.model.psp.channels != config_lib.default().model.psp.channels
    claim.check_config(tiny_config, tmp_path)
    workdir_config.check_model(tiny_config, tmp_path)
    tiny_config.model.context = 'my_package.mine:build'  # which may read any field
    with pytest.raises(InputError, match=r'model\.isa\.channels: 512 there, 96 now'):
        claim.check_config(tiny_config, tmp_path)
    tiny_config.model.context = 'psp'
    workdir_config.save(tiny_config, tmp_path)
    tiny_config.model.psp.pool_scales = (1, 2)
    with pytest.raises(InputError, match=r'model.psp.pool_scales: \[1, 2, 3, 6\] there'):
        workdir_config.check_model(tiny_config, tmp_path)


def test_what_was_completed_is_printed_once(edit, tmp_path, capsys):
    edit(_without_new_fields)
    for _ in range(2):
        workdir_config.load(tmp_path)
    printed = capsys.readouterr()
    assert printed.err.count('is from an older version') == 1 and not printed.out


def test_unknown_fields_are_kept_and_named(edit, tiny_config, tmp_path):
    def add(saved):
        saved['train']['stochastic_depth'] = 0.2
        saved['mine'] = {'rates': [1, 2], 'file': None}
        saved['placeholders']['mine.file'] = 'str'

    edit(add)
    lines = []
    loaded = workdir_config.load(tmp_path, lines.append)
    (line,) = lines
    assert 'train.stochastic_depth=0.2, mine.rates=[1, 2], mine.file=None; unless' in line
    assert 'use the version that started the run' in line
    assert loaded.train.stochastic_depth == 0.2 and loaded.mine.rates == (1, 2)
    workdir_config.save(loaded, tmp_path)
    assert workdir_config.load(tmp_path, lines.append).to_dict() == loaded.to_dict()
    with pytest.raises(InputError, match=r'train.stochastic_depth: 0.2 there, None now'):
        claim.check_config(tiny_config, tmp_path)


def test_saving_leaves_only_the_file(tiny_config, tmp_path):
    workdir_config.save(tiny_config, tmp_path / 'run')
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['config.json']


def test_another_network_is_refused(tiny_config, tmp_path):
    workdir_config.save(tiny_config, tmp_path)
    tiny_config.train.steps = 5
    tiny_config.model.backbone.weights = 'file'
    workdir_config.check_model(tiny_config, tmp_path)
    tiny_config.model.backbone.multi_grid = (1, 2, 4)
    with pytest.raises(InputError, match=r'backbone.multi_grid: \[\] there, \[1, 2, 4\] now'):
        workdir_config.check_model(tiny_config, tmp_path)


def test_saved_config_is_a_config_itself(tiny_config, tmp_path):
    workdir_config.save(tiny_config, tmp_path)
    assert load_config('from_workdir', str(tmp_path)).to_dict() == tiny_config.to_dict()


def test_segments_are_no_part_of_the_configuration(tiny_config, tmp_path):
    segments = (workdir_config.Segment(3, {'train.steps': (7, 12)}),)
    workdir_config.save(tiny_config, tmp_path, segments)
    lines = []
    assert workdir_config.load(tmp_path, lines.append).to_dict() == tiny_config.to_dict()
    assert workdir_config.segments(tmp_path) == segments and not lines
    path = tmp_path / 'config.json'
    for damaged in ('3', '[3]', '[{"step": 3}]', '[{"step": 3, "changes": {"a": 3}}]'):
        path.write_text(f'{{"placeholders": {{}}, "segments": {damaged}}}')
        with pytest.raises(InputError, match=r'config.json is damaged'):
            workdir_config.segments(tmp_path)


def test_directory_that_is_no_workdir(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path, tmp_path / 'file'):
        with pytest.raises(InputError, match='is not the workdir of a run'):
            workdir_config.load(path)


def test_fields_that_may_differ_exist():
    assert set(config_lib.fields(config_lib.default())) >= workdir_config.MAY_DIFFER


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('', 'Expecting value'),
        ('{', 'Expecting property name'),
        ('[]', 'it holds [] instead of an object'),
        ('{"seed": 1}', "it has no entry 'placeholders'"),
        ('{"placeholders": ["seed"]}', "it has no entry 'placeholders'"),
        ('{"seed": null, "placeholders": {}}', 'seed is empty and of the unknown type None'),
        (
            '{"data": {"data_dir": null}, "placeholders": {"data.data_dir": "Path"}}',
            "data.data_dir is empty and of the unknown type 'Path'",
        ),
        (
            '{"seed": null, "placeholders": {"seed": "str"}}',
            'seed=None is not of type int',
        ),
        ('{"train": {"steps": "many"}, "placeholders": {}}', "train.steps='many' is not of type"),
        (
            '{"train": {"learning_rate": 1' + 400 * '0' + '}, "placeholders": {}}',
            'train.learning_rate=1000',
        ),
        ('{"train": 3, "placeholders": {}}', 'train=3 is not of type ConfigDict'),
        ('{"seed": {"a": 3}, "placeholders": {}}', 'seed.a: seed is not a section but a field'),
    ],
)
def test_damaged_config(tmp_path, content, reason):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(InputError, match=f'config.json is damaged .{re.escape(reason)}'):
        workdir_config.load(tmp_path)
