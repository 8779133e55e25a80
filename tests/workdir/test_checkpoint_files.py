import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.errors import InputError
from ggcf_jax.workdir import checkpoint_files
from ggcf_jax.workdir.checkpoint_files import Damaged, checksums

TREES = {
    'model': {'kernel': jnp.arange(6.0).reshape(2, 3), 'half': jnp.ones(3, jnp.bfloat16)},
    'training': {'step': jnp.int32(7)},
}


@pytest.fixture
def path(tmp_path):
    checkpoint_files.Saving(tmp_path / '7', TREES, 0.5).wait()
    return tmp_path / '7'


def test_named_trees_come_back_bit_by_bit_on_the_host(path):
    shapes = checkpoint_files.shapes(path, ['model'])
    loaded = checkpoint_files.load(path, shapes)
    assert list(loaded) == ['model']
    for a, b in zip(jax.tree.leaves(loaded['model']), jax.tree.leaves(TREES['model']), strict=True):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ('given', 'found'), [(0.5, 0.5), (None, None), (float('nan'), float('-inf'))]
)
def test_seal(tmp_path, given, found):
    checkpoint_files.Saving(tmp_path / '7', TREES, given).wait()
    sealed = checkpoint_files.inspect(tmp_path / '7')
    assert sealed.miou == found
    assert sealed.checksums == {name: checksums(tree) for name, tree in TREES.items()}


def test_missing_tree_is_damage(path):
    with pytest.raises(Damaged, match=r"/7 cannot be read \(KeyError: 'more'\)"):
        checkpoint_files.load(path, TREES | {'more': jnp.zeros(2)})


def test_another_model_is_refused_by_name(path):
    other = {'model': TREES['model'] | {'kernel': jnp.zeros((2, 4)), 'bias': jnp.zeros(2)}}
    with pytest.raises(InputError, match=r'that differ \(2\)') as raised:
        checkpoint_files.load(path, other)
    assert 'kernel: float32 [2, 3] saved, float32 [2, 4] in this model' in str(raised.value)
    assert 'bias: nothing saved, float32 [2] in this model' in str(raised.value)


def test_types_are_not_cast(path):
    other = {'training': {'step': jnp.float32(7)}}
    with pytest.raises(InputError, match=r'step: int32 \[\] saved, float32 \[\] in this model'):
        checkpoint_files.load(path, other)


def test_one_changed_bit_changes_the_checksum(rng):
    x = rng.normal(size=100).astype(np.float32)
    before = checksums([x, np.int32(5), jnp.ones(3, jnp.bfloat16)])
    changed = x.copy().view(np.uint32)
    changed[17] ^= 1
    after = checksums([changed.view(np.float32), np.int32(5), jnp.ones(3, jnp.bfloat16)])
    assert before[0] != after[0] and before[1:] == after[1:]
    assert checksums([x[::-1]])[0] != before[0]
