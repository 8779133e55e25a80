import csv
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import queries, runs
from experiments.figures import fig1_similarity
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.evaluation import inference


def test_cosine_against_a_loop(rng):
    features = rng.normal(size=(4, 5, 6)).astype(np.float32)
    features[2, 2] = 0
    at = np.array([(1, 3), (0, 0)])
    found = np.asarray(fig1_similarity.cosine(jnp.asarray(features), at))
    for m, (y, x) in enumerate(at):
        for i in range(4):
            for j in range(5):
                a, b = features[i, j], features[y, x]
                norms = np.linalg.norm(a) * np.linalg.norm(b)
                expected = a @ b / norms if norms else 0
                assert found[m, i, j] == pytest.approx(expected, abs=1e-6)


def test_numbers_against_a_loop(rng):
    values = rng.integers(0, 6, (5, 7)) / 6  # with ties
    label = rng.integers(0, 4, (5, 7)).astype(np.uint8)
    label[0] = IGNORE
    label[3, 3] = 1
    found = fig1_similarity.measure(values, label, (3, 3), (1, 2))
    groups = {'same': [], 'family': [], 'other': []}
    for i, j in np.ndindex(5, 7):
        if label[i, j] == IGNORE or (i, j) == (3, 3):
            continue
        kind = {1: 'same', 2: 'family'}.get(int(label[i, j]), 'other')
        groups[kind].append(values[i, j])
    for name, group in groups.items():
        assert getattr(found, name) == pytest.approx(np.mean(group))
    for name in ('family', 'other'):
        wins = [(a > b) + 0.5 * (a == b) for a in groups['same'] for b in groups[name]]
        assert getattr(found, f'tells_{name}') == pytest.approx(np.mean(wins))
    alone = fig1_similarity.measure(values, np.ones_like(label), (3, 3), ())
    assert np.isnan(alone.family) and np.isnan(alone.tells_other)


def test_features_and_prediction_are_the_models(workdirs):
    ((_, loaded),) = runs.load_each(runs.select([str(workdirs / 'full')]), 'latest')
    found = queries.load_example(loaded.dataset, 'validation', '0')
    image = found['image'][:, :50]
    maps, prediction = fig1_similarity.make_similarities(loaded)(image, [(9, 17), (30, 40)])

    @jax.jit
    def twin(images):
        model = loaded.model.network
        *_, backbone = model.backbone(model.normalization(images), train=False, key=None)
        scores = inference.scores(model, images, inference.SINGLE)
        return backbone, model.context(backbone, train=False), scores[0].argmax(-1)

    backbone, fused, expected = twin(image[None])
    np.testing.assert_array_equal(prediction, expected)
    for got, features in zip(maps, (backbone, fused)):
        features = np.asarray(features[0])
        for similar, at in zip(got, ((1, 2), (4, 5))):
            norms = np.linalg.norm(features, axis=-1) * np.linalg.norm(features[at])
            np.testing.assert_allclose(similar, features @ features[at] / norms, atol=1e-5)


def test_everything_is_written(workdirs, tmp_path):
    options = SimpleNamespace(
        workdir=[str(workdirs / 'none')], checkpoint='latest',
        split='validation', image='val_0', query=[(30, 30)], family=['sky,road'], out=tmp_path,
    )  # fmt: skip
    fig1_similarity.main(options)
    assert (tmp_path / 'similarity_val_0_30_30.png').stat().st_size > 10_000
    rows = list(csv.DictReader((tmp_path / 'similarity.csv').open()))
    assert [(row['model'], row['features']) for row in rows] == [
        ('Baseline', features) for features in fig1_similarity.FEATURES
    ]
    assert {row['label'] for row in rows} == {'road'}
    assert (
        '| Baseline | val_0 (30, 30) road | backbone |' in (tmp_path / 'similarity.md').read_text()
    )
