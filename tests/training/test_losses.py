import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.training.losses import cross_entropy, label_weights, ohem


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


def _ohem_definition(logits, labels, threshold, min_kept):
    """As openseg: sort the probabilities of the labels, raise the threshold to the k-th."""
    valid = labels != 255
    z = logits[valid].astype(np.float64)
    probability = np.exp(z - z.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    probability = np.take_along_axis(probability, labels[valid][:, None].astype(int), 1)[:, 0]
    if not probability.size:
        return 0.0, 0.0
    kth = np.sort(probability)[min(min_kept, probability.size) - 1]
    kept = probability <= max(threshold, kth) * (1 + 1e-9)
    return -np.log(probability[kept]).sum(), kept.sum()


@pytest.mark.parametrize('threshold', [0.1, 0.7, 1.0])
@pytest.mark.parametrize('min_kept', [1, 20, 10_000])
def test_ohem_equals_definition(rng, threshold, min_kept):
    logits, labels = _sample(rng)
    found = jax.jit(lambda z: ohem(z, labels, threshold=threshold, min_kept=min_kept))(logits)
    np.testing.assert_allclose(
        found, _ohem_definition(logits, labels, threshold, min_kept), rtol=1e-5
    )


def test_ohem_keeps_pixels_that_tie_with_the_last():
    logits = np.zeros((6, 2), np.float32)
    logits[0, 1] = 5  # the one pixel that is worse
    total, kept = ohem(logits, np.zeros(6, np.uint8), threshold=0.1, min_kept=3)
    assert kept == 6  # 0 and one of five equal ones are not enough
    np.testing.assert_allclose(total, np.log1p(np.exp(5)) + 5 * np.log(2), rtol=1e-6)
    assert ohem(logits, np.zeros(6, np.uint8), threshold=0.1, min_kept=1)[1] == 1


def test_ohem_weighs_what_it_keeps_and_chooses_without_weights(rng):
    logits, labels = _sample(rng)
    weights = (1.0, 10.0, 0.1, 2.0)
    options = dict(threshold=0.2, min_kept=15)
    kept = jax.grad(lambda z: ohem(z, labels, **options)[0])(jnp.asarray(logits))
    kept = (np.abs(kept).sum(-1) > 0) & (labels != 255)
    expected = _definition(logits, np.where(kept, labels, 255), weights)
    np.testing.assert_allclose(ohem(logits, labels, weights, **options), expected, rtol=1e-5)


def test_ohem_of_nothing_is_zero(rng):
    logits, labels = _sample(rng)
    labels[:] = 255
    total, kept = ohem(logits, labels, threshold=0.7, min_kept=5)
    gradient = jax.grad(lambda z: ohem(z, labels, threshold=0.7, min_kept=5)[0])(logits)
    assert total == 0 and kept == 0 and (gradient == 0).all()


@pytest.mark.parametrize('weights', [(), (1.0, 0.5, 2.0, 0.3)])
def test_label_weights_are_those_of_the_loss(rng, weights):
    logits, labels = _sample(rng)
    np.testing.assert_allclose(
        label_weights(jnp.asarray(labels), weights).sum(),
        cross_entropy(logits, labels, weights)[1],
        rtol=1e-6,
    )
