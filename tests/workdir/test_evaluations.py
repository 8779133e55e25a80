"""Evaluations of one checkpoint lie side by side; what training measured is never replaced."""

import dataclasses
import html
import json
import re

import numpy as np
import pytest

from ggcf_jax import config as config_lib
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.evaluation import inference
from ggcf_jax.evaluation.results import Evaluation, Ranked, Sample
from ggcf_jax.workdir import evaluations, report

_CLASSES = ('road', 'sky')


def _dataset(images=3, identity='x 1'):
    return Dataset(
        name='x',
        classes=_CLASSES,
        colors=((9, 9, 9), (200, 0, 0)),
        sources={'validation': [{}] * images, 'test': [{}]},
        decoder=None,
        identity=identity,
    )


def _save(workdir, by, right, *, dataset=None, plan=inference.SINGLE, split='validation', **fields):
    """Saves an evaluation with `right` of 100 pixels right; returns what is in the folder then."""
    dataset = _dataset() if dataset is None else dataset
    config = config_lib.default()
    config.update_from_flattened_dict(fields)
    matrix = np.array([[right, 100 - right], [0, 100]])
    result = Evaluation(split, _CLASSES, categories=(), matrix=matrix)
    made = evaluations.conditions(by, plan, config, dataset, split)
    evaluations.save(result, dataset, 7, workdir, made)
    folder = workdir / 'evaluations'
    return {path.name: evaluations.read(path) for path in sorted(folder.glob('*.json'))}


def test_other_conditions_are_other_results(tmp_path):
    own = _save(tmp_path, 'training', 50)['validation_00000007.json']
    kept = (tmp_path / 'evaluations' / 'validation_00000007.json').read_bytes()
    assert own['images'] == 3 and own['conditions']['by'] == 'training'
    others = (
        {},
        {'dataset': _dataset(identity='x 2')},
        {'dataset': _dataset(images=1)},
        {'eval.size_multiple': 8},
        {'eval.max_sizes': 1},
        {'train.dtype': 'float32'},
        {'plan': inference.Plan(flip=True)},
        {'eval.boundary': 0.02},
        {'eval.boundary': 0.01},
        {'split': 'test'},
        {'split': 'test', 'train.dtype': 'float32'},
    )
    for number, other in enumerate(others):
        found = _save(tmp_path, 'evaluate', 90, **other)
        assert len(found) == 2 + number
        # The same again replaces its own file.
        assert _save(tmp_path, 'evaluate', 91, **other).keys() == found.keys()
    assert (tmp_path / 'evaluations' / 'validation_00000007.json').read_bytes() == kept
    assert {each['images'] for each in found.values()} == {1, 3}
    # The headline stays what training measured, although everything else is better.
    page = html.unescape(re.sub('<[^>]+>', ' ', report.write(tmp_path).read_text()))
    page = ' '.join(page.split())
    assert f'best mIoU {own["miou"]:.4f} validation, step 7' in page
    assert page.count('later') == len(others) and 'in training' in page
    # Training that goes on from an earlier checkpoint measures this step anew.
    assert _save(tmp_path, 'training', 60)['validation_00000007.json']['miou'] > own['miou']


def test_the_headline_without_training(tmp_path):
    """Of one kind of evaluation, so that no two numbers of it compare apples with pears."""
    _save(tmp_path, 'evaluate', 90, dataset=_dataset(images=1))
    _save(tmp_path, 'evaluate', 50)
    headline = report._headline(
        [evaluations.read(path) for path in sorted((tmp_path / 'evaluations').glob('*.json'))]
    )
    assert len({json.dumps(each['conditions']) for each in headline}) == 1


def test_files_of_older_versions(tmp_path):
    (path,) = _save(tmp_path, 'training', 50)
    path = tmp_path / 'evaluations' / path
    content = json.loads(path.read_text())
    for name in ('conditions', 'images', 'metrics', 'worst', 'inference'):
        del content[name]
    for name, by in (('validation_00000007', 'training'), ('validation_00000007_x', 'evaluate')):
        other = path.with_name(f'{name}.json')
        other.write_text(json.dumps(content))
        assert evaluations.read(other)['conditions'] == {'by': by}
    # One of unknown conditions is not replaced.
    older = path.with_name('validation_00000007_whole-image.json')
    older.write_text(json.dumps(content))
    assert len(_save(tmp_path, 'evaluate', 50)) == 4
    assert json.loads(older.read_text()) == content


@pytest.mark.parametrize('name', ['../../x', '/x', 'a/b', 'x' * 300, 'é' * 200, 'a\0b', 'a\\b'])
def test_panels_stay_in_their_folder(tmp_path, name):
    picture = np.zeros((4, 4), np.uint8)
    sample = Sample(name, np.zeros((4, 4, 3), np.uint8), picture, picture)
    dataset = _dataset()
    made = evaluations.conditions(
        'evaluate', inference.SINGLE, config_lib.default(), dataset, 'validation'
    )
    result = Evaluation('validation', _CLASSES, (), np.eye(2, dtype=int), (sample,))
    result = dataclasses.replace(result, worst=(Ranked(name, 0.5, sample),))
    evaluations.save(result, dataset, 7, tmp_path / 'run', made)
    assert len(list((tmp_path / 'run' / 'panels').glob('*/00_*.png'))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ['run']
    report.write(tmp_path / 'run')
