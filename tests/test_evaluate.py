"""Evaluations of a checkpoint against one image at a time, and what they leave in the workdir."""

import dataclasses
import json

import cv2
import jax
import numpy as np
import pytest

from ggcf_jax import data, evaluate, models
from ggcf_jax.data import pipeline
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import evaluator, inference, metrics
from ggcf_jax.evaluation.boundary import BoundaryCounts
from ggcf_jax.evaluation.results import Ranked, Worst
from ggcf_jax.workdir import checkpoints
from tests.helpers import TINY_MODEL, load_config, make_tiny_config, save_untrained, write_camvid

PLAN = {
    'eval.window': (24, 32),
    'eval.scales': (1.0, 1.25),
    'eval.flip': True,
    'eval.pruning': 'local:keep=4,grid:drop=0.5',
    'eval.worst': 2,
    'eval.panels': 1,
}
STEM = (
    'validation_00000000_windows-24x32-every-16x22-scales-1-1.25-flip-mean-probabilities-'
    'pruning-local-keep-4-grid-drop-0.5'
)
SIZES = [(40, 56), (40, 56), (33, 61), (24, 48), (48, 24), (40, 56), (8, 9), (1, 1), (41, 57)]


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """Configuration and workdir of a run with a checkpoint."""
    root = tmp_path_factory.mktemp('evaluate')
    config = make_tiny_config(write_camvid(root / 'camvid', np.random.default_rng(0)), root)
    config.update_from_flattened_dict(PLAN)
    save_untrained(config, 11, root / 'run')
    return config, root / 'run'


def _one_by_one(config, workdir, dataset, plan):
    """The confusion matrix of each validation image, by name; images go through alone."""
    graphdef, params, stats = models.abstract(config, dataset.num_classes)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restored = checkpoints.restore(workdir, params, stats, device, 'latest')
    run = jax.jit(lambda x: inference.scores(models.merge(graphdef, *_arrays(restored)), x, plan))
    matrices = {}
    source = dataset.source('validation')
    for i in range(len(source)):
        example = dataset.decode(source[i])
        guess = np.asarray(run(example['image'][None]))[0].argmax(-1)
        matrix = np.zeros((dataset.num_classes,) * 2, np.int64)
        counted = example['label'] != 255
        np.add.at(matrix, (example['label'][counted], guess[counted]), 1)
        matrices[example['name']] = matrix
    return matrices


def _arrays(restored):
    return restored.params, restored.stats


@pytest.fixture(scope='module')
def evaluated(setting, tmp_path_factory):
    config, workdir = setting
    output = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, 'print', lambda self, *objects, **style: output.extend(objects))
        evaluation = evaluate.evaluate_workdir(config, workdir, 'validation', 'latest')
    return evaluation, output


@pytest.mark.slow
def test_every_image_counts_once_by_the_plan(setting, evaluated):
    config, workdir = setting
    dataset = data.build(config.data)
    matrices = _one_by_one(config, workdir, dataset, inference.build(config))
    evaluation, _ = evaluated
    assert evaluation.matrix.sum() == 3 * 38 * 56
    assert np.abs(evaluation.matrix - sum(matrices.values())).sum() <= 4  # ties of float rounding
    mious = {name: metrics.mean_iou(matrix) for name, matrix in matrices.items()}
    assert len(set(mious.values())) == 3
    assert [image.name for image in evaluation.worst] == sorted(mious, key=mious.get)[:2]
    for image in evaluation.worst:
        assert image.miou == pytest.approx(mious[image.name], abs=1e-3)
        assert image.sample.name == image.name and image.sample.image.shape == (40, 56, 3)


@pytest.mark.slow
def test_files(setting, evaluated):
    _, workdir = setting
    evaluation, output = evaluated
    saved = json.loads((workdir / 'evaluations' / f'{STEM}.json').read_text())
    assert saved['inference'] == (
        'windows 24x32 every 16x22, scales 1 1.25, flip, mean probabilities, '
        'pruning local:keep=4,grid:drop=0.5'
    )
    assert saved['matrix'] == evaluation.matrix.tolist() and saved['miou'] == evaluation.miou
    assert saved['category_iou'] == {} and saved['category_miou'] is None  # CamVid has none
    chart = cv2.imread(str(workdir / 'evaluations' / f'{STEM}_confusion.png'))
    assert min(chart.shape[:2]) > 500 and (chart[0, 0] == 255).all()
    assert [image['name'] for image in saved['worst']] == [w.name for w in evaluation.worst]
    for image in saved['worst']:
        assert cv2.imread(str(workdir / image['panel'])).shape[1] > 4 * 56
    # Pictures of the same step by training's own plan stay what they are.
    assert len(list((workdir / 'panels' / STEM).glob('*.png'))) == 1
    assert not (workdir / 'panels' / '00000000').exists()
    page = (workdir / 'report.html').read_text()
    assert 'Worst images' in page and saved['worst'][0]['name'] in page
    lines = ' '.join(str(each) for each in output if isinstance(each, str))
    assert f'pixel accuracy {evaluation.pixel_accuracy:.4f}' in lines


@pytest.mark.slow
def test_withheld_labels_point_to_predictions(setting):
    config, _ = setting
    dataset = data.build(config.data)
    withheld = dataclasses.replace(dataset, unlabeled=('test',))
    with pytest.raises(InputError, match='--mode=predict --input=test --output=DIR'):
        withheld.check_labeled('test', 'evaluated')


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
    """Images of many sizes as a data set of 3 classes, and a checkpoint."""
    root = tmp_path_factory.mktemp('mixed')
    rng = np.random.default_rng(3)
    folder = root / 'data'
    for split in ('train', 'validation'):
        for kind in ('images', 'labels'):
            (folder / split / kind).mkdir(parents=True)
        for i, size in enumerate(SIZES):
            image, label = rng.integers(0, 255, (*size, 3)), rng.integers(0, 3, size)
            label[rng.random(size) < 0.1] = 255
            cv2.imwrite(str(folder / split / 'images' / f'{i}.png'), image.astype(np.uint8))
            cv2.imwrite(str(folder / split / 'labels' / f'{i}.png'), label.astype(np.uint8))
    (folder / 'classes.csv').write_text('name\na\nb\nc\n')
    config = load_config('folder')
    config.data.update(manual_dir=str(folder), data_dir=str(root / 'prepared'), threads=1)
    config.update_from_flattened_dict(
        {**TINY_MODEL, 'eval.size_multiple': 16, 'eval.max_sizes': 3, 'train.dtype': 'float32'}
    )
    save_untrained(config, 3, root / 'run')
    return config, root / 'run'


@pytest.mark.slow
def test_mixed_sizes_on_one_device_equal_eight(mixed):
    config, workdir = mixed
    dataset = data.build(config.data)
    graphdef, params, stats = models.abstract(config, 3)
    found = []
    for devices in (1, 8):
        mesh = mesh_lib.make_mesh(jax.devices()[:devices])
        restored = checkpoints.restore(workdir, params, stats, mesh_lib.replicated(mesh), 'latest')
        batches = data.evaluation_batches(config, dataset, 'validation')
        assert len(set(batches.sizes)) == 3
        step = evaluator.make_eval_step(graphdef, 3, mesh, inference.SINGLE)
        evaluate_validation = evaluator.Evaluator(
            step,
            batches,
            mesh,
            loader=pipeline.LoaderOptions(1),
            num_samples=9,
            num_worst=9,
            boundary=0.05,
        )
        with jax.set_mesh(mesh), Progress() as progress:
            evaluation = evaluate_validation(restored.params, restored.stats, progress)
        found.append(evaluation)
        assert step._cache_size() == 3  # compilations
        near = BoundaryCounts(3, 0.05)
        for sample in evaluation.samples:
            near.add(sample.label, sample.prediction)
        assert evaluation.boundary.iou() == near.iou()
        assert evaluation.scores['boundary_iou'] == near.mean()
    one, eight = found
    labelled = sum((sample.label != 255).sum() for sample in one.samples)
    assert one.matrix.sum() == eight.matrix.sum() == labelled
    assert np.abs(one.matrix - eight.matrix).sum() <= 6  # ties of float rounding
    # Whatever is beside an image and however far it is padded, it counts as if it were alone.
    alone = sum(_one_by_one(config, workdir, dataset, inference.SINGLE).values())
    assert np.abs(one.matrix - alone).sum() <= 6
    assert [sample.image.shape[:2] for sample in one.samples] == SIZES
    assert {image.name for image in one.worst} <= {str(i) for i in range(9)}
    mious = [image.miou for image in eight.worst]
    assert mious == sorted(mious) and len(mious) >= 8  # the pixel may be unlabelled


def test_worst_keeps_the_lowest(rng):
    mious = rng.integers(0, 12, 200) / 12
    mious[::17] = np.nan
    worst = Worst(10)
    for index, miou in enumerate(mious.tolist()):
        worst.add(index, Ranked(str(index), miou, None))
        assert len(worst.images()) <= 10
    expected = sorted((m, i) for i, m in enumerate(mious.tolist()) if m == m)[:10]
    assert [(image.miou, int(image.name)) for image in worst.images()] == expected
    nothing = Worst(0)
    nothing.add(0, Ranked('0', 0.0, None))
    assert nothing.images() == ()
