import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.losses import cross_entropy


def _definition(logits, labels, weights):
    total, norm = 0.0, 0.0
    for index in np.ndindex(labels.shape):
        if labels[index] != 255:
            z = logits[index].astype(np.float64)
            weight = weights[labels[index]]
            total += weight * (np.log(np.exp(z - z.max()).sum()) + z.max() - z[labels[index]])
            norm += weight
    return total, norm


def _sample(rng, shape=(2, 5, 6), classes=4):
    labels = rng.integers(0, classes, shape).astype(np.uint8)
    labels[rng.random(shape) < 0.3] = 255
    return rng.normal(size=(*shape, classes)).astype(np.float32) * 3, labels


@pytest.mark.parametrize('weights', [(), (1.0, 0.5, 2.0, 0.0)])
def test_equals_definition(rng, weights):
    logits, labels = _sample(rng)
    total, norm = cross_entropy(logits, labels, weights)
    expected = _definition(logits, labels, weights or (1.0,) * 4)
    np.testing.assert_allclose((total, norm), expected, rtol=1e-5)


@pytest.mark.parametrize('weights', [(), (1.0, 0.5, 2.0, 0.3)])
def test_mean_and_gradient_equal_torch(rng, weights):
    torch = pytest.importorskip('torch', reason="needs the extra 'parity'")
    logits, labels = _sample(rng)
    z = torch.tensor(logits, requires_grad=True)
    weight = torch.tensor(weights) if weights else None
    expected = torch.nn.functional.cross_entropy(
        z.movedim(-1, 1), torch.tensor(labels).long(), weight=weight, ignore_index=255
    )
    expected.backward()

    def mean(z):
        total, norm = cross_entropy(z, labels, weights)
        return total / norm

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(logits))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, z.grad, atol=1e-7)


def test_all_ignored_is_zero_with_finite_gradients(rng):
    logits, labels = _sample(rng)
    labels[:] = 255
    (total, norm), gradient = (
        cross_entropy(logits, labels),
        jax.grad(lambda z: cross_entropy(z, labels)[0])(jnp.asarray(logits)),
    )
    assert total == 0 and norm == 0
    assert (gradient == 0).all()


def test_extreme_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
    total, norm = cross_entropy(logits, jnp.array([0, 0], jnp.uint8))
    assert total == 2e4 and norm == 2
