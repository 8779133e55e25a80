import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax import models
from ggcf_jax.errors import InputError
from ggcf_jax.models.remat import REMATS


def _step(config, backbone, remat):
    """Compiled loss, gradients and statistics of a backbone, and its arguments."""
    config.model.backbone.name = backbone
    config.train.remat = remat
    graphdef, params, stats = nnx.split(models.build(config, 3).backbone, nnx.Param, nnx.BatchStat)
    # Residual branches start at zero, where their gradients would be zero too.
    params = jax.tree.map(lambda x: x + 0.1, params)

    def loss(params, stats, x):
        trunk = nnx.merge(graphdef, params, stats, copy=True)
        features = trunk(x, True, jax.random.key(0))
        return sum((f**2).mean() for f in features), nnx.state(trunk, nnx.BatchStat)

    x = jax.random.normal(jax.random.key(1), (2, 33, 49, 3))
    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, stats, x).compile()
    return compiled, (params, stats, x)


@pytest.mark.parametrize('backbone', ['resnet18', 'wide_resnet38'])
def test_gradients_and_statistics_stay_and_less_is_kept(tiny_config, backbone):
    results = {}
    for remat in REMATS:
        compiled, arguments = _step(tiny_config, backbone, remat)
        results[remat] = compiled(*arguments)
    for remat in ('inplace_abn', 'block'):
        for a, b in zip(jax.tree.leaves(results['none']), jax.tree.leaves(results[remat])):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(jnp.abs(a).max()) + 1e-7)
    kept = {remat: _kept(tiny_config, backbone, remat) for remat in REMATS}
    assert kept['block'] < kept['inplace_abn'] < kept['none']


def _kept(config, backbone, remat):
    """Elements that the forward pass keeps for the backward pass, beside the parameters."""
    config.model.backbone.name = backbone
    config.train.remat = remat
    graphdef, params, stats = nnx.split(models.build(config, 3).backbone, nnx.Param, nnx.BatchStat)

    def loss(x, params):
        trunk = nnx.merge(graphdef, params, stats, copy=True)
        return sum((f**2).mean() for f in trunk(x, True, jax.random.key(0)))

    x = jnp.zeros((2, 33, 49, 3))
    residuals = jax.tree.leaves(jax.eval_shape(lambda x, p: jax.vjp(loss, x, p)[1], x, params))
    return sum(leaf.size for leaf in residuals)


def test_unknown_name(tiny_config):
    tiny_config.train.remat = 'all'
    with pytest.raises(InputError, match=r"config.train.remat='all' is not one of none, inplace"):
        models.build(tiny_config, 3)
