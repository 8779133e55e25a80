"""Attention to the positions of another map: `attend_across`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from ggcf_jax.attention import Full, attend, attend_across, resolve_implementation


def _arrays(rng, q=(2, 5, 7), k=(2, 3, 2), heads=2, v_heads=2, dtype=jnp.float32):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return draw(*q, heads, 4), draw(*k, heads, 4), draw(*k, v_heads, 3)


def _definition(q, k, v, valid, scale):
    """Position by position, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros((*q.shape[:4], v.shape[-1]))
    for b, i, j, n in np.ndindex(*q.shape[:4]):
        seen = np.ones(k.shape[1:3], bool) if valid is None else np.asarray(valid[b])
        if seen.any():
            weights = np.exp(scale * k[b, seen, n] @ q[b, i, j, n])
            out[b, i, j, n] = weights @ v[b, seen, n if v.shape[3] > 1 else 0] / weights.sum()
    return out


@pytest.mark.parametrize('implementation', ['auto', 'reference'])
@pytest.mark.parametrize('v_heads', [1, 2])
def test_values(rng, implementation, v_heads):
    q, k, v = _arrays(rng, v_heads=v_heads)
    valid = jnp.asarray(rng.random((2, 3, 2)) < 0.6).at[1].set(False)
    for own in (None, valid):
        found = attend_across(q, k, v, valid=own, scale=0.7, implementation=implementation)
        np.testing.assert_allclose(found, _definition(q, k, v, own, 0.7), atol=1e-5)
    spoiled = jnp.where(valid[..., None, None], v, jnp.nan)
    found = attend_across(q, k, spoiled, valid=valid, implementation=implementation)
    np.testing.assert_allclose(found, _definition(q, k, v, valid, 1.0), atol=1e-5)


@pytest.mark.parametrize('k', [(2, 3, 2), (2, 8, 9)])
def test_gradients(rng, k):
    arrays = _arrays(rng, k=k)
    weight = jnp.float32(rng.normal(size=(2, 5, 7, 2, 3)))

    def gradients(implementation):
        total = lambda *x: (  # noqa: E731
            attend_across(*x, scale=0.5, implementation=implementation) * weight
        ).sum()
        return jax.jit(jax.grad(total, (0, 1, 2)))(*arrays)

    for a, b in zip(gradients('auto'), gradients('reference')):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_same_map_is_a_full_graph(rng):
    q, k, v = _arrays(rng, k=(2, 5, 7))
    np.testing.assert_allclose(
        attend_across(q, k, v, scale=0.5), attend(q, k, v, Full(), scale=0.5), atol=1e-6
    )


def test_rows_of_devices(rng):
    """Where devices share the rows, each of them fetches all keys."""
    q, k, v = _arrays(rng, q=(2, 8, 7), k=(2, 4, 2))
    alone = attend_across(q, k, v)
    mesh = jax.make_mesh((2, 4), ('data', 'space'), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        shared = jax.jit(attend_across)(q, k, v)
    np.testing.assert_allclose(shared, alone, atol=1e-6)


def test_kernels_of_tpus_do_not_know_it():
    where = dict(dtype='bfloat16', platform='tpu', kind='TPU v5 lite')
    assert resolve_implementation(Full(), **where).implementation == 'pallas'
    resolved = resolve_implementation(Full(), **where, extras=('other_map',))
    assert resolved.implementation == 'xla' and 'does not know other_map' in str(resolved)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'k': np.zeros((1, 3, 2, 2, 4), np.float32)}, 'alike in batch, heads and channels'),
        ({'k': np.zeros((2, 3, 2, 1, 4), np.float32)}, 'alike in batch, heads and channels'),
        ({'v': np.zeros((2, 3, 3, 2, 3), np.float32)}, r'for k \(2, 3, 2, 2, 4\), not'),
        ({'valid': np.ones((2, 5, 7), bool)}, r'valid must be \[batch, height, width\] = \(2, 3'),
        ({'implementation': 'torch'}, "implementation 'torch' is not one of"),
    ],
)
def test_arrays_that_do_not_fit(rng, change, message):
    arrays = dict(zip('qkv', _arrays(rng)))
    with pytest.raises(ValueError, match=message):
        attend_across(**{**arrays, **change})
