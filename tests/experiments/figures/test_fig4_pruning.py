import argparse

import cv2
import pytest

from experiments.common import runs, tables
from experiments.figures import fig4_pruning
from experiments.figures.fig4_pruning import Point
from ggcf_jax.attention import graphs
from ggcf_jax.errors import InputError
from ggcf_jax.models.contexts import pruning_rules


def test_one_rule_a_kind():
    heads = graphs.parse('full,local:2,3,learned')
    assert fig4_pruning.rules(heads, 0, 'top') == ()
    assert fig4_pruning.rules(heads, 30, 'random') == pruning_rules.parse(
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
    found = fig4_pruning.curves(points)
    assert found['A', 'top'] == {0: [0.5, 0.6], 10: [0.52, 0.58], 20: [0.51, 0.61]}
    assert found['A', 'random'] == {0: [0.5, 0.6], 10: [0.4]}
    row = '| A | 55.00 +- 7.07 | 20 % | 56.00 +- 7.07 | +1.00, +1.00 |'
    assert row in fig4_pruning.best(points)


def _options(tmp_path, folder, percents):
    return argparse.Namespace(
        out=tmp_path,
        model=[f'tiny={folder}'],
        split='validation',
        percents=percents,
        priorities=fig4_pruning.PRIORITIES,
    )


@pytest.mark.slow
def test_a_curve_of_a_trained_model_goes_on_where_it_stopped(tiny_run, tmp_path):
    _, workdir, evaluation = tiny_run
    fig4_pruning.main(_options(tmp_path, workdir, [0, 50]))
    points = fig4_pruning.read(tmp_path / 'points.csv')
    assert [(point.priority, point.percent) for point in points] == [
        ('top', 0), ('top', 50), ('random', 50),
    ]  # fmt: skip
    assert points[0].miou == pytest.approx(evaluation.miou, abs=1e-6)
    assert cv2.imread(str(tmp_path / 'curve.png')) is not None
    # Interrupted before the last point: only that is computed again, to the same value.
    tables.write_csv(tmp_path / 'points.csv', points[:2])
    fig4_pruning.main(_options(tmp_path, workdir, [50]))
    assert fig4_pruning.read(tmp_path / 'points.csv') == points


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(InputError, match='neither the workdir of a run'):
        fig4_pruning.main(_options(tmp_path / 'out', tmp_path, [0]))


@pytest.mark.slow
def test_a_checkpoint_is_taken_as_the_run_left_it(tiny_run):
    _, workdir, _ = tiny_run
    loaded = runs.load(workdir, 'latest')
    assert loaded.model.step == 12
    assert loaded.model.network.num_classes == loaded.dataset.num_classes == 11
