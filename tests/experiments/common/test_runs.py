import dataclasses
import shutil

import jax
import pytest

from experiments.common import runs
from experiments.tables import sweep_runs
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import config as workdir_config
from tests.helpers import ROOT, load_config


@pytest.mark.parametrize(
    ('name', 'sweep'), [('cityscapes', 'sweep'), ('camvid', 'sweep'), ('cityscapes', 'peers')]
)
def test_models_are_called_as_in_tables(name, sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for run in sweep_runs.runs(f'configs/{name}.py', tmp_path, 1, sweep=sweep):
        config = load_config(name)
        fields = dict(run.trained.overrides)
        config.model.context = fields.get('model.context', 'ggcf')
        config.model.heads = fields.get('model.heads', config.model.heads)
        found = runs.paper_name(config.model)
        if name == 'cityscapes':
            assert found == run.row
        else:  # heads are smaller there
            assert found.rstrip('0123456789,{}_') == run.row.rstrip('0123456789,{}_')


def test_a_folder_is_the_seeds_of_a_model(workdirs):
    found = runs.select([str(workdirs / 'none'), f'mine={workdirs}/grid'])
    assert [(run.model, run.title) for run in found] == [
        ('Baseline', 'Baseline'), ('mine', 'mine, seed 0'), ('mine', 'mine, seed 1')
    ]  # fmt: skip
    assert runs.select([str(workdirs / 'grid')])[0].model == 'GRID_2'


def test_the_data_are_opened_once_and_models_one_after_the_other(workdirs):
    selected = runs.select([str(workdirs / 'none'), str(workdirs / 'full')])
    loaded = [loaded for _, loaded in runs.load_each(selected, 'latest')]
    assert loaded[0].dataset is loaded[1].dataset
    assert [len(loaded.model.network.heads) for loaded in loaded] == [0, 1]


def test_results_that_are_kept_know_their_weights_and_data(workdirs, tmp_path):
    """Also where a run was trained anew in its place, to the same step, or its data replaced."""
    loaded = runs.load(workdirs / 'grid' / 'seed_0')
    identity = loaded.identity('validation')
    assert identity == runs.load(workdirs / 'grid' / 'seed_0').identity('validation')
    assert identity['data'] == loaded.dataset.identity_of('validation')
    params = jax.tree.map(lambda x: x + 1, loaded.model.params)
    other = dataclasses.replace(loaded, model=dataclasses.replace(loaded.model, params=params))
    assert other.identity('validation') == identity | {'weights': other.model.digest}
    assert other.model.digest != loaded.model.digest
    for path in (ROOT / 'experiments').rglob('*.py'):
        calls = path.read_text().count('cache.load_or_compute(')
        assert path.read_text().count('**loaded.identity(') == calls, path


def test_bad_choices(workdirs, tmp_path):
    with pytest.raises(InputError, match='neither the workdir of a run nor a folder of runs'):
        runs.select([str(tmp_path)])
    with pytest.raises(InputError, match='named twice'):
        runs.select([str(workdirs / 'grid'), str(workdirs / 'grid' / 'seed_1')])
    other = tmp_path / 'other'
    shutil.copytree(workdirs / 'none', other)
    config = workdir_config.load(other)
    shutil.copytree(config.data.manual_dir, tmp_path / 'images')
    (tmp_path / 'images' / 'train' / 'train_5.png').unlink()
    (tmp_path / 'images' / 'trainannot' / 'train_5.png').unlink()
    config.data.manual_dir = str(tmp_path / 'images')
    workdir_config.save(config, other)
    with pytest.raises(InputError, match='not of the same data'):
        runs.common_dataset(runs.select([str(workdirs / 'none'), str(other)]))
