import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ggcf_jax import config as config_lib
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.training import objective
from ggcf_jax.training.losses.boundary import boundary_cross_entropy, near_boundary
from ggcf_jax.training.losses.cross_entropy import cross_entropy
from ggcf_jax.training.losses.dice import dice
from ggcf_jax.training.losses.focal import focal
from ggcf_jax.training.losses.lovasz import lovasz_softmax
from ggcf_jax.training.losses.ohem import ohem
from ggcf_jax.training.losses.pixels import label_weights


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


@pytest.mark.parametrize('weights', [(), (1.0, 0.5, 2.0, 0.3)])
def test_focal_and_its_gradient_equal_torch(rng, weights):
    torch = pytest.importorskip('torch', reason="needs the extra 'parity'")
    logits, labels = _sample(rng)
    z = torch.tensor(logits, requires_grad=True)
    log_p = torch.nn.functional.log_softmax(z, -1)
    valid = torch.tensor(labels != 255)
    truth = torch.tensor(np.where(labels == 255, 0, labels)).long()
    own = log_p.gather(-1, truth[..., None])[..., 0]
    weight = torch.tensor(weights or (1.0,) * 4)[truth] * valid
    expected = (-((1 - own.exp()) ** 1.5) * own * weight).sum()
    expected.backward()
    loss = jax.jit(jax.value_and_grad(lambda z: focal(z, labels, weights, gamma=1.5), has_aux=True))
    (value, norm), gradient = loss(jnp.asarray(logits))
    np.testing.assert_allclose((value, norm), (expected.item(), weight.sum()), rtol=1e-5)
    np.testing.assert_allclose(gradient, z.grad, atol=2e-6)


def test_focal_of_gamma_0_is_cross_entropy_and_certain_pixels_are_finite(rng):
    logits, labels = _sample(rng)
    np.testing.assert_allclose(
        focal(logits, labels, gamma=0.0), cross_entropy(logits, labels), rtol=1e-6
    )
    certain = jnp.array([[200.0, 0.0]])
    for gamma in (0.5, 2.0):
        loss = lambda z: focal(z, jnp.array([0]), gamma=gamma)[0]  # noqa: E731, B023
        assert loss(certain) == 0 and np.isfinite(jax.grad(loss)(certain)).all()


@pytest.mark.parametrize('weights', [(), (1.0, 0.5, 2.0, 0.3, 1.0)])
def test_dice_equals_optax(rng, weights):
    """On the labelled pixels alone; class 3 and 4 do not occur."""
    logits, labels = _sample(rng, classes=5)
    labels[(labels == 3) | (labels == 4)] = 0
    valid = labels != 255
    expected = optax.losses.dice_loss(
        logits[valid],
        np.eye(5, dtype=np.float32)[labels[valid]],
        smooth=0.0,
        axis=0,
        reduction='none',
    )
    present = np.asarray(weights or (1.0,) * 5)[:3]
    total, norm = jax.jit(lambda z: dice(z, labels, weights))(logits)
    np.testing.assert_allclose(total, (expected[:3] * present).sum(), rtol=1e-5)
    np.testing.assert_allclose(norm, present.sum(), rtol=1e-6)


def _lovasz_definition(logits, labels):
    """The Lovasz extension of the Jaccard loss as a sum over growing sets of wrong pixels."""
    valid = labels != 255
    z = logits[valid].astype(np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    losses = []
    for c in np.unique(labels[valid]):
        truth = labels[valid] == c
        errors = np.abs(truth - p[:, c])
        wrong, before, loss = np.zeros(len(truth), bool), 0.0, 0.0
        for i in np.argsort(-errors):
            wrong[i] = True
            # Pixels of the class that are right over those that are, or are taken for it.
            jaccard = 1 - (truth & ~wrong).sum() / (truth | wrong).sum()
            loss += errors[i] * (jaccard - before)
            before = jaccard
        losses.append(loss)
    return losses


def test_lovasz_equals_its_definition(rng):
    logits, labels = _sample(rng, classes=5)
    labels[labels == 4] = 1
    expected = _lovasz_definition(logits, labels)
    total, norm = jax.jit(lovasz_softmax)(logits, labels)
    np.testing.assert_allclose((total, norm), (sum(expected), 4), rtol=1e-5)
    weights = (1.0, 0.5, 2.0, 0.3, 7.0)
    total, norm = lovasz_softmax(logits, labels, weights)
    np.testing.assert_allclose(total, np.dot(weights[:4], expected), rtol=1e-5)
    np.testing.assert_allclose(norm, sum(weights[:4]), rtol=1e-6)


def test_lovasz_gradient_equals_torch(rng):
    torch = pytest.importorskip('torch', reason="needs the extra 'parity'")
    logits, labels = _sample(rng)
    z = torch.tensor(logits, requires_grad=True)
    p = torch.softmax(z, -1)[torch.tensor(labels != 255)]
    truth = torch.tensor(labels[labels != 255]).long()
    losses = []
    for c in range(4):
        own = (truth == c).float()
        errors, order = (own - p[:, c]).abs().sort(descending=True)
        own = own[order]
        jaccard = 1 - (own.sum() - own.cumsum(0)) / (own.sum() + (1 - own).cumsum(0))
        losses.append(errors @ torch.diff(jaccard, prepend=torch.zeros(1)))
    torch.stack(losses).sum().backward()
    gradient = jax.jit(jax.grad(lambda z: lovasz_softmax(z, labels)[0]))(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, z.grad, atol=2e-6)


def test_near_boundary_is_what_a_square_shows(rng):
    labels = np.zeros((2, 9, 11), np.uint8)
    labels[0, 4:, 6:] = 1
    labels[1, :, 5] = 255  # ignored pixels make no boundary
    labels[1, 0, 0] = 3
    for radius in (1, 2):
        expected = np.zeros(labels.shape, bool)
        for b, i, j in np.ndindex(labels.shape):
            rows = slice(max(i - radius, 0), i + radius + 1)
            columns = slice(max(j - radius, 0), j + radius + 1)
            seen = set(labels[b, rows, columns].ravel().tolist()) - {255}
            expected[b, i, j] = labels[b, i, j] != 255 and len(seen) > 1
        np.testing.assert_array_equal(near_boundary(labels, radius), expected)
        assert expected[0].any() and not expected.all()


def test_boundary_pixels_count_more(rng):
    logits, labels = _sample(rng)
    near = np.asarray(near_boundary(labels, 1))
    parts = [cross_entropy(logits, np.where(m, labels, 255), (1, 2, 3, 4)) for m in (near, ~near)]
    expected = [5 * a + b for a, b in zip(*parts)]
    found = boundary_cross_entropy(logits, labels, (1, 2, 3, 4), radius=1, weight=5.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert near.any() and not near.all()


LOSSES = (
    'cross_entropy', 'ohem', 'focal', 'dice', 'lovasz_softmax', 'boundary_cross_entropy',
    'cross_entropy+0.5*dice',
)  # fmt: skip


@pytest.mark.parametrize('name', LOSSES)
def test_losses_by_name_ignore_what_has_no_label(rng, name):
    """Ignored pixels change neither value nor gradient; a batch without labels has none."""
    train = config_lib.default().train
    train.loss = name
    train.ohem.min_kept = 20
    loss = objective.build(train, ()).loss

    @jax.jit
    def mean(z, labels):
        return jax.value_and_grad(lambda z: objective.mean(*loss(z, labels)))(z)

    logits, labels = _sample(rng)
    other = np.where((labels == 255)[..., None], rng.normal(size=logits.shape) * 9, logits)
    (a, da), (b, db) = mean(logits, labels), mean(np.float32(other), labels)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(da, db, atol=1e-7)
    assert a > 0 and (da != 0).any() and (da[labels == 255] == 0).all()
    nothing, gradient = mean(logits, np.full_like(labels, 255))
    assert nothing == 0 and (gradient == 0).all()


def test_a_sum_of_losses_is_the_sum_of_their_means(rng):
    train = config_lib.default().train
    logits, labels = _sample(rng)
    train.loss = '2*dice + 0.5*cross_entropy'
    found = objective.mean(*objective.build(train, ()).loss(logits, labels))
    means = [objective.mean(*each(logits, labels)) for each in (dice, cross_entropy)]
    np.testing.assert_allclose(found, 2 * means[0] + 0.5 * means[1], rtol=1e-6)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('tversky', "loss='tversky' is not one of boundary_cross_entropy, cross_entropy, dice"),
        ('dice+', "loss='dice.+': write losses"),
        ('0*dice', 'factors above 0'),
        ('1e*dice', 'factors above 0'),
    ],
)
def test_losses_that_cannot_be_read(name, message):
    train = config_lib.default().train
    train.loss = name
    with pytest.raises(InputError, match=message):
        objective.build(train, ())


@pytest.mark.parametrize('weight', [None, (1.0, 0.5, 2.0, 0.3)])
def test_average_over_all_pixels_equals_mmseg(rng, weight):
    """torch's losses of pixels, of which mmseg takes the mean: 0 where they are ignored."""
    torch = pytest.importorskip('torch', reason="needs the extra 'parity'")
    logits, labels = _sample(rng)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).movedim(-1, 1),
        torch.tensor(labels).long(),
        weight=None if weight is None else torch.tensor(weight),
        ignore_index=255,
        reduction='none',
    ).mean()
    train = config_lib.default().train
    train.loss_average = 'all'
    built = objective.build(train, weight or ())
    for loss in (built.loss, built.aux_loss):
        np.testing.assert_allclose(objective.mean(*loss(logits, labels)), expected, rtol=1e-5)


@pytest.mark.parametrize('name', ['dice', 'lovasz_softmax', 'boundary_cross_entropy'])
def test_devices_that_share_a_batch_compute_its_loss(rng, name):
    """Two share the rows of each image, four the images."""
    train = config_lib.default().train
    train.loss = name
    loss = objective.build(train, ()).loss
    logits, labels = _sample(rng, (4, 8, 6))
    mean = jax.jit(jax.value_and_grad(lambda z, labels: objective.mean(*loss(z, labels))))
    expected, gradient = mean(logits, labels)
    mesh = mesh_lib.make_mesh(space=2)
    with jax.set_mesh(mesh):
        found, found_gradient = mean(*jax.device_put((logits, labels), mesh_lib.by_batch(mesh)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found_gradient, gradient, atol=1e-7)
