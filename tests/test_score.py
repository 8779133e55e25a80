"""Label files against ground truth, without a model."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from ggcf_jax import score
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import metrics
from ggcf_jax.evaluation.boundary import BoundaryCounts
from tests.helpers import load_config

# The ground truth has ids of its own, the predictions train ids in another order.
_TRUTH = 'name,ids\nroad,7 8\nsky,20\ncar,33\n'
_GUESS = 'name,red,green,blue,ids\ncar,0,0,0,0\nroad,9,9,9,1\nsky,5,5,5,2\n'
_IDS = np.array([7, 20, 33], np.uint8)
_VALUES = np.array([1, 2, 0], np.uint8)


def _write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def case(tmp_path, rng):
    """Folders gt/ and out/ of three images, and the maps as train ids of the ground truth."""
    maps = {}
    for name in ('a', 'deep/b', 'c'):
        label, guess = (rng.integers(0, 3, (20, 30)).repeat(2, 0).repeat(2, 1) for _ in range(2))
        raw = _IDS[label]
        raw[(raw == 7) & (rng.random(raw.shape) < 0.5)] = 8
        label[:3], raw[:3] = IGNORE, 255
        maps[name] = label.astype(np.uint8), guess.astype(np.uint8)
        _write(tmp_path / 'gt' / f'{name}.png', raw)
        _write(tmp_path / 'out' / 'labels' / f'{name}.png', _VALUES[guess])
    (tmp_path / 'gt' / 'classes.csv').write_text(_TRUTH)
    (tmp_path / 'out' / 'classes.csv').write_text(_GUESS)
    return tmp_path, maps


def _run(root, *, labels='gt', guess='out', classes=None, split='validation', **fields):
    config = load_config('folder')
    config.update_from_flattened_dict({'data.threads': 2, **fields})
    flags = types.SimpleNamespace(
        input=str(root / guess),
        labels=str(root / labels) if labels else None,
        classes=classes,
        split=split,
        output=str(root / 'score.json'),
    )
    assert score.run(config, root, flags) == 0
    return json.loads((root / 'score.json').read_text())


@pytest.mark.parametrize('guess', ['out', 'out/labels'])
def test_scores_equal_the_maps(case, guess, capsys):
    root, maps = case
    (root / 'out' / 'predict.json').write_text('{}')
    found = _run(root, guess=guess, **{'eval.boundary': 0.05})
    matrix = sum(metrics.confusion_matrix(*pair, 3, IGNORE) for pair in maps.values())
    near = BoundaryCounts(3, 0.05)
    for pair in maps.values():
        near.add(*pair)
    assert found['matrix'] == matrix.tolist() and found['images'] == 3
    assert found['classes'] == ['road', 'sky', 'car']
    for name, metric in metrics.METRICS.items():
        assert found['metrics'][name] == metric(matrix)
    assert found['metrics']['boundary_iou'] == near.mean()
    for name, of in (('precision', metrics.class_precision), ('f1', metrics.class_f1)):
        assert list(found['per_class'][name].values()) == of(matrix).tolist()
    assert list(found['per_class']['boundary_iou'].values()) == near.iou()
    said = capsys.readouterr().out
    assert f'mIoU {metrics.mean_iou(matrix):.4f}' in said and 'recall' in said
    assert f'frequency weighted iou {metrics.frequency_weighted_iou(matrix):.4f}' in said


def test_values_without_a_class_file_are_those_of_the_labels(case):
    root, maps = case
    (root / 'out' / 'classes.csv').unlink()
    for name, (_, guess) in maps.items():
        _write(root / 'out' / 'labels' / f'{name}.png', _IDS[guess])
    _write(root / 'out' / 'labels' / 'more.png', _IDS[guess])
    matrix = sum(metrics.confusion_matrix(*pair, 3, IGNORE) for pair in maps.values())
    assert _run(root, guess='out/labels')['matrix'] == matrix.tolist()
    _write(root / 'out' / 'labels' / 'a.png', np.full((40, 60), 9, np.uint8))
    with pytest.raises(InputError, match=r'a\.png: label values .*9.* are outside the allowed'):
        _run(root, guess='out/labels')


def test_a_split_of_a_data_set(case):
    """With the names that --mode=predict gives to the images of the split."""
    root, maps = case
    for name, (label, _) in maps.items():
        _write(root / 'images' / f'{name}.png', np.zeros((*label.shape, 3), np.uint8))
    (root / 'out' / 'labels' / 'deep' / 'b.png').rename(root / 'out' / 'labels' / 'b_labelIds.png')
    fields = {'data.manual_dir': str(root), 'data.classes': 'gt/classes.csv'}
    fields |= {f'data.splits.{split}': 'images,gt' for split in ('train', 'validation')}
    found = _run(root, labels=None, guess='out/labels', **fields)
    matrix = sum(metrics.confusion_matrix(*pair, 3, IGNORE) for pair in maps.values())
    assert found['matrix'] == matrix.tolist() and found['labels'] == 'folder validation'


def test_what_cannot_be_scored(case):
    root, _ = case
    with pytest.raises(InputError, match=r'--input=.*nothing is not a folder'):
        _run(root, guess='nothing')
    with pytest.raises(InputError, match=r'--labels=.*nothing is not a folder'):
        _run(root, labels='nothing')
    with pytest.raises(InputError, match=r'--classes=x: there is no such file'):
        _run(root, classes='x')
    (root / 'empty').mkdir()
    with pytest.raises(InputError, match=r'no files with one of \.png'):
        _run(root, labels='empty', classes=str(root / 'gt' / 'classes.csv'))
    labels = root / 'out' / 'labels'
    _write(labels / 'c.png', np.zeros((3, 4), np.uint8))
    with pytest.raises(InputError, match=r'c\.png is 3 x 4, the label of c is 40 x 60'):
        _run(root, guess='out/labels')
    (labels / 'c.png').unlink()
    with pytest.raises(
        InputError, match=r'1 of 3 labels have no prediction in .*, such as c; a pr'
    ):
        _run(root, guess='out/labels')
    (root / 'out' / 'classes.csv').write_text(_GUESS.replace('sky', 'heaven'))
    with pytest.raises(InputError, match="2 are only in one of them, among them 'heaven', 'sky'"):
        _run(root, guess='out/labels')
    (root / 'out' / 'classes.csv').unlink()
    (root / 'gt' / 'classes.csv').unlink()
    with pytest.raises(InputError, match=r'there is no classes\.csv in'):
        _run(root)


def test_a_labelled_pixel_needs_a_class(case):
    root, _ = case
    (root / 'out' / 'classes.csv').unlink()
    for name in ('a', 'deep/b', 'c'):
        _write(root / 'out' / 'labels' / f'{name}.png', np.full((40, 60), 255, np.uint8))
    with pytest.raises(InputError, match='2220 labelled pixels are predicted as no class'):
        _run(root, guess='out/labels')
