import sys

import cv2
import pytest

from experiments import pruning_curve, trained
from experiments.pruning_curve import Point
from ggcf_jax import graphs, head_pruning


def test_one_rule_a_kind():
    heads = graphs.parse('full,local:2,3,learned')
    assert pruning_curve.rules(heads, 0, 'top') == ()
    assert pruning_curve.rules(heads, 30, 'random') == head_pruning.parse(
        'full:drop=0.3:random,learned:drop=0.3:random,local:drop=0.3:random'
    )


def _points(model, seed, priority, values):
    return [
        Point(model, f'{model}/{seed}', 9, 'validation', priority, percent, miou)
        for percent, miou in values.items()
    ]


def test_curves_share_the_unpruned_point_and_the_best_rate_is_by_mean():
    points = [
        *_points('A', 0, 'top', {0: 0.5, 10: 0.52, 20: 0.51}),
        *_points('A', 0, 'random', {10: 0.4}),
        *_points('A', 1, 'top', {0: 0.6, 10: 0.58, 20: 0.61}),
    ]
    found = pruning_curve.curves(points)
    assert found['A', 'top'] == {0: [0.5, 0.6], 10: [0.52, 0.58], 20: [0.51, 0.61]}
    assert found['A', 'random'] == {0: [0.5, 0.6], 10: [0.4]}
    row = '| A | 55.00 +- 7.07 | 20 % | 56.00 +- 7.07 | +1.00, +1.00 |'
    assert row in pruning_curve.best(points)


@pytest.mark.slow
def test_a_curve_of_a_trained_model_goes_on_where_it_stopped(tiny_run, tmp_path, monkeypatch):
    _, workdir, evaluation = tiny_run
    arguments = ['', f'--model=tiny={workdir}', f'--out={tmp_path}', '--percents', '0', '50']
    monkeypatch.setattr(sys, 'argv', arguments)
    assert pruning_curve.main() == 0
    points = pruning_curve.read(tmp_path / 'points.csv')
    assert [(point.priority, point.percent) for point in points] == [
        ('top', 0), ('top', 50), ('random', 50),
    ]  # fmt: skip
    assert points[0].miou == pytest.approx(evaluation.miou)
    assert cv2.imread(str(tmp_path / 'curve.png')) is not None
    # Interrupted after the first point: only the others are computed again, to the same values.
    pruning_curve.write(tmp_path / 'points.csv', points[:1])
    monkeypatch.setattr(sys, 'argv', [*arguments[:-1], '50'])
    assert pruning_curve.main() == 0
    assert pruning_curve.read(tmp_path / 'points.csv') == points


def test_a_folder_without_runs_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['', f'--model=a={tmp_path}', f'--out={tmp_path}/out'])
    assert pruning_curve.main() == 2
    assert 'neither the workdir of a run' in capsys.readouterr().err


def test_trained_takes_a_checkpoint_as_the_run_left_it(tiny_run):
    _, workdir, _ = tiny_run
    model = trained.load(workdir, 'latest')
    assert model.step == 12
    assert model.model.num_classes == model.dataset.num_classes == 11
