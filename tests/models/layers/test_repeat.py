"""Equal blocks: a loop where loops are fast. Values: tests/models/backbones/test_resnet.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax.attention import target
from ggcf_jax.models.backbones.resnet import Bottleneck
from ggcf_jax.models.layers.repeat import Repeated, scan


@pytest.mark.parametrize(('platform', 'unrolled'), [('tpu', False), ('gpu', False), ('cpu', True)])
def test_only_cpus_get_the_steps_one_after_the_other(platform, unrolled):
    device = jax.sharding.AbstractDevice('any', None, platform)
    mesh = jax.sharding.AbstractMesh(
        (1,), ('data',), (jax.sharding.AxisType.Auto,), abstract_device=device
    )

    def doubled(x):
        return scan(lambda x, _: (x * 2, None), x, jnp.arange(3))[0]

    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = str(jax.make_jaxpr(jax.jit(doubled))(1.0))
    assert ('unroll=3' in jaxpr or 'unroll=True' in jaxpr) == unrolled
    assert doubled(1.0) == 8.0


@pytest.mark.parametrize('steps', [1, 3])
def test_outputs_are_stacked(steps):
    carry, outputs = scan(lambda carry, x: (carry + x, (carry, 2 * x)), 1, jnp.arange(steps))
    expected = jax.lax.scan(lambda carry, x: (carry + x, (carry, 2 * x)), 1, jnp.arange(steps))
    assert jax.tree.map(lambda x: x.tolist(), (carry, outputs)) == jax.tree.map(
        lambda x: x.tolist(), expected
    )


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_training_without_a_loop_on_gpus(dtype):
    """Values, statistics and gradients are those of the loop, and what is kept is not copied."""

    def make(rngs):
        return Bottleneck(
            8, 2, 'relu', stride=1, first=2, dilation=2, norm='batch_norm', dtype=dtype, rngs=rngs
        )

    blocks = Repeated(make, 3, remat='inplace_abn', rngs=nnx.Rngs(0))
    graphdef, params, stats = nnx.split(blocks, nnx.Param, nnx.BatchStat)
    params = jax.tree.map(lambda p: p + 0.1, params)  # residual branches start at zero
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 8), dtype)

    def loss(params, x):
        own = nnx.merge(graphdef, params, stats, copy=True)
        y = own(x, train=True)
        return (y.astype(jnp.float32) ** 2).mean(), nnx.state(own, nnx.BatchStat)

    found = {}
    for platform in ('tpu', 'gpu'):
        with target.tracing_for(platform):
            step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
            text = step.lower(params, x).as_text()
            assert ('stablehlo.while' in text) == (platform == 'tpu')
            found[platform] = step(params, x)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for a, b in zip(*map(jax.tree.leaves, found.values()), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max()
