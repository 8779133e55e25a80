import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax.models.layers.conv import ConvNorm
from ggcf_jax.models.layers.layer_norm import layer_norm
from ggcf_jax.models.layers.norm import ActivatedNorm, freeze, gelu
from ggcf_jax.models.layers.repeat import Repeated


def _norm(norm, dtype):
    made = ActivatedNorm(3, 'leaky_relu', norm=norm, dtype=dtype, rngs=nnx.Rngs(0))
    made.norm.scale[...] = jnp.array([1.7, -0.6, 0.3])
    made.norm.bias[...] = jnp.array([0.1, -0.2, 3.3])
    made.norm.mean[...] = jnp.array([100.3, -7.7, 0.01])
    made.norm.var[...] = jnp.array([2.2, 0.03, 9.9])
    return made


def _definition(x, mean, var, scale, bias):
    y = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    return np.where(y < 0, 0.01 * y, y)


@pytest.mark.parametrize('norm', ['batch_norm', 'abs_gamma'])
@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_equals_definition_with_float32_statistics(rng, norm, train, dtype):
    """Rounded once, at the end: the running mean of 100.3 would be 100.5 in bfloat16."""
    x = jnp.asarray(rng.normal(loc=(100, -8, 0), size=(4, 5, 6, 3)), dtype)
    made = _norm(norm, dtype)
    scale = np.array([1.7, -0.6, 0.3])
    if norm == 'abs_gamma':
        scale = np.abs(scale) + 1e-5
    exact = np.asarray(x, np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    running = np.array([100.3, -7.7, 0.01]), np.array([2.2, 0.03, 9.9])
    used = (mean, var) if train else running
    y = made(x, train=train)
    assert y.dtype == dtype
    expected = _definition(exact, *used, scale, np.array([0.1, -0.2, 3.3]))
    # The batch variance is computed as E x^2 - (E x)^2 in float32.
    rtol = {jnp.float32: 2e-3 if train else 1e-4, jnp.bfloat16: 1e-2}[dtype]
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=rtol, atol=rtol)
    if train:
        np.testing.assert_allclose(made.norm.mean[...], 0.9 * running[0] + 0.1 * mean, rtol=1e-4)
        np.testing.assert_allclose(made.norm.var[...], 0.9 * running[1] + 0.1 * var, rtol=1e-2)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_layer_norm_of_each_position(rng, dtype):
    """Values far from zero: the variance is not a difference of squares."""
    x = jnp.asarray(rng.normal(loc=300, size=(2, 3, 4, 16)), dtype)
    made = layer_norm(16, epsilon=1e-3, dtype=dtype, rngs=nnx.Rngs(0))
    made.scale[...], made.bias[...] = jnp.float32(rng.normal(size=(2, 16)) + 0.001)
    exact = np.asarray(x, np.float64)
    mean, var = exact.mean(-1, keepdims=True), exact.var(-1, keepdims=True)
    expected = (exact - mean) / np.sqrt(var + 1e-3) * np.asarray(made.scale[...])
    y = made(x)
    assert y.dtype == dtype and made.scale[...].dtype == jnp.float32
    rtol = {jnp.float32: 2e-4, jnp.bfloat16: 2e-2}[dtype]
    found = np.asarray(y, np.float64) - np.asarray(made.bias[...])
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol)


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    np.testing.assert_allclose(gelu(jnp.asarray(x)), expected, atol=5e-7, rtol=1e-5)
    rounded = jnp.asarray(x, jnp.bfloat16)
    found = gelu(rounded)
    assert found.dtype == jnp.bfloat16  # rounded once, of a float32 result
    np.testing.assert_array_equal(found, gelu(rounded.astype(jnp.float32)).astype(jnp.bfloat16))


def test_scale_at_zero_learns():
    def first(scale):
        made = _norm('abs_gamma', jnp.float32)
        made.norm.scale[...] = scale
        return made(jnp.ones((1, 2, 2, 3)), train=False)[..., 1].sum()

    assert float(jnp.abs(jax.grad(first)(jnp.zeros(3))[1])) > 1


def test_frozen_statistics_are_used_in_training_and_stay(rng):
    def make(rngs):
        return ConvNorm(3, 3, 1, 'relu', dtype=jnp.float32, rngs=rngs)

    module = Repeated(make, 2, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(2, 4, 5, 3)), jnp.float32)
    module(x, train=True)  # gives the norms statistics of their own
    evaluated, before = module(x, train=False), nnx.as_pure(nnx.state(module, nnx.BatchStat))
    assert float(jnp.abs(module(x, train=True) - evaluated).max()) > 0.1
    nnx.update(module, before)
    freeze(module)
    np.testing.assert_array_equal(module(x, train=True), evaluated)
    after = nnx.as_pure(nnx.state(module, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, after, before)
