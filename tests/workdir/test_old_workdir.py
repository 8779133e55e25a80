"""A workdir that version 0.1.0 left after two of four steps: evaluated, predicted, resumed.

The numbers and label maps in the archive were recorded with the code of that version (revision
1219cb5). Tolerances allow for another machine's rounding only.
"""

import json
import pathlib
import shutil
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

import ggcf_jax
from ggcf_jax import evaluate, predict, train
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir.metrics_log import read_rows
from tests.helpers import write_camvid

ARCHIVE = pathlib.Path(__file__).parent.parent / 'assets' / 'workdir_0_1_0.zip'
PIXELS = 3 * 38 * 56  # labelled ones of the validation images


@pytest.fixture(scope='module')
def old(tmp_path_factory):
    """The unpacked archive and the configuration in it, pointed at the tiny CamVid."""
    root = tmp_path_factory.mktemp('old')
    zipfile.ZipFile(ARCHIVE).extractall(root)
    config = workdir_config.load(root / 'run')
    config.data.manual_dir = str(write_camvid(root / 'camvid', np.random.default_rng(0)))
    config.data.data_dir = str(root / 'prepared')
    return config, root, json.loads((root / 'expected.json').read_text())


def test_evaluates_to_the_recorded_numbers(old):
    config, root, expected = old
    assert checkpoints.steps(root / 'run') == {2: expected['miou']}
    evaluation = evaluate.evaluate_workdir(config, root / 'run', 'validation', 'best')
    assert evaluation.matrix.sum() == PIXELS
    assert np.abs(evaluation.matrix - expected['matrix']).sum() <= 0.002 * PIXELS
    assert evaluation.miou == pytest.approx(expected['miou'], abs=1e-3)
    assert evaluation.pixel_accuracy == pytest.approx(expected['pixel_accuracy'], abs=1e-3)


def test_predicts_the_recorded_labels(old, tmp_path):
    config, root, _ = old
    assert predict.predict(config, root / 'run', 'best', 'validation', str(tmp_path))
    recorded = sorted((root / 'labels').glob('*.png'))
    assert len(recorded) == 3
    for path in recorded:
        found, expected = (
            np.asarray(Image.open(folder / path.name))
            for folder in (tmp_path / 'labels', root / 'labels')
        )
        assert found.shape == expected.shape and (found == expected).mean() > 0.998


def test_the_python_api_predicts_the_recorded_labels(old):
    config, root, _ = old
    model = ggcf_jax.load(root / 'run')
    paths = sorted((pathlib.Path(config.data.manual_dir) / 'val').glob('*.png'))
    for path, found in zip(paths, model.predict(paths), strict=True):
        expected = cv2.imread(str(root / 'labels' / path.name), cv2.IMREAD_UNCHANGED)
        assert (found == expected).mean() > 0.998


@pytest.mark.slow
def test_resumes_to_the_recorded_metrics(old, tmp_path):
    config, root, expected = old
    workdir = shutil.copytree(root / 'run', tmp_path / 'run')
    train.train_and_evaluate(config, workdir)
    rows = [row for row in read_rows(workdir) if row['step'] > expected['step']]
    assert len(rows) == len(expected['resumed']) == 3
    for row, recorded in zip(rows, expected['resumed']):
        timings = {name for name in row if name.endswith('_sec')}
        assert row.keys() - timings == recorded.keys()
        for name, value in recorded.items():
            if value is not None and name.startswith('train/'):
                assert row[name] == pytest.approx(value, rel=1e-4), (row['step'], name)
    assert rows[-1]['val/miou'] == pytest.approx(expected['resumed'][-1]['val/miou'], abs=1e-3)
