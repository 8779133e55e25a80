"""Products of matrices on CPUs, and the form of the kernel's gradient."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models.layers import forms
from ggcf_jax.models.layers.product import product
from tests.helpers import exchanged


def gradients(f):
    return jax.jit(lambda x, kernel, dy: jax.vjp(f, x, kernel)[1](dy))


def operands(rng, rows, channels, features, dtype=np.float32):
    shapes = ((rows, channels), (channels, features), (rows, features))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize(
    ('channels', 'features', 'in_memory'),
    [(128, 512, True), (200, 1536, True), (127, 512, False), (256, 384, False), (128, 256, False)],
)
def test_gradients_are_those_of_the_plain_product(rng, channels, features, in_memory):
    x, kernel, dy = operands(rng, 37, channels, features)
    np.testing.assert_allclose(product(x, kernel), x @ kernel, rtol=1e-4, atol=1e-4)
    for found, expected in zip(gradients(product)(x, kernel, dy), (dy @ kernel.T, x.T @ dy)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    program = str(jax.make_jaxpr(gradients(product))(x, kernel, dy))
    assert ('optimization_barrier' in program) == in_memory


@pytest.mark.parametrize(('rows', 'devices'), [(256, 1), (256, 2), (250, 1)])
def test_what_the_features_are_computed_of_is_not_read_across_rows(rng, rows, devices):
    """With 256 rows: what is transposed has been computed before, in a call that stays."""
    x, kernel, dy = operands(rng, rows, 128, 512)

    def f(x, kernel, dy):
        y, back = jax.vjp(lambda x, kernel: product(jnp.maximum(x * 2 + 1, 0), kernel), x, kernel)
        return y, *back(dy)

    mesh = mesh_lib.make_mesh(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        given = [jax.device_put(a, mesh_lib.by_batch(mesh)) for a in (x, dy)]
        compiled = jax.jit(f).lower(given[0], kernel, given[1]).compile()
        found = compiled(given[0], kernel, given[1])
    features = np.maximum(np.asarray(x) * 2 + 1, 0)
    dx = (dy @ kernel.T) * 2 * (features > 0)
    for one, expected in zip(found, (features @ kernel, dx, features.T @ dy), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-3)
    kept = re.search(rf'f32\[{rows // devices},128\]\S* call\(', compiled.as_text())
    assert (kept is not None) == (rows == 256)


def test_in_bfloat16_and_for_another_runtime_it_is_the_plain_one(rng):
    arrays = operands(rng, 5, 128, 512, jnp.bfloat16)
    assert 'custom_vjp' not in str(jax.make_jaxpr(product)(*arrays[:2]))
    with jax.set_mesh(mesh_lib.make_mesh(jax.devices()[:2])):
        assert 'custom_vjp' not in str(jax.make_jaxpr(lambda *x: product(*x))(*arrays[:2]))
    arrays = operands(rng, 5, 128, 512)
    assert 'custom_vjp' in str(jax.make_jaxpr(lambda *x: product(*x))(*arrays[:2]))
    with forms.keeping_convolutions():
        assert 'custom_vjp' not in str(jax.make_jaxpr(lambda *x: product(*x))(*arrays[:2]))


@pytest.mark.parametrize(
    ('rows', 'features', 'devices'), [(6, 512, 1), (6, 512, 2), (6, 384, 2), (256, 512, 2)]
)
def test_gradients_of_each_row_and_second_ones(rng, rows, features, devices):
    x, kernel, dy = operands(rng, rows, 128, features)

    def energy(f):
        return lambda kernel, x, dy: (jnp.sin(f(x, kernel)) * dy).sum()

    plain = lambda x, kernel: x @ kernel  # noqa: E731
    for f in (
        lambda f: jax.vmap(jax.grad(energy(f)), (None, 0, 0))(kernel, x[:, None], dy[:, None]),
        lambda f: jax.grad(lambda k: (jax.grad(energy(f))(k, x, dy) ** 2).sum())(kernel),
    ):
        expected = f(plain)
        scale = float(jnp.abs(expected).max())
        with jax.set_mesh(mesh_lib.make_mesh(jax.devices()[:devices])):
            assert 'custom_vjp' in str(jax.make_jaxpr(lambda *x: product(*x))(x, kernel))
            found = jax.jit(lambda f=f: f(product))()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize(('channels', 'features'), [(128, 512), (512, 128), (96, 40), (40, 96)])
def test_devices_exchange_the_gradient_of_the_kernel_alone(rng, channels, features):
    """And in the order of the kernel: an optimizer would read another across its rows."""
    x, kernel, dy = operands(rng, 8, channels, features)
    mesh = mesh_lib.make_mesh(jax.devices()[:2])
    with jax.set_mesh(mesh):
        rows = mesh_lib.by_batch(mesh)
        lowered = gradients(product).lower(
            jax.device_put(x, rows), kernel, jax.device_put(dy, rows)
        )
    compiled = lowered.compile()
    assert exchanged(compiled) == [('all-reduce', [channels * features])]
    assert re.search(rf'f32\[{channels},{features}\]\{{1,0\}} all-reduce\(', compiled.as_text())
