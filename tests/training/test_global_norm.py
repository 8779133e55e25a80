import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ggcf_jax.attention import target
from ggcf_jax.training.global_norm import global_norm


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_equals_optax_and_small_arrays_are_one_on_gpus(rng, platform):
    shapes = [(3, 3, 4, 5), (7,), (2, 7), (), (5,), (2, 3, 3, 4, 5)]
    tree = {str(i): jnp.asarray(rng.normal(size=s), jnp.float32) for i, s in enumerate(shapes)}
    with target.tracing_for(platform):
        np.testing.assert_allclose(global_norm(tree), optax.tree.norm(tree), rtol=1e-6)
        sums = (
            jax.jit(lambda tree: global_norm(tree)).lower(tree).as_text().count('stablehlo.reduce(')
        )
    assert sums == (3 if platform == 'gpu' else 6)
