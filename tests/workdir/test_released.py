"""A released model: what is loaded from its folder is what was loaded from the run."""

import hashlib
import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import ggcf_jax
from ggcf_jax import export
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import checkpoints, claim, released
from ggcf_jax.workdir import config as workdir_config


@pytest.fixture(scope='module')
def folder(tmp_path_factory, untrained_run):
    """The released model of the untrained run."""
    path = tmp_path_factory.mktemp('released') / 'model'
    config = workdir_config.load(untrained_run)
    export.export_folder(config, untrained_run, 'best', path, license_='cc-by-4.0')
    return path


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of it to be damaged."""
    return shutil.copytree(folder, tmp_path / 'copy')


def _by_name(trees):
    return {
        released.name_of(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    }


def test_the_model_is_that_of_the_run(folder, untrained_run):
    ours, theirs = ggcf_jax.load(folder), ggcf_jax.load(untrained_run)
    assert (ours.step, ours.classes, ours.colors) == (theirs.step, theirs.classes, theirs.colors)
    assert str(ours.plan) == str(theirs.plan)
    a, b = (_by_name((model.params, model.stats)) for model in (ours, theirs))
    assert a.keys() == b.keys() and len(a) > 50
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)
    changed = workdir_config.differing(ours.config, theirs.config)
    assert changed.keys() == {'data.manual_dir', 'data.data_dir'}


def test_another_run_starts_from_it_as_from_the_run(folder, untrained_run):
    a, b = map(checkpoints.restore_as_saved, (folder, untrained_run))
    assert a.step == b.step
    a, b = (_by_name((each.params, each.stats)) for each in (a, b))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_files_tell_no_directories_and_the_card_has_their_hashes(folder, untrained_run):
    names = {'weights.safetensors', 'config.json', 'classes.json', 'card.md'}
    assert {path.name for path in folder.iterdir()} == names
    card = (folder / 'card.md').read_text()
    assert 'license: "cc-by-4.0"' in card and '## Licence\n\ncc-by-4.0\n' in card
    for name in names - {'card.md'}:
        content = (folder / name).read_bytes()
        assert f'| {name} | `{hashlib.sha256(content).hexdigest()}` |' in card
    for name in names - {'weights.safetensors'}:
        text = (folder / name).read_text()
        assert str(untrained_run.parent) not in text
        assert not re.search(r'"/|~/', text), name
    assert json.loads((folder / 'config.json').read_text())['data']['manual_dir'] is None


def test_a_folder_is_replaced_only_by_request_and_only_a_released_one(
    copy, folder, untrained_run, tmp_path
):
    config = workdir_config.load(untrained_run)
    before = (copy / 'card.md').read_text()
    with pytest.raises(InputError, match='copy already exists; --overwrite replaces it'):
        export.export_folder(config, untrained_run, 'best', copy)
    assert (copy / 'card.md').read_text() == before
    export.export_folder(config, untrained_run, 'best', copy, overwrite=True)
    assert 'Not stated' in (copy / 'card.md').read_text()
    assert (copy / released.FILE_NAME).read_bytes() == (folder / released.FILE_NAME).read_bytes()
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').touch()
    with pytest.raises(InputError, match='mine exists and is no released model'):
        export.export_folder(config, untrained_run, 'best', tmp_path / 'mine', overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {'copy', 'mine'}


def _rewritten(folder, change, metadata=None):
    weights = released.read(folder)
    metadata = {'ggcf_jax': '{"format": 1, "step": 0}'} if metadata is None else metadata
    content = safetensors.numpy.save(change(dict(weights.arrays)), metadata)
    (folder / released.FILE_NAME).write_bytes(content)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (
            lambda f: (f / released.FILE_NAME).write_bytes(b'\x10\0\0\0\0\0\0\0{"a"'),
            r'weights.safetensors is damaged \(.*compare its SHA-256 with that of card.md',
        ),
        (
            lambda f: _rewritten(f, dict, {'ggcf_jax': '{"format": 2, "step": 0}'}),
            r'safetensors says .*"format": 2.* of itself; this version reads format 1',
        ),
        (
            lambda f: _rewritten(f, lambda x: x | {'params.more': np.zeros(3, np.float32)}),
            r'does not fit .*1 arrays differ\):\n  params.more: \[3\] in the file, None in the net',
        ),
        (
            lambda f: (f / 'classes.json').write_text('{}'),
            'classes.json is damaged',
        ),
    ],
)
def test_damaged_folders(copy, damage, message):
    damage(copy)
    with pytest.raises(InputError, match=message):
        ggcf_jax.load(copy)


def test_it_has_one_checkpoint_and_is_no_workdir(folder, untrained_run):
    assert ggcf_jax.load(folder, 0).step == 0
    with pytest.raises(InputError, match=r'checkpoint 7 is not in .*released model .* of step 0'):
        ggcf_jax.load(folder, 7)
    config = workdir_config.load(untrained_run)
    with pytest.raises(InputError, match=r'is a released model, not the workdir .*start_from='):
        claim.check(config, None, folder)
