"""Batch norm with a backward pass of its own, against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from ggcf_jax.attention import target
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models.layers.batch_norm import Normalized, normalize
from ggcf_jax.models.layers.conv import ConvNorm
from ggcf_jax.models.layers.norm import ActivatedNorm
from ggcf_jax.models.layers.remat import run

EPSILON = 1e-5
PLATFORMS = ('cpu', 'gpu')


def definition(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.maximum(0.0, (x**2).mean(axes) - mean**2)
    return Normalized((x - mean) / jnp.sqrt(var + EPSILON) * scale + bias, mean, var)


def ours(x, scale, bias):
    return normalize(x, scale, bias, EPSILON, x.dtype)


def _arrays(rng, dtype):
    x = rng.normal(loc=(0.3, -0.1, 1), scale=(1, 0.2, 3), size=(4, 5, 7, 3))
    return tuple(jnp.asarray(a, dtype) for a in (x, [1.7, -0.6, 0], [0.1, -0.2, 3.3]))


def _gradients(norm, arrays):
    """Value and gradients of a function of all outputs, which have cotangents of all kinds."""

    def loss(*arrays):
        out = norm(*arrays)
        weights = jnp.cos(jnp.arange(out.y.size)).reshape(out.y.shape)
        return (out.y**2 * weights).sum() + (out.mean**3).sum() + jnp.sin(out.var).sum()

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(*arrays)


def _assert_close(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        b = np.asarray(b, np.float64)
        assert np.abs(np.asarray(a, np.float64) - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize('platform', PLATFORMS)
def test_equals_definition_in_values_and_gradients(rng, platform):
    with jax.enable_x64(True), target.tracing_for(platform):
        wide = _arrays(rng, jnp.float64)
        narrow = tuple(x.astype(jnp.float32) for x in wide)
        exact = definition(*wide), _gradients(definition, wide)
        _assert_close((ours(*wide), _gradients(ours, wide)), exact, 1e-12)
        _assert_close((ours(*narrow), _gradients(ours, narrow)), exact, 2e-6)


@pytest.mark.parametrize('platform', PLATFORMS)
def test_second_derivatives(rng, platform):
    with jax.enable_x64(True), target.tracing_for(platform):
        x, scale, bias = _arrays(rng, jnp.float64)

        def curvature(norm):
            def loss(x, scale):
                return (norm(x, scale, bias).y ** 3).mean()

            def along(x, scale):
                dx, dscale = jax.grad(loss, (0, 1))(x, scale)
                return (dx * jnp.cos(x)).sum() + (dscale**2).sum()

            return jax.grad(along, (0, 1))(x, scale)

        _assert_close(curvature(ours), curvature(definition), 1e-11)


@pytest.mark.parametrize('platform', PLATFORMS)
def test_statistics_of_a_sharded_batch_are_global(rng, platform):
    arrays = _arrays(rng, jnp.float32)
    mesh = mesh_lib.make_mesh(jax.devices()[:4])
    x = jax.device_put(arrays[0], NamedSharding(mesh, PartitionSpec('data')))
    with jax.set_mesh(mesh), target.tracing_for(platform):
        both = jax.jit(lambda *a: (ours(*a), _gradients(ours, a)))
        text = both.lower(x, *arrays[1:]).compile().as_text()
        found = both(x, *arrays[1:])
    _assert_close(found, (ours(*arrays), _gradients(ours, arrays)), 1e-6)
    assert 'all-reduce' in text and 'all-gather' not in text


def test_channels_without_variance():
    arrays = jnp.full((2, 3, 3, 1), 0.1), jnp.ones(1), jnp.ones(1)
    value, (dx, dscale, _) = _gradients(ours, arrays)
    assert np.isfinite(value) and np.isfinite(dx).all() and np.isfinite(dscale).all()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_same_bits_as_flax(rng, dtype):
    made = ActivatedNorm(3, 'identity', dtype=dtype, rngs=nnx.Rngs(0))
    flax = nnx.clone(made).norm
    x = jnp.asarray(rng.normal(loc=(100, -8, 0), size=(4, 5, 6, 3)), dtype)
    np.testing.assert_array_equal(made(x, train=True), flax(x, use_running_average=False))
    np.testing.assert_array_equal(made.norm.mean[...], flax.mean[...])
    np.testing.assert_array_equal(made.norm.var[...], flax.var[...])


@pytest.mark.parametrize(('remat', 'passes'), [('none', 2), ('inplace_abn', 2), ('block', 3)])
def test_passes_over_the_input_on_a_gpu(remat, passes):
    """One for the statistics, one for the gradients, one more where statistics are not kept."""
    layer = ConvNorm(3, 3, 1, 'relu', dtype=jnp.float32, rngs=nnx.Rngs(0))

    def loss(x):
        return run(nnx.clone(layer), x, remat=remat, train=True).sum()

    with target.tracing_for('gpu'):
        text = jax.jit(jax.value_and_grad(loss)).lower(jnp.ones((1, 4, 4, 3))).as_text()
    # A pass is one of pairs over rows, and one over the rest; the last one is the loss.
    assert text.count('stablehlo.reduce(') == 2 * passes + 1
