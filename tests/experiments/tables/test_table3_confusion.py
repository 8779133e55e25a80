import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.common import confusable, paper
from experiments.common.runs import select
from experiments.tables import table3_confusion
from ggcf_jax.errors import InputError

_CLASSES = ('road', 'wall', 'fence', 'building')


@pytest.fixture
def runs(workdirs, tmp_path):
    """Folders none/ and grid/ with configurations and evaluations, without anything else."""
    for name in ('none', 'grid/seed_0', 'grid/seed_1'):
        (tmp_path / name / 'evaluations').mkdir(parents=True)
        shutil.copy(workdirs / name / 'config.json', tmp_path / name)
    return tmp_path


def _write(workdir, step, matrix, **more):
    content = {
        'step': step, 'split': 'validation', 'inference': 'whole image', 'dataset': 'tiny',
        'classes': _CLASSES, 'colors': [[0, 0, 0]] * len(_CLASSES), 'miou': None, 'absent': [],
        'pixel_accuracy': None, 'iou': dict.fromkeys(_CLASSES), **more,
        'matrix': np.asarray(matrix).tolist(),
    }  # fmt: skip
    number = len(list((workdir / 'evaluations').iterdir()))
    (workdir / 'evaluations' / f'{number}.json').write_text(json.dumps(content))


def test_shares_against_a_loop(rng):
    matrix = rng.integers(0, 30, (4, 4))
    group = confusable.ConfusableGroup('wall/fence', (1, 2))
    (row,) = table3_confusion.measure({'step': 3, 'matrix': matrix.tolist()}, 'A', 'A', [group])
    pixels = matrix[1].sum() + matrix[2].sum()
    assert row.pixels == pixels
    assert row.confused == pytest.approx((matrix[1, 2] + matrix[2, 1]) / pixels)
    assert row.right == pytest.approx((matrix[1, 1] + matrix[2, 2]) / pixels)
    assert row.right + row.confused + row.outside == pytest.approx(1)
    inside = matrix[1:3, 1:3].sum()
    assert row.confused_inside == pytest.approx((matrix[1, 2] + matrix[2, 1]) / inside)
    iou = [matrix[i, i] / (matrix[i].sum() + matrix[:, i].sum() - matrix[i, i]) for i in (1, 2)]
    assert row.iou == pytest.approx(np.mean(iou))


def test_latest_evaluation_of_each_way(runs):
    workdir = runs / 'none'
    run = select([str(workdir)])[0]
    with pytest.raises(InputError, match='--mode=evaluate'):
        table3_confusion.evaluations(run, 'validation')
    zeros = np.zeros((4, 4), int)
    for step, split, way in (
        (20, 'validation', 'whole image'),
        (10, 'validation', 'whole image'),
        (10, 'validation', 'whole image, flip'),
        (30, 'train', 'whole image'),
    ):
        _write(workdir, step, zeros, split=split, inference=way)
    found = table3_confusion.evaluations(run, 'validation')
    assert [(each['step'], each['inference']) for each in found] == [
        (20, 'whole image'), (10, 'whole image, flip'),
    ]  # fmt: skip


def test_names_say_how_it_was_evaluated():
    assert table3_confusion.name_with_plan('FULL', 'whole image') == 'FULL'
    pruned = table3_confusion.name_with_plan(
        '{LOCAL, GRID}_{2,4,6}', 'whole image, pruning local:drop=0.3'
    )
    assert pruned == '{LOCAL, GRID}_{2,4,6} + ContextPruning (local:drop=0.3)'
    assert table3_confusion.published(pruned, 'bus/train') == pytest.approx((90.7 + 79.9) / 2)
    way = 'whole image, pruning full:drop=0.3:random'
    assert table3_confusion.name_with_plan('FULL', way) == f'FULL, {way}'
    assert table3_confusion.published('FULL', 'bus/train') == pytest.approx((89.6 + 75.3) / 2)
    assert table3_confusion.published('FULL', 'building/tree') is None
    assert table3_confusion.published('GRID_{2,4,6}', 'bus/train') is None
    assert set(paper.TABLE3) >= {'FULL', 'Baseline'}


def test_tables_and_picture(runs):
    rng = np.random.default_rng(1)
    matrices = [rng.integers(1, 40, (4, 4)) for _ in range(3)]
    for name, matrix in zip(('none', 'grid/seed_0', 'grid/seed_1'), matrices):
        _write(runs / name, 5, matrix)
    options = SimpleNamespace(
        workdir=[str(runs / 'none'), f'LG={runs}/grid'], split='validation',
        family=['wall,fence,building', 'road,wall'], out=runs / 'out',
    )  # fmt: skip
    table3_confusion.main(options)
    shares = []
    for matrix in matrices:
        block = matrix[1:, 1:]
        shares.append(100 * (block.sum() - np.trace(block)) / matrix[1:].sum())
    mean, deviation = np.mean(shares[1:]), np.std(shares[1:], ddof=1)
    text = (runs / 'out' / 'confusion.md').read_text()
    assert f'| Baseline | 1 | {shares[0]:.2f} |' in text
    assert f'| LG | 2 | {mean:.2f} +- {deviation:.2f} |' in text
    assert '| Baseline (paper, Cityscapes) | 68.3 | 75.3 |' in text
    rows = list(csv.DictReader((runs / 'out' / 'confusion.csv').open()))
    assert len(rows) == 6
    assert (runs / 'out' / 'confusion.png').stat().st_size > 5000


def test_runs_of_different_classes_are_refused(runs):
    _write(runs / 'none', 5, np.ones((4, 4), int))
    _write(runs / 'grid' / 'seed_0', 5, np.ones((4, 4), int), classes=_CLASSES[::-1])
    options = SimpleNamespace(
        workdir=[str(runs / 'none'), str(runs / 'grid' / 'seed_0')], split='validation',
        family=['wall,fence'], out=runs / 'out',
    )  # fmt: skip
    with pytest.raises(InputError, match="is of 'tiny'"):
        table3_confusion.main(options)
