import json

import pytest

from ggcf_jax import config as config_lib
from ggcf_jax.errors import InputError
from tests.helpers import ROOT, load_config

CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
CONFIGS.remove('from_workdir')


@pytest.mark.parametrize('name', CONFIGS)
def test_saved_and_loaded_config_is_the_same(tmp_path, name):
    config = load_config(name)
    config.data.data_dir = 'somewhere'
    config_lib.save(config, tmp_path)
    loaded = config_lib.load(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert config_lib.differing(loaded, config) == {}
    # A field without a value still knows its type.
    loaded.model.backbone.weights = 'file'
    with pytest.raises(TypeError):
        loaded.model.backbone.weights = 3


def test_config_of_an_older_run_is_completed(tiny_config, tmp_path):
    config_lib.save(tiny_config, tmp_path)
    path = tmp_path / 'config.json'
    saved = json.loads(path.read_text())
    del saved['predict'], saved['eval']['window'], saved['eval']['scales']
    path.write_text(json.dumps(saved))
    assert config_lib.load(tmp_path).to_dict() == tiny_config.to_dict()


def test_inference_may_change_when_a_run_is_resumed(tiny_config, tmp_path):
    config_lib.claim_workdir(tiny_config, tmp_path)
    tiny_config.eval.scales = (0.5, 1.0)
    tiny_config.predict.max_side = 512
    config_lib.claim_workdir(tiny_config, tmp_path)
    tiny_config.eval.size_multiple = 16
    with pytest.raises(InputError, match=r'eval.size_multiple: 8 there, 16 now'):
        config_lib.claim_workdir(tiny_config, tmp_path)


def test_another_network_is_refused(tiny_config, tmp_path):
    config_lib.claim_workdir(tiny_config, tmp_path)
    tiny_config.train.steps = 5
    tiny_config.model.backbone.weights = 'file'
    config_lib.check_model(tiny_config, tmp_path)
    tiny_config.model.backbone.multi_grid = (1, 2, 4)
    with pytest.raises(InputError, match=r'backbone.multi_grid: \[\] there, \[1, 2, 4\] now'):
        config_lib.check_model(tiny_config, tmp_path)


def test_saved_config_is_a_config_itself(tiny_config, tmp_path):
    config_lib.save(tiny_config, tmp_path)
    assert load_config('from_workdir', str(tmp_path)).to_dict() == tiny_config.to_dict()


def test_workdir_of_another_config_is_refused_and_left_alone(tiny_config, tmp_path):
    config_lib.claim_workdir(tiny_config, tmp_path / 'run')
    before = (tmp_path / 'run' / 'config.json').read_bytes()
    tiny_config.train.learning_rate = 0.5
    tiny_config.model.heads = 'full'
    with pytest.raises(InputError) as error:
        config_lib.claim_workdir(tiny_config, tmp_path / 'run')
    assert "model.heads: 'local:1,grid:2' there, 'full' now" in str(error.value)
    assert 'train.learning_rate: 0.05 there, 0.5 now' in str(error.value)
    assert 'choose another --workdir' in str(error.value)
    assert (tmp_path / 'run' / 'config.json').read_bytes() == before


def test_moved_data_are_the_same_run(tiny_config, tmp_path):
    config_lib.claim_workdir(tiny_config, tmp_path)
    tiny_config.data.manual_dir = 'elsewhere'
    config_lib.claim_workdir(tiny_config, tmp_path)


def test_unwritable_workdir(tiny_config, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=r'file/run.* cannot be written'):
        config_lib.claim_workdir(tiny_config, tmp_path / 'file' / 'run')


def test_directory_that_is_no_workdir(tmp_path):
    with pytest.raises(InputError, match='is not the workdir of a run'):
        config_lib.load(tmp_path)


@pytest.mark.parametrize('content', ['', '{', json.dumps({'seed': 1})])
def test_damaged_config(tmp_path, content):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(InputError, match='is damaged'):
        config_lib.load(tmp_path)


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
        ({'predict.label_ids': 'ids'}, "label_ids='ids' is not one of train, server"),
        ({'train.loss': 'ohem', 'train.ohem.threshold': 0.0}, 'ohem.threshold=0.0 must be in'),
    ],
)
def test_impossible_values(tiny_config, change, message):
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=message):
        config_lib.check(tiny_config, devices=8)


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_are_possible(name):
    config_lib.check(load_config(name), devices=1)
