"""Devices that share the rows of each image (`config.mesh.space`) compute what one device does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models.backbones import convnext, dinov2, mit, swin

_CONVNEXT = dataclasses.replace(convnext.ARCHITECTURES['convnext_tiny'], depths=(1, 1, 1, 1))
_SWIN = dataclasses.replace(swin.ARCHITECTURES['swin_tiny'], depths=(2, 2, 2, 2))
# Builder of a small network, its stride and width, and the height of the images.
NETWORKS = {
    'convnext': (functools.partial(convnext.build, _CONVNEXT), 16, 4, 192),  # as low as it may be
    'swin': (functools.partial(swin.build, _SWIN), 16, 8, 64),
    'dinov2': (functools.partial(dinov2.build, dinov2.Architecture(4, heads=2, grid=3)), 14, 4, 56),
    'mit': (functools.partial(mit.build, mit.Architecture((1, 1, 1, 1))), 32, 4, 128),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_rows_of_an_image_on_two_devices(name, tiny_config, rng):
    build, stride, width, height = NETWORKS[name]
    tiny_config.model.backbone.update({'name': name, 'width': width, 'stride': stride})
    make = functools.partial(build, tiny_config.model, remat='none', dtype=jnp.float32)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    draw = lambda x: np.float32(rng.normal(size=x.shape, scale=0.3))  # noqa: E731
    params = jax.tree.map(draw, nnx.as_pure(shapes))
    x = np.float32(rng.normal(size=(2, height, 37, 3)))

    def loss(params, x):
        maps = nnx.merge(graphdef, params)(x, train=True)
        return sum((y**2).mean() for y in maps), maps

    found = []
    for space in (1, 2):
        mesh = mesh_lib.make_mesh(jax.devices()[: 2 * space], space=space)
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, mesh_lib.replicated(mesh))
            images = jax.device_put(x, mesh_lib.by_batch(mesh))
            program = jax.jit(jax.value_and_grad(loss, has_aux=True))
            found.append(jax.device_get(program(placed, images)))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * np.abs(a).max())
