"""Gradients of kernels that are summed up part by part, against those of XLA's convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax.attention import target
from ggcf_jax.models.layers import kernel_gradient
from ggcf_jax.models.layers.conv import conv
from ggcf_jax.models.layers.kernel_gradient import Geometry, direct

GEOMETRIES = [
    (3, Geometry((1, 1), ((1, 1), (1, 1)), None)),
    (3, Geometry((2, 2), ((1, 1), (1, 1)), None)),
    (3, Geometry((1, 1), ((4, 4), (4, 4)), None, (4, 4))),
    (3, Geometry((2, 2), ((2, 2), (2, 2)), None, (2, 2))),
    (7, Geometry((2, 2), ((3, 3), (3, 3)), None)),
    (5, Geometry((3, 1), ((0, 3), (2, 1)), None)),
    (4, Geometry((4, 4), ((0, 0), (0, 0)), None)),
]


@pytest.fixture(params=[(7, 32), (40, 32), (400, 32), (7, 5)])
def small_parts(request, monkeypatch):
    """Parts of some rows, of an image and of several, and few large ones."""
    monkeypatch.setattr(kernel_gradient, '_PART', request.param[0])
    monkeypatch.setattr(kernel_gradient, '_WHOLE', 2 * request.param[0])
    monkeypatch.setattr(kernel_gradient, '_MOST', request.param[1])


@pytest.mark.usefixtures('small_parts')
@pytest.mark.parametrize(('side', 'geometry'), GEOMETRIES)
@pytest.mark.parametrize('size', [(9, 8), (4, 11), (17, 6)])
def test_gradients_of_first_and_second_order(rng, size, side, geometry):
    x, dx = jnp.asarray(rng.normal(size=(2, 6, *size, 3)), jnp.float32)
    kernel, dkernel = jnp.asarray(rng.normal(size=(2, side, side, 3, 4)), jnp.float32)
    results = []
    for f in (kernel_gradient.convolve, direct):
        f = functools.partial(f, geometry=geometry)
        loss = lambda x, kernel: (f(x, kernel) ** 3).mean()  # noqa: E731, B023
        gradient = jax.grad(loss, (0, 1))
        along = lambda x, kernel: sum((d**2).sum() for d in gradient(x, kernel))  # noqa: E731, B023
        results.append(
            (
                *jax.jit(functools.partial(jax.jvp, f))((x, kernel), (dx, dkernel)),
                *jax.jit(gradient)(x, kernel),
                *jax.jit(jax.vmap(gradient, (0, None)))(jnp.stack([x, dx]), kernel),
                *jax.jit(jax.grad(along, (0, 1)))(x, kernel),
            )
        )
    for found, expected in zip(*results):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ('images', 'rows', 'row', 'expected'),
    [
        (1, 65, 33 * 64, (1, 65)),  # small
        (4, 128, 64 * 32, (1, 64)),
        (8, 33, 33 * 128, (1, 17)),
        (16, 17, 17 * 128, (3, 17)),
        (2, 129, 129 * 64, (1, 15)),
        (2, 512, 512 * 64, (1, 32)),  # 32 parts
        (40, 512, 512 * 64, (2, 512)),
        (1, 2, 2**20, (1, 1)),
    ],
)
def test_size_of_parts(images, rows, row, expected):
    assert kernel_gradient._part(images, rows, row) == expected


@pytest.mark.parametrize(
    ('features', 'kernel', 'options', 'parts'),
    [
        (16, 7, {'stride': 2}, 4),  # narrow: in pairs
        (24, 7, {'stride': 2}, 8),  # with zeros
        (64, 7, {'stride': 2}, 16),
        (40, 3, {'stride': 2}, 10),
        (64, 3, {'dilation': 2}, 32),  # the most there are
    ],
)
def test_layers_on_large_maps_have_parts(features, kernel, options, parts):
    """On CPUs, in float32; elsewhere the gradient is one convolution."""
    counts = {}
    for platform, dtype in (('cpu', jnp.float32), ('cpu', jnp.bfloat16), ('gpu', jnp.float32)):
        layer = conv(3, features, kernel, dtype=dtype, rngs=nnx.Rngs(0), **options)
        graphdef, params = nnx.split(layer)

        def total(params, x):
            return nnx.merge(graphdef, params, copy=True)(x).sum()  # noqa: B023

        with target.tracing_for(platform):
            text = (
                jax.jit(jax.grad(total)).lower(params, jnp.zeros((2, 256, 256, 3), dtype)).as_text()
            )
        counts[platform, dtype] = text.count('stablehlo.convolution')
    assert list(counts.values()) == [parts, 1, 1]
