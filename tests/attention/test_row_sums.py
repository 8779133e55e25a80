"""Sums of products over channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.attention import target
from ggcf_jax.attention.row_sums import sum_of_products


@pytest.mark.parametrize('shape', [(5,), (1, 7), (2, 1, 3, 8), (1, 1, 4, 1)])
@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_values_and_gradients(rng, shape, platform):
    a, b, weight = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    with target.tracing_for(platform):
        total, back = jax.vjp(lambda a, b: sum_of_products(a, b), a, b)
        da, db = back(jnp.asarray(weight[..., :1]))
    np.testing.assert_allclose(total, (a * b).sum(-1, keepdims=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(da, weight[..., :1] * b, rtol=1e-6)
    np.testing.assert_allclose(db, weight[..., :1] * a, rtol=1e-6)


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_only_cpus_have_products(platform):
    with target.tracing_for(platform):
        program = str(jax.make_jaxpr(lambda a: sum_of_products(a, a))(jnp.ones((1, 3, 4))))
    assert ('dot_general' in program) == (platform == 'cpu')


def test_in_float64():
    with jax.enable_x64(True):
        a = jnp.full((1, 3), 1 + 1e-12)
        assert sum_of_products(a, a).dtype == jnp.float64
        np.testing.assert_allclose(sum_of_products(a, a)[0, 0], 3 * (1 + 2e-12), rtol=1e-15)
