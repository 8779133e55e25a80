import csv
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.common import confusable, runs
from experiments.tables import attention_mass
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.errors import InputError


def test_groups_against_a_loop(rng):
    masses = rng.random((5, 2, 7))  # the last is what has no label
    own = np.array([1, 3, 4, 1, 4])
    found = attention_mass.shares_by_category(masses, own, (1, 3, 4))
    for m, k in np.ndindex(5, 2):
        expected = [0, 0, 0, 0]
        for c in range(7):
            kind = 0 if c == own[m] else 1 if c in (1, 3, 4) else 3 if c == 6 else 2
            expected[kind] += masses[m, k, c] / masses[m, k].sum()
        np.testing.assert_allclose(found[m, k], expected)


def test_queries_are_of_their_classes_and_no_more_than_wanted(rng):
    label = rng.integers(0, 3, (6, 7)).astype(np.uint8)
    label[0, :2] = 5
    found = attention_mass.draw_queries(label, (5, 1, 9), 3, np.random.default_rng(0))
    assert label[tuple(found.T)].tolist() == [5, 5, 1, 1, 1]
    assert len({tuple(each) for each in found.tolist()}) == 5


def test_masses_are_those_of_the_models_attention(workdirs, rng):
    ((_, loaded),) = runs.load_each(runs.select([str(workdirs / 'grid' / 'seed_0')]), 'latest')
    image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    label = rng.integers(0, 11, (5, 7)).astype(np.uint8)
    label[2] = IGNORE
    queries = np.array([(0, 0), (2, 3), (4, 6)])
    found, chance = attention_mass.make_masses(loaded.model)(image, label, queries)
    weights = np.asarray(jax.jit(loaded.model.network.attention)(image[None], queries))[0]
    for m, (y, x) in enumerate(queries):
        for k, graph in enumerate(loaded.model.network.heads):
            seen = np.asarray(graph.adjacency(5, 7))[y * 7 + x].reshape(5, 7)
            for place, c in enumerate((*range(11), IGNORE)):
                mass = weights[m, k][label == c].sum()
                assert found[m, k, place] == pytest.approx(mass, abs=1e-5)
                assert chance[m, k, place] == seen[label == c].sum()


def test_sums_are_of_all_queries_and_full_graphs_see_every_class(workdirs):
    ((_, loaded),) = runs.load_each(runs.select([str(workdirs / 'full')]), 'latest')
    dataset = loaded.dataset
    groups = confusable.groups_of('camvid', dataset.classes, ['building,pavement'])
    found = attention_mass.sum_shares(loaded, 'train', groups, most_queries=100, images=5)
    count, chance = np.zeros(11, int), np.zeros((11, 4))
    for i in range(5):
        label = dataset.decode(dataset.source('train')[i])['label'][::8, ::8]
        for own, relative in ((1, 4), (4, 1)):
            for _ in range((label == own).sum()):
                same, family = (label == own).sum(), (label == relative).sum()
                unlabelled = (label == IGNORE).sum()
                other = label.size - same - family - unlabelled
                chance[own] += np.array([same, family, other, unlabelled]) / label.size
                count[own] += 1
    assert found['count'].tolist() == [count.tolist()] and count[4] > 0
    np.testing.assert_allclose(found['chance'][0, :, 0], chance, atol=1e-6)
    np.testing.assert_allclose(found['attention'][0, :, 0].sum(-1), count, atol=1e-6)


def _random_masses(model):
    def masses(image, label, queries):
        rng = np.random.default_rng(len(queries))
        return tuple(rng.random((2, len(queries), len(model.network.heads), 12)))

    return masses


@pytest.mark.slow
def test_everything_is_written_and_summed_once(workdirs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attention_mass, 'make_masses', _random_masses)
    options = SimpleNamespace(
        workdir=[str(workdirs / name) for name in ('none', 'full', 'grid')], checkpoint='latest',
        split='train', family=['building,pavement', 'sky,car'], queries=2, images=6, out=tmp_path,
    )  # fmt: skip
    attention_mass.main(options)
    assert 'Baseline has no heads' in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / 'attention_mass.csv').open()))
    heads = [(row['run'], row['head']) for row in rows if row['family'] == 'building/pavement']
    grid = ['1 grid:2', 'all']
    assert heads == [
        ('FULL', '1 full'), ('FULL', 'all'),
        *(('GRID_2, seed 0', head) for head in grid),
        *(('GRID_2, seed 1', head) for head in grid),
    ]  # fmt: skip
    for row in rows:
        for prefix in ('{}', 'chance_{}'):
            fields = [prefix.format(name) for name in attention_mass.CATEGORIES]
            fields = [{'family': 'family_share'}.get(field, field) for field in fields]
            assert sum(float(row[field]) for field in fields) == pytest.approx(1, abs=1e-5)
    text = (tmp_path / 'attention_mass.md').read_text()
    monkeypatch.setattr(attention_mass, 'sum_shares', None)
    attention_mass.main(options)
    assert (tmp_path / 'attention_mass.md').read_text() == text
    options.workdir = [str(workdirs / 'none')]
    with pytest.raises(InputError, match='no model with heads'):
        attention_mass.main(options)
