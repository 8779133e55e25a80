import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax import models
from ggcf_jax.errors import InputError
from ggcf_jax.models.backbones.resnet import Bottleneck
from ggcf_jax.models.backbones.wide_resnet import PreActivationBlock
from ggcf_jax.models.layers.remat import REMATS, run
from ggcf_jax.models.layers.repeat import Repeated

SHARED = dict(norm='batch_norm', dtype=jnp.float32)
BLOCKS = {
    'bottleneck': lambda rngs: Bottleneck(
        8, 2, 'leaky_relu', stride=1, first=2, dilation=2, rngs=rngs, **SHARED
    ),
    'pre-activation': lambda rngs: PreActivationBlock(
        8, (4, 8), 'leaky_relu', dropout=0.5, rngs=rngs, **SHARED
    ),
}


def _loss(graphdef, remat, params, stats, x, key):
    """A scalar of a block's output, and the block's statistics."""
    block = nnx.merge(graphdef, params, stats, copy=True)
    y = run(block, x, remat=remat, train=True, key=key)
    return (y**2).mean(), nnx.state(block, nnx.BatchStat)


@pytest.mark.slow
@pytest.mark.parametrize('kind', [*BLOCKS, 'repeated'])
def test_gradients_and_statistics_stay_and_less_is_kept(kind):
    if kind == 'repeated':
        make, key = BLOCKS['bottleneck'], None
        blocks = {r: Repeated(make, 3, remat=r, rngs=nnx.Rngs(0)) for r in REMATS}
    else:
        key = jax.random.key(0) if kind == 'pre-activation' else None
        blocks = dict.fromkeys(REMATS, BLOCKS[kind](nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (2, 9, 11, 8))
    results, kept = {}, {}
    for remat, block in blocks.items():
        graphdef, params, stats = nnx.split(block, nnx.Param, nnx.BatchStat)
        # Residual branches start at zero, where their gradients would be zero too.
        params = jax.tree.map(lambda p: p + 0.1, params)
        loss = functools.partial(_loss, graphdef, remat)
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 2), has_aux=True))
        results[remat] = gradient(params, stats, x, key)

        def residuals(params, x, loss=loss, stats=stats):
            return jax.vjp(lambda p, x: loss(p, stats, x, key)[0], params, x)[1]

        kept[remat] = sum(r.size for r in jax.tree.leaves(jax.eval_shape(residuals, params, x)))
    for remat in ('inplace_abn', 'block'):
        for a, b in zip(
            jax.tree.leaves(results['none']), jax.tree.leaves(results[remat]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert kept['block'] < kept['inplace_abn'] < kept['none']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('backbone', 'stride'),
    [
        ('resnet18', 8),
        ('wide_resnet38', 8),
        ('mobilenet_v2', 8),
        ('convnext_tiny', 8),
        ('swin_tiny', 32),
        ('dinov2_small', 14),
        ('mit_b1', 32),
    ],
)
def test_every_backbone_keeps_less(tiny_config, backbone, stride):
    tiny_config.model.backbone.update(name=backbone, stride=stride)
    kept = {}
    for remat in REMATS:
        tiny_config.train.remat = remat
        graphdef, params, stats = models.abstract(tiny_config, 3)

        def residuals(params, stats, x, graphdef=graphdef):
            def loss(params, x):
                trunk = nnx.merge(graphdef, params, stats, copy=True).backbone
                return sum((f**2).mean() for f in trunk(x, train=True, key=jax.random.key(0)))

            return jax.vjp(loss, params, x)[1]

        shapes = jax.eval_shape(residuals, params, stats, jnp.zeros((2, 33, 49, 3)))
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert kept['block'] < kept['inplace_abn'] < kept['none']


def test_unknown_name(tiny_config):
    tiny_config.train.remat = 'all'
    with pytest.raises(InputError, match=r"config.train.remat='all' is not one of none, inplace"):
        models.build(tiny_config, 3)
