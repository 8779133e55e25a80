"""Choices follow the devices that are compiled for."""

import jax
import pytest

from ggcf_jax import platform
from ggcf_jax.attention import tiles


@pytest.mark.parametrize('name, sizes', [('tpu', tiles.ACCELERATOR), ('cpu', tiles.CPU)])
def test_the_mesh_in_effect_comes_first(name, sizes):
    device = jax.sharding.AbstractDevice('any', None, name)
    mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)
    seen = []

    def f(x):
        seen.append((platform.current(), tiles.current()))
        return platform.scan(lambda x, _: (x * 2, None), x, jax.numpy.arange(3))[0]

    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = str(jax.make_jaxpr(jax.jit(f))(1.0))
    assert seen == [(name, sizes)]
    assert ('unroll=3' in jaxpr or 'unroll=True' in jaxpr) == (name == 'cpu')


def test_default_devices():
    assert platform.current() == jax.default_backend() == 'cpu'
