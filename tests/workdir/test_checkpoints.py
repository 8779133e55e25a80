import os
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.training import state as state_lib
from ggcf_jax.workdir import checkpoint_files, checkpoints
from tests.helpers import make_tiny_config

# Loading a damaged checkpoint leaves Orbax's background tasks unfinished, which Python reports.
pytestmark = [
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
    pytest.mark.filterwarnings('ignore:coroutine:RuntimeWarning'),
]


def _state(devices):
    config = make_tiny_config(pathlib.Path('camvid'), pathlib.Path('data'))
    return state_lib.creator(config, 5, mesh_lib.make_mesh(jax.devices()[:devices]))()


@pytest.fixture(scope='module')
def state():
    """On one device: one on several is saved by a program for each shape."""
    return _state(1)


def _at(state, step):
    """The state with another step and other parameters."""
    # By NumPy: for JAX every shape is a program.
    params = jax.tree.map(
        lambda x: jax.device_put(np.asarray(x) + np.float32(step), x.sharding), state.params
    )
    return state.replace(step=jnp.int32(step), params=params)


def _save(workdir, state, mious):
    saver = checkpoints.Checkpointer(workdir)
    for step, miou in mious.items():
        saver.save(step, _at(state, step).to_trees(), miou=miou)
    saver.close()


@pytest.fixture(scope='module')
def two_steps(state, tmp_path_factory):
    """A workdir with steps 3 and 6, to be copied."""
    workdir = tmp_path_factory.mktemp('two_steps')
    _save(workdir, state, {3: 0.2, 6: 0.3})
    return workdir


def _assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def _restore_latest(workdir, state):
    messages = []
    saver = checkpoints.Checkpointer(workdir, report=messages.append)
    trees = saver.restore_latest(state.to_trees())
    saver.close()
    return None if trees is None else state_lib.TrainState.from_trees(trees), messages


@pytest.mark.parametrize('devices', [1, pytest.param(8, marks=pytest.mark.slow)])
def test_everything_comes_back(devices, tmp_path):
    state = _state(devices)
    _save(tmp_path, state, {3: None})
    restored, messages = _restore_latest(tmp_path, state)
    _assert_equal(restored, _at(state, 3))
    assert messages == []


def test_nothing_to_restore(state, tmp_path):
    assert _restore_latest(tmp_path, state) == (None, [])


@pytest.mark.slow
def test_latest_two_and_best_are_kept(state, tmp_path):
    _save(tmp_path, state, {1: 0.3, 2: 0.5, 3: None, 4: float('nan'), 5: 0.4, 6: None})
    assert checkpoints.steps(tmp_path) == {2: 0.5, 5: 0.4, 6: None}


@pytest.mark.slow
def test_nan_never_evicts_the_best(state, tmp_path):
    _save(tmp_path, state, {1: 0.1, 2: float('nan'), 3: float('nan'), 4: float('nan')})
    _, params, stats = _abstract(state)
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    assert checkpoints.restore(tmp_path, params, stats, sharding, 'best').step == 1


def _abstract(state):
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state.params, state.stats)
    )
    return None, *shapes


@pytest.fixture(scope='module')
def four_steps(state, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('four_steps')
    _save(workdir, state, {1: 0.3, 2: 0.5, 5: 0.4, 6: None})
    return workdir


@pytest.mark.parametrize(('which', 'step'), [('best', 2), ('latest', 6), (5, 5)])
def test_restore_a_model(state, four_steps, which, step):
    _, params, stats = _abstract(state)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    restored = checkpoints.restore(four_steps, params, stats, one_device, which)
    assert restored.step == step
    _assert_equal(restored.params, _at(state, step).params)
    _assert_equal(restored.stats, state.stats)
    assert {x.sharding for x in jax.tree.leaves(restored.params)} == {one_device}


def test_missing_checkpoints(state, tmp_path):
    _, params, stats = _abstract(state)
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    with pytest.raises(InputError, match='holds no checkpoints; train there first'):
        checkpoints.restore(tmp_path, params, stats, sharding)
    _save(tmp_path, state, {4: 0.5})
    with pytest.raises(InputError, match=r'checkpoint 7 is not in .* best, latest and 4'):
        checkpoints.restore(tmp_path, params, stats, sharding, 7)


def _largest_file(directory: pathlib.Path):
    files = [p for p in directory.rglob('*') if p.is_file() and '/d/' in p.as_posix()]
    return max(files, key=lambda p: p.stat().st_size)


def _flip_byte(directory):
    path = _largest_file(directory)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def _truncate(directory):
    os.truncate(_largest_file(directory), _largest_file(directory).stat().st_size // 2)


def _delete_file(directory):
    _largest_file(directory).unlink()


def _empty_part(directory):
    shutil.rmtree(directory / 'model')
    (directory / 'model').mkdir()


def _empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def _delete_commit_marker(directory):
    (directory / 'commit_success.txt').unlink()


def _delete_metadata(directory):
    (directory / '_CHECKPOINT_METADATA').unlink()


def _break_metadata(directory):
    os.truncate(directory / '_CHECKPOINT_METADATA', 40)


def _change_miou(directory):
    """A network file system's stale block need not be invalid JSON."""
    path = directory / '_CHECKPOINT_METADATA'
    path.write_text(path.read_text().replace('"miou": 0.3', '"miou": 0.9'))


def _zero_files(directory):
    """Names that appeared before their contents, as after a crash of a file server."""
    for path in directory.rglob('*'):
        if path.is_file():
            os.truncate(path, 0)


def _file_instead(directory):
    shutil.rmtree(directory)
    directory.write_text('')


DAMAGES = [
    _flip_byte, _truncate, _delete_file, _empty_part, _empty, _delete_commit_marker,
    _delete_metadata, _break_metadata, _change_miou, _zero_files, _file_instead,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_checkpoint_is_named_set_aside_and_the_one_before_used(
    state, two_steps, tmp_path, damage
):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / 'checkpoints' / '6')
    restored, messages = _restore_latest(tmp_path, state)
    _assert_equal(restored, _at(state, 3))
    (message,) = messages
    assert 'checkpoints/6' in message and 'renamed to damaged-6' in message
    assert (tmp_path / 'checkpoints' / 'damaged-6').exists()
    # Training goes on and saves that step again.
    _save(tmp_path, state, {6: 0.3})
    assert int(_restore_latest(tmp_path, state)[0].step) == 6


def test_only_damaged_checkpoints_do_not_start_from_scratch(state, tmp_path):
    _save(tmp_path, state, {3: 0.2})
    _flip_byte(tmp_path / 'checkpoints' / '3')
    for _ in range(2):  # also when it has been set aside by an attempt before
        with pytest.raises(InputError, match=r'only damaged checkpoints \(damaged-3\).*remove'):
            _restore_latest(tmp_path, state)


def test_what_a_kill_leaves_is_removed_by_training_and_left_alone_by_readers(state, tmp_path):
    _save(tmp_path, state, {3: 0.2, 6: None})
    directory = tmp_path / 'checkpoints'
    for name in ('9.orbax-checkpoint-tmp', 'removing-2'):
        shutil.copytree(directory / '3', directory / name)
        shutil.rmtree(directory / name / 'model')
    _, params, stats = _abstract(state)
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    # A reader must not take away what a running training is just writing.
    assert checkpoints.restore(tmp_path, params, stats, sharding, 'latest').step == 6
    assert len(list(directory.iterdir())) == 4
    assert int(_restore_latest(tmp_path, state)[0].step) == 6
    assert sorted(path.name for path in directory.iterdir()) == ['3', '6']


@pytest.mark.slow
def test_full_disk_ends_in_a_clear_error_and_loses_nothing(state, tmp_path, caplog):
    """A limit on the size of files, which fails writes in the middle as a full disk does."""
    _save(tmp_path, state, {3: 0.2})
    saver = checkpoints.Checkpointer(tmp_path)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError, match=r'checkpoint 6 could not be written.*MiB are free'):
            saver.save(6, _at(state, 6).to_trees(), miou=0.4)
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    saver.close()
    # The command line leaves these out: the error says the same.
    logged = [record.getMessage() for record in caplog.records if record.levelname == 'ERROR']
    assert logged and all(checkpoint_files.TOLD_TWICE in line for line in logged)
    restored, messages = _restore_latest(tmp_path, state)
    _assert_equal(restored, _at(state, 3))
    assert messages == []
    _save(tmp_path, state, {6: 0.4})
    assert int(_restore_latest(tmp_path, state)[0].step) == 6


@pytest.mark.slow
def test_checkpoint_of_another_model_is_refused_by_name(state, tiny_config, tmp_path):
    _save(tmp_path, state, {3: 0.2})
    tiny_config.model.heads = 'local:1,grid:2,3'
    other = state_lib.creator(tiny_config, 5, mesh_lib.make_mesh())()
    with pytest.raises(InputError, match=r'context.phi.bias: float32 \[8\] saved, .*\[12\] in'):
        _restore_latest(tmp_path, other)
    assert (tmp_path / 'checkpoints' / '3').is_dir()


@pytest.mark.slow
def test_averaged_parameters_are_what_analyses_get(tiny_config, tmp_path):
    tiny_config.train.ema_decay = 0.9
    mesh = mesh_lib.make_mesh()
    state = state_lib.creator(tiny_config, 5, mesh)()
    state = state.replace(ema_params=jax.tree.map(lambda x: x + 7, state.params))
    _save(tmp_path, state, {3: 0.2})
    found = _restore_latest(tmp_path, state)[0]
    for name in ('params', 'ema_params'):
        expected = jax.tree.leaves(getattr(_at(state, 3), name))
        for a, b in zip(jax.tree.leaves(getattr(found, name)), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    sharding = mesh_lib.replicated(mesh)
    model = checkpoints.restore(tmp_path, state.params, state.stats, sharding, 'latest')
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(state.ema_params), strict=True):
        np.testing.assert_array_equal(a, b)
