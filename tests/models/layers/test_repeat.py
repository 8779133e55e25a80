"""Equal blocks: a loop where loops are fast. Values: tests/models/backbones/test_resnet.py."""

import jax
import jax.numpy as jnp
import pytest

from ggcf_jax.models.layers.repeat import scan


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
