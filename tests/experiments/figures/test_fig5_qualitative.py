import csv
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.common import confusable, runs
from experiments.figures import fig5_qualitative
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.evaluation.results import Sample

_FAMILIES = ('sky,road', 'building,pavement', 'pole,tree,sign')


def _options(workdirs, out, names=('none', 'grid/seed_0'), **more):
    return SimpleNamespace(
        **{
            'workdir': [str(workdirs / name) for name in names],
            'checkpoint': 'latest',
            'split': 'train',
            'family': list(_FAMILIES),
            'pruning': 'grid:drop=0.5',
            'count': 1,
            'out': out,
            **more,
        }
    )


def test_counts_are_those_of_the_predictions(workdirs):
    ((_, loaded),) = runs.load_each(runs.select([str(workdirs / 'full')]), 'latest')
    groups = confusable.groups_of('camvid', loaded.dataset.classes, _FAMILIES)
    found = fig5_qualitative.count(loaded, inference.SINGLE, 'train', groups)
    shown = fig5_qualitative.samples(loaded, inference.SINGLE, 'train', [1, 4])
    assert set(shown) == {1, 4}
    for index, sample in shown.items():
        example = loaded.dataset.decode(loaded.dataset.source('train')[index])
        assert sample.name == example['name']
        np.testing.assert_array_equal(sample.image, example['image'])
        np.testing.assert_array_equal(sample.label, example['label'])
        assert found['labelled'][index] == (sample.label != IGNORE).sum()
        total = 0
        for g, group in enumerate(groups):
            taken = [0, 0, 0]
            for truth, guess in zip(sample.label.ravel(), sample.prediction.ravel()):
                if truth in group.members:
                    taken[0 if guess == truth else 1 if guess in group.members else 2] += 1
            assert found['counts'][index, g].tolist() == taken
            total += taken[1]
        assert fig5_qualitative.confused(sample, groups).sum() == total
        assert total == found['counts'][index, :, 1].sum()


def test_largest_region():
    mask = np.zeros((9, 12), bool)
    mask[1:3, 1:3] = True
    mask[4:8, 5:11] = True
    assert fig5_qualitative.largest_region(mask) == (4, 5, 8, 11)
    assert fig5_qualitative.largest_region(np.zeros((3, 3), bool)) is None


def test_confused_pixels_are_of_one_group():
    label = np.array([[0, 0, 1, 2, IGNORE]], np.uint8)
    prediction = np.array([[0, 1, 2, 0, 1]], np.uint8)
    sample = Sample('x', np.zeros((1, 5, 3), np.uint8), label, prediction)
    groups = (confusable.ConfusableGroup('a/b', (0, 1)), confusable.ConfusableGroup('c/d', (2, 3)))
    assert fig5_qualitative.confused(sample, groups).tolist() == [
        [False, True, False, False, False]
    ]


def _random_predictions(loaded, plan, batches):
    """In place of `predict_batches`: the same pixels however often they are asked for."""
    for batch in batches.load():
        heads = len(loaded.model.network.heads)
        rng = np.random.default_rng([heads, *map(abs, batch['index'].tolist())])
        yield batch, rng.integers(0, 11, batch['label'].shape, dtype=np.uint8)


@pytest.mark.slow
def test_everything_is_written_and_counted_once(workdirs, tmp_path, monkeypatch):
    monkeypatch.setattr(fig5_qualitative, 'predict_batches', _random_predictions)
    fig5_qualitative.main(_options(workdirs, tmp_path))
    rows = list(csv.DictReader((tmp_path / 'qualitative.csv').open()))
    names = ('Baseline', 'GRID_2', 'GRID_2 + ContextPruning')
    assert len(rows) == 6 * len(names) * len(_FAMILIES)
    assert {row['column'] for row in rows} == set(names)
    by_image = {}
    for row in rows:
        image = by_image.setdefault(row['image'], dict.fromkeys(names, 0))
        image[row['column']] += int(row['confused'])
    gains = [image['Baseline'] - image['GRID_2'] for image in by_image.values()]
    for name, wanted in (('less', max(gains) > 0), ('more', min(gains) < 0)):
        assert (tmp_path / f'qualitative_{name}.png').is_file() == wanted
    text = (tmp_path / 'qualitative.md').read_text()
    assert f'in {sum(gain > 0 for gain in gains)} images' in text
    monkeypatch.setattr(fig5_qualitative, 'count', None)  # what is kept is not counted again
    fig5_qualitative.main(_options(workdirs, tmp_path))
    assert (tmp_path / 'qualitative.md').read_text() == text


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ({'names': ('full',)}, 'two runs or more'),
        ({'count': 0}, 'at least 1'),
        ({'pruning': 'local'}, '--pruning=local'),
        ({'split': 'other'}, 'no split'),
    ],
)
def test_mistakes_are_told_before_anything_is_done(workdirs, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        fig5_qualitative.main(_options(workdirs, tmp_path, **more))
    assert not any(tmp_path.iterdir())
