"""Sums over images that each device computes of its own ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from ggcf_jax.attention import target
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models.layers import kernel_gradient, winograd
from ggcf_jax.models.layers.batch_norm import normalize
from ggcf_jax.models.layers.depthwise import depthwise
from ggcf_jax.models.layers.kernel_gradient import Geometry
from ggcf_jax.models.layers.layer_norm import layer_norm
from ggcf_jax.models.layers.shares import of_own_images
from tests.helpers import exchanged


def sums(x, y):
    return {'product': jnp.einsum('bhwc,bhwd->cd', x, y), 'second': y.sum((0, 1, 2))}


@pytest.mark.parametrize(('images', 'meetings'), [(4, 1), (8, 1), (6, 0)])
def test_devices_meet_once(rng, images, meetings):
    x, y = (np.float32(rng.normal(size=(images, 3, 5, c))) for c in (2, 3))
    mesh = mesh_lib.make_mesh(jax.devices()[:4])
    with jax.set_mesh(mesh):
        program = jax.jit(lambda x, y: of_own_images(sums, x, y))
        found = program(x, y)
        compiled = program.lower(x, y).compile()
    for name, value in sums(x, y).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)
    assert exchanged(compiled) == [('all-reduce', [9])] * meetings  # six numbers and three


@pytest.mark.parametrize('kind', [AxisType.Explicit, AxisType.Auto])
def test_other_meshes_and_none(rng, kind):
    x, y = (np.float32(rng.normal(size=(4, 3, 5, c))) for c in (2, 3))
    expected = sums(x, y)
    meshes = [jax.make_mesh((2,), (name,), axis_types=(kind,)) for name in ('data', 'model')]
    for mesh in meshes:
        with jax.set_mesh(mesh):
            found = jax.jit(lambda x, y: of_own_images(sums, x, y))(x, y)
        np.testing.assert_allclose(found['product'], expected['product'], rtol=1e-5, atol=1e-5)
    assert 'shard_map' not in str(jax.make_jaxpr(lambda x, y: of_own_images(sums, x, y))(x, y))


def test_inside_of_a_shard_map_the_images_are_the_devices_own(rng):
    x, y = (np.float32(rng.normal(size=(4, 3, 5, c))) for c in (2, 3))
    mesh = mesh_lib.make_mesh(jax.devices()[:2])
    images = PartitionSpec('data')
    with jax.set_mesh(mesh):
        found = jax.shard_map(
            lambda x, y: of_own_images(sums, x, y)['second'][None],
            in_specs=(images, images),
            out_specs=images,
        )(x, y)
    own = [y[:2].sum((0, 1, 2)), y[2:].sum((0, 1, 2))]
    np.testing.assert_allclose(found, own, rtol=1e-5, atol=1e-5)


def of_channels(x, kernel):
    return depthwise(x, kernel[:, :, :1], kernel[0, 0, 1])


def of_products(x, kernel):
    return winograd.convolve(x, kernel, 2)


def of_parts(x, kernel):
    return kernel_gradient.convolve(x, kernel, Geometry((2, 2), ((1, 1), (1, 1)), None))


def of_a_norm(x, kernel):
    return normalize(x, kernel[0, 0, 0], kernel[0, 1, 0], 1e-5, jnp.float32).y


def of_a_layer_norm(x, kernel):
    layer = layer_norm(8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.scale[...], layer.bias[...] = kernel[0, 0, 0], kernel[0, 1, 0]
    with target.tracing_for('cpu'):
        return layer(x)


@pytest.mark.parametrize(
    ('layer', 'meetings'),
    [
        (of_channels, [80]),  # nine taps and a bias of eight channels
        (of_products, [576]),
        (of_parts, [576]),
        (of_a_norm, [16, 16]),  # statistics, and their gradients
        (of_a_layer_norm, [16]),  # gradients of scale and bias
    ],
)
def test_layers_on_two_devices(rng, monkeypatch, layer, meetings):
    """As on one, and only what is summed is exchanged: no map, and no parts of a gradient."""
    monkeypatch.setattr(kernel_gradient, '_PART', 100)
    monkeypatch.setattr(kernel_gradient, '_WHOLE', 200)
    x, kernel = (np.float32(rng.normal(size=s)) for s in ((4, 9, 14, 8), (3, 3, 8, 8)))

    def gradients(x, kernel):
        return jax.grad(lambda x, kernel: (layer(x, kernel) ** 3).sum(), (0, 1))(x, kernel)

    def curvature(x, kernel):
        def along(x, kernel):
            dx, dkernel = gradients(x, kernel)
            return (dx * jnp.cos(x)).sum() + (dkernel**2).sum()

        return jax.grad(along, (0, 1))(x, kernel)

    mesh = mesh_lib.make_mesh(jax.devices()[:2])
    images = jax.device_put(x, mesh_lib.by_batch(mesh))
    for of in (gradients, curvature):
        expected = jax.jit(of)(x, kernel)
        with jax.set_mesh(mesh):
            found = jax.jit(of)(images, kernel)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.abs(b).max())
    with jax.set_mesh(mesh):
        compiled = jax.jit(gradients).lower(images, kernel).compile()
    assert exchanged(compiled) == [('all-reduce', [size]) for size in meetings]
