import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import metrics


def _definition(labels, predictions, classes, ignore):
    matrix = np.zeros((classes, classes), np.int64)
    for truth, guess in zip(labels.ravel(), predictions.ravel()):
        if truth != ignore:
            matrix[truth, guess] += 1
    return matrix


@pytest.mark.parametrize('shape', [(50,), (3, 17), (2, 9, 11)])
@pytest.mark.parametrize('ignore', [255, 2])
def test_confusion_matrix_equals_definition(rng, shape, ignore):
    labels = rng.integers(0, 5, shape).astype(np.uint8)
    labels[rng.random(shape) < 0.2] = ignore
    predictions = rng.integers(0, 5, shape).astype(np.uint8)
    matrix = metrics.confusion_matrices(labels, predictions, 5, ignore).sum(0)
    np.testing.assert_array_equal(matrix, _definition(labels, predictions, 5, ignore))


def test_counts_are_exact_on_large_images():
    (matrix,) = metrics.confusion_matrices(
        jnp.ones((1, 1024, 2048), jnp.uint8), jnp.ones((1, 1024, 2048), jnp.uint8), 2, 255
    )
    assert matrix[1, 1] == 1024 * 2048 and matrix.sum() == 1024 * 2048


def test_sharded_over_devices_equals_one(rng):
    labels, predictions = (rng.integers(0, 5, (8, 6, 7)).astype(np.uint8) for _ in range(2))
    mesh = mesh_lib.make_mesh()
    assert mesh.size == 8
    sharded = jax.device_put((labels, predictions), mesh_lib.by_batch(mesh))
    compiled = jax.jit(lambda a, b: metrics.confusion_matrices(a, b, 5, 255).sum(0))
    np.testing.assert_array_equal(compiled(*sharded), _definition(labels, predictions, 5, 255))


def test_bad_shapes():
    with pytest.raises(ValueError, match='must have one shape'):
        metrics.confusion_matrices(np.zeros((2, 3)), np.zeros((2, 4)), 5, 255)


@pytest.mark.parametrize('exact', [16, 21, 63])
def test_large_images_are_counted_in_parts(rng, monkeypatch, exact):
    monkeypatch.setattr(metrics, '_EXACT', exact)
    labels, predictions = (rng.integers(0, 5, (2, 7, 9)).astype(np.uint8) for _ in range(2))
    labels[rng.random(labels.shape) < 0.2] = 255
    matrices = metrics.confusion_matrices(labels, predictions, 5, 255)
    for i in range(2):
        np.testing.assert_array_equal(matrices[i], _definition(labels[i], predictions[i], 5, 255))


def test_iou_by_hand():
    matrix = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    iou = metrics.class_iou(matrix)
    np.testing.assert_allclose(iou[:2], [6 / 9, 3 / 6])
    assert np.isnan(iou[2])
    assert metrics.mean_iou(matrix) == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert metrics.pixel_accuracy(matrix) == pytest.approx(9 / 12)
    assert metrics.mean_accuracy(matrix) == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert metrics.frequency_weighted_iou(matrix) == pytest.approx((8 * 6 / 9 + 4 * 3 / 6) / 12)


def test_class_only_predicted_counts_as_zero():
    assert metrics.mean_iou(np.array([[3, 1], [0, 0]])) == pytest.approx(0.375)


def test_nothing_counted():
    empty = np.zeros((3, 3), int)
    for name, metric in metrics.METRICS.items():
        assert np.isnan(metric(empty)), name


def test_every_image_has_its_own_matrix_and_mean_iou(rng):
    labels, predictions = (rng.integers(0, 5, (4, 6, 7)).astype(np.uint8) for _ in range(2))
    labels[1] = predictions[1]
    labels[2] = 255
    labels[3] = 4
    matrices = metrics.confusion_matrices(labels, predictions, 5, 255)
    for i in range(4):
        expected = _definition(labels[i], predictions[i], 5, 255)
        np.testing.assert_array_equal(matrices[i], expected)
    expected = [metrics.mean_iou(matrix) for matrix in np.asarray(matrices)]
    assert expected[1] == 1 and np.isnan(expected[2])
    np.testing.assert_allclose(metrics.mean_ious(matrices), expected, rtol=1e-6)


def test_the_host_counts_as_the_device(rng):
    labels, predictions = (rng.integers(0, 5, (6, 7)).astype(np.uint8) for _ in range(2))
    labels[0] = 255
    found = metrics.confusion_matrix(labels, predictions, 5, 255)
    np.testing.assert_array_equal(found, _definition(labels, predictions, 5, 255))
    assert found.dtype == np.int64


def pixel_accuracy(matrix):
    """Another metric of a name that is taken."""


def test_metrics_of_a_configuration(tiny_config):
    assert list(metrics.build(tiny_config)) == list(metrics.default()) == ['miou', 'pixel_accuracy']
    tiny_config.eval.metrics = 'mean_accuracy, pixel_accuracy'
    assert list(metrics.build(tiny_config)) == ['miou', 'mean_accuracy', 'pixel_accuracy']
    for text, message in {
        'accuracy': r"config\.eval\.metrics='accuracy' is not one of",
        'no_lab.metrics:dice': "there is no module 'no_lab'",
        f'pixel_accuracy,{__name__}:pixel_accuracy': "names two metrics 'pixel_accuracy'",
    }.items():
        tiny_config.eval.metrics = text
        with pytest.raises(InputError, match=message):
            metrics.build(tiny_config)


def test_classes_are_merged():
    matrix = np.arange(9).reshape(3, 3)
    names, united = metrics.merge_classes(matrix, ('b', 'a', 'b'))
    assert names == ('b', 'a')
    np.testing.assert_array_equal(united, [[0 + 2 + 6 + 8, 1 + 7], [3 + 5, 4]])


def test_precision_recall_and_f1_by_hand():
    # Class 1 is never predicted, class 2 is not in the ground truth, class 3 in neither.
    matrix = np.array([[6, 0, 2, 0], [4, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    nan = np.nan
    np.testing.assert_allclose(metrics.class_precision(matrix), [0.6, nan, 0, nan])
    np.testing.assert_allclose(metrics.class_recall(matrix), [0.75, 0, nan, nan])
    np.testing.assert_allclose(metrics.class_f1(matrix), [12 / 18, 0, 0, nan])
    assert metrics.mean_precision(matrix) == pytest.approx(0.3)
    assert metrics.mean_accuracy(matrix) == pytest.approx(0.375)
    assert metrics.mean_f1(matrix) == pytest.approx(12 / 18 / 3)
    assert all(np.isnan(metric(np.zeros((2, 2)))) for metric in metrics.METRICS.values())


def test_dice_of_two_masks(rng):
    truth, guess = rng.integers(0, 2, (2, 30, 30))
    matrix = metrics.confusion_matrix(truth, guess, 2, 255)
    dice = 2 * (truth & guess).sum() / (truth.sum() + guess.sum())
    assert metrics.class_f1(matrix)[1] == pytest.approx(dice)
