"""Scales that are programs of their own give what one program of all of them gives."""

import jax
import numpy as np
import pytest

from ggcf_jax import models
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.evaluation import by_scale, evaluator, inference, metrics
from ggcf_jax.evaluation.inference import Plan
from ggcf_jax.models.layers import extent as extent_lib
from ggcf_jax.prediction import batches
from tests.evaluation.test_inference import CLASSES, Pixels


@pytest.fixture(scope='module')
def batch():
    rng = np.random.default_rng(3)
    return {
        'image': rng.integers(0, 256, (8, 22, 28, 3), dtype=np.uint8),
        'label': rng.integers(0, CLASSES, (8, 22, 28)).astype(np.uint8),
        'size': np.int32([(22 - 2 * (i % 4), 20 + 2 * (i % 5)) for i in range(8)]),
    }


# Of even sizes these scales have exact weights: no program rounds a pixel in another way.
PLANS = [
    Plan(scales=(1.0, 2.0, 0.5), flip=True),
    Plan(window=(9, 10), scales=(0.5, 2.0), average='logits'),
]


def _expected(network, plan, batch):
    scores = jax.jit(
        lambda images, sizes: inference.scores(
            models.merge(*network), images, plan, extent_lib.of_sizes(sizes)
        )
    )
    return np.asarray(scores(batch['image'], batch['size']))


@pytest.mark.parametrize('plan', PLANS, ids=str)
def test_evaluation_and_prediction(batch, plan):
    network = models.split(Pixels())
    graphdef, params, stats = network
    mesh = mesh_lib.make_mesh()
    expected = _expected(network, plan, batch)
    labels = expected.argmax(-1)
    inside = np.arange(22)[:, None] < batch['size'][:, :1, None]
    inside = inside & (np.arange(28) < batch['size'][:, 1:, None])
    masked = dict(batch, label=np.where(inside, batch['label'], 255).astype(np.uint8))
    with jax.set_mesh(mesh):
        step = evaluator.make_eval_step(graphdef, CLASSES, mesh, plan)
        assert isinstance(step, by_scale.ByScale)
        arrays = mesh_lib.global_batch(mesh, masked)
        matrix = jax.device_put(np.zeros((CLASSES,) * 2, np.int32), mesh_lib.replicated(mesh))
        # One program for each scale, and the one of what follows.
        programs = step.lower(params, stats, matrix, arrays).compile()
        assert len(programs) == len(plan.scales) + 1
        counts, _, predictions = step(params, stats, matrix, arrays)
        assert predictions.sharding.is_equivalent_to(mesh_lib.by_batch(mesh), 3)
        run = batches.make_run(
            graphdef,
            params,
            stats,
            num_classes=CLASSES,
            plan=plan,
            mesh=mesh,
            probabilities=np.dtype('float32'),
        )
        run.compile(batch['image'], batch['size'])
        found = run(batch['image'], batch['size'])
    by_matrix = metrics.confusion_matrices(masked['label'], labels.astype(np.uint8), CLASSES, 255)
    assert np.abs(np.asarray(counts) - np.asarray(by_matrix).sum(0)).sum() <= 4  # ties
    assert np.asarray(counts).sum() == inside.sum()
    assert (np.asarray(predictions) == labels)[inside].mean() > 0.999
    assert (found.labels == labels)[inside].mean() > 0.999
    probabilities = np.asarray(inference.probabilities(expected, plan))
    np.testing.assert_allclose(found.probabilities[inside], probabilities[inside], atol=1e-5)


def test_one_scale_is_one_program():
    graphdef, _, _ = models.split(Pixels())
    step = evaluator.make_eval_step(graphdef, CLASSES, mesh_lib.make_mesh(), Plan(flip=True))
    assert not isinstance(step, by_scale.ByScale)
