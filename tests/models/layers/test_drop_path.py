"""Branches that are left out at random: of which images, how often, in stacks of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax.models.layers.drop_path import Drop, drop_path, rates
from ggcf_jax.models.layers.layer_scale import LayerScale
from ggcf_jax.models.layers.repeat import Repeated


def test_whole_images_are_left_out_and_the_mean_stays(rng):
    x = jnp.asarray(rng.normal(size=(2000, 1, 2, 3)), jnp.float32)
    found = drop_path(x, Drop(jax.random.key(0), jnp.float32(0.3)))
    kept = np.asarray(jnp.any(found != 0, (1, 2, 3)))
    np.testing.assert_allclose(found[kept], x[kept] / np.float32(0.7), rtol=1e-6)
    assert abs(kept.mean() - 0.7) < 0.04  # four standard deviations
    assert drop_path(x, None) is x
    np.testing.assert_array_equal(drop_path(x, Drop(jax.random.key(0), jnp.float32(0))), x)


def test_rates_rise_over_all_stages():
    found = rates(0.4, (2, 1, 2))
    np.testing.assert_allclose(sum(found, ()), [0, 0.1, 0.2, 0.3, 0.4])
    assert [len(stage) for stage in found] == [2, 1, 2]


class _Block(nnx.Module):
    stride = 1

    def __init__(self, rngs):
        self.scale = LayerScale(2, 1.0)

    def __call__(self, x, *, train, drop=None, extent=None):
        one, other = (None, None) if drop is None else drop.branches(2)
        return x + drop_path(self.scale(jnp.ones_like(x)), one) + drop_path(jnp.ones_like(x), other)


@pytest.mark.parametrize('remat', ['none', 'block'])
def test_blocks_of_a_stack_have_rates_of_their_own(remat):
    module = Repeated(_Block, 3, remat=remat, drop_rates=(0.0, 0.5, 0.75), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(module)

    @jax.jit
    def run(params, key):
        return nnx.merge(graphdef, params)(jnp.zeros((256, 1, 1, 2)), train=True, key=key)

    y = run(params, jax.random.key(0))
    # 2 of the block that always runs, 0, 2 or 4 of the second, 0, 4 or 8 of the third.
    values, counts = np.unique(y[:, 0, 0, 0], return_counts=True)
    assert values.tolist() == [2, 4, 6, 8, 10, 12, 14][: len(values)] and len(values) >= 6
    assert abs((values * counts).sum() / 256 - 6) < 0.6
    np.testing.assert_array_equal(y, run(params, jax.random.key(0)))
    assert (y != run(params, jax.random.key(1))).any()
    gradient = jax.grad(lambda params: run(params, jax.random.key(0)).sum())(params)
    assert all((np.asarray(x) > 0).all() for x in jax.tree.leaves(gradient))


def test_what_needs_no_key():
    module = Repeated(_Block, 2, drop_rates=(0.0, 0.5), rngs=nnx.Rngs(0))
    x = jnp.zeros((1, 1, 1, 2))
    np.testing.assert_array_equal(module(x, train=False), jnp.full_like(x, 4))
    with pytest.raises(ValueError, match='need a key'):
        module(x, train=True)
    never = Repeated(_Block, 2, drop_rates=(0.0, 0.0), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(never(x, train=True), jnp.full_like(x, 4))
