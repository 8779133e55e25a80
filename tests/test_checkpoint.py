import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax import checkpoint
from ggcf_jax import mesh as mesh_lib
from ggcf_jax import state as state_lib
from ggcf_jax.checksums import checksums
from ggcf_jax.errors import InputError

# Loading a damaged checkpoint leaves Orbax's background tasks unfinished, which Python reports.
pytestmark = [
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
    pytest.mark.filterwarnings('ignore:coroutine:RuntimeWarning'),
]


@pytest.fixture
def state(tiny_config):
    return state_lib.creator(tiny_config, 5, mesh_lib.make_mesh())()


def _at(state, step):
    """The state with another step and other parameters."""
    params = jax.tree.map(lambda x: x + step, state.params)
    return state.replace(step=jnp.int32(step), params=params)


def _save(workdir, state, mious):
    saver = checkpoint.Checkpointer(workdir)
    for step, miou in mious.items():
        saver.save(_at(state, step), miou)
    saver.close()


def _assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def _restore_latest(workdir, state):
    messages = []
    saver = checkpoint.Checkpointer(workdir, report=messages.append)
    restored = saver.restore_latest(state)
    saver.close()
    return restored, messages


def test_everything_comes_back(state, tmp_path):
    _save(tmp_path, state, {3: None})
    restored, messages = _restore_latest(tmp_path, state)
    _assert_equal(restored, _at(state, 3))
    assert messages == []


def test_nothing_to_restore(state, tmp_path):
    assert _restore_latest(tmp_path, state) == (None, [])


def test_latest_two_and_best_are_kept(state, tmp_path):
    _save(tmp_path, state, {1: 0.3, 2: 0.5, 3: None, 4: float('nan'), 5: 0.4, 6: None})
    assert checkpoint.steps(tmp_path) == {2: 0.5, 5: 0.4, 6: None}


def test_nan_never_evicts_the_best(state, tmp_path):
    _save(tmp_path, state, {1: 0.1, 2: float('nan'), 3: float('nan'), 4: float('nan')})
    _, params, stats = _abstract(state)
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    assert checkpoint.restore(tmp_path, params, stats, sharding, 'best').step == 1


def _abstract(state):
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state.params, state.stats)
    )
    return None, *shapes


@pytest.mark.parametrize(('which', 'step'), [('best', 2), ('latest', 6), (5, 5)])
def test_restore_a_model(state, tmp_path, which, step):
    _save(tmp_path, state, {1: 0.3, 2: 0.5, 5: 0.4, 6: None})
    _, params, stats = _abstract(state)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    restored = checkpoint.restore(tmp_path, params, stats, one_device, which)
    assert restored.step == step
    _assert_equal(restored.params, _at(state, step).params)
    _assert_equal(restored.stats, state.stats)
    assert {x.sharding for x in jax.tree.leaves(restored.params)} == {one_device}


def test_missing_checkpoints(state, tmp_path):
    _, params, stats = _abstract(state)
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    with pytest.raises(InputError, match='holds no checkpoints; train there first'):
        checkpoint.restore(tmp_path, params, stats, sharding)
    _save(tmp_path, state, {4: 0.5})
    with pytest.raises(InputError, match=r'checkpoint 7 is not in .* best, latest and 4'):
        checkpoint.restore(tmp_path, params, stats, sharding, 7)


def _data_files(directory: pathlib.Path):
    files = [p for p in directory.rglob('*') if p.is_file() and '/d/' in p.as_posix()]
    return sorted(files, key=lambda p: -p.stat().st_size)


def _flip_byte(directory):
    path = _data_files(directory)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def _truncate(directory):
    path = _data_files(directory)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _delete_file(directory):
    _data_files(directory)[0].unlink()


def _empty(directory):
    shutil.rmtree(directory / 'model')
    (directory / 'model').mkdir()


@pytest.mark.parametrize('damage', [_flip_byte, _truncate, _delete_file, _empty])
def test_damaged_checkpoint_is_named_set_aside_and_the_one_before_used(state, tmp_path, damage):
    _save(tmp_path, state, {3: 0.2, 6: 0.3})
    damage(tmp_path / 'checkpoints' / '6')
    restored, messages = _restore_latest(tmp_path, state)
    _assert_equal(restored, _at(state, 3))
    (message,) = messages
    assert 'checkpoints/6' in message and 'renamed to damaged-6' in message
    assert (tmp_path / 'checkpoints' / 'damaged-6').is_dir()
    # Training goes on and saves that step again.
    _save(tmp_path, state, {6: 0.3})
    assert int(_restore_latest(tmp_path, state)[0].step) == 6


def test_checkpoint_of_another_model_is_refused_by_name(state, tiny_config, tmp_path):
    _save(tmp_path, state, {3: 0.2})
    tiny_config.model.heads = 'local:1,grid:2,3'
    other = state_lib.creator(tiny_config, 5, mesh_lib.make_mesh())()
    with pytest.raises(InputError, match=r'context.phi.bias: float32 \[8\] saved, .*\[12\] in'):
        _restore_latest(tmp_path, other)
    assert (tmp_path / 'checkpoints' / '3').is_dir()


def test_one_changed_bit_changes_the_checksum(rng):
    x = rng.normal(size=100).astype(np.float32)
    before = checksums([x, np.int32(5), jnp.ones(3, jnp.bfloat16)])
    changed = x.copy().view(np.uint32)
    changed[17] ^= 1
    after = checksums([changed.view(np.float32), np.int32(5), jnp.ones(3, jnp.bfloat16)])
    assert before[0] != after[0] and before[1:] == after[1:]
    assert checksums([x[::-1]])[0] != before[0]


def test_averaged_parameters_are_what_analyses_get(tiny_config, tmp_path):
    tiny_config.train.ema_decay = 0.9
    mesh = mesh_lib.make_mesh()
    state = state_lib.creator(tiny_config, 5, mesh)()
    state = state.replace(averaged=jax.tree.map(lambda x: x + 7, state.params))
    _save(tmp_path, state, {3: 0.2})
    found = _restore_latest(tmp_path, state)[0]
    for name in ('params', 'averaged'):
        expected = jax.tree.leaves(getattr(_at(state, 3), name))
        for a, b in zip(jax.tree.leaves(getattr(found, name)), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    sharding = mesh_lib.replicated(mesh)
    model = checkpoint.restore(tmp_path, state.params, state.stats, sharding, 'latest')
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(state.averaged), strict=True):
        np.testing.assert_array_equal(a, b)
