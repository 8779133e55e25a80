"""The figures and pictures of the inspection, by hand and on an untrained network."""

import csv

import cv2
import numpy as np
import pytest

from experiments import inspect_attention
from ggcf_jax.errors import InputError


def test_figures_by_hand():
    label = np.array([[0, 0, 1], [1, 255, 0]], np.uint8)
    seen = np.array([[1, 1, 1], [0, 1, 1]], bool)
    weights = np.array([[0.1, 0.2, 0.3], [0, 0.2, 0.2]])
    found = inspect_attention.measure(weights, seen, label, (0, 1))
    # Without the position that has no class: 0.5 of 0.8, and 3 of the 4 neighbours.
    assert found.same_class == pytest.approx(0.5 / 0.8)
    assert found.chance == pytest.approx(3 / 4)
    assert found.on_itself == pytest.approx(0.2) and found.neighbours == 5
    entropy = -sum(p * np.log(p) for p in (0.1, 0.2, 0.3, 0.2, 0.2))
    assert found.effective == pytest.approx(np.exp(entropy))
    even = inspect_attention.measure(seen / 5, seen, label, (0, 1))
    assert even.same_class == pytest.approx(even.chance)
    assert even.effective == pytest.approx(5)


def _inspect(workdir, *options):
    arguments = [f'--workdir={workdir}', '--checkpoint=latest', *options]
    inspect_attention.main(inspect_attention.make_parser().parse_args(arguments))


@pytest.mark.slow
def test_an_image_of_a_run(untrained_run, tmp_path):
    options = ('--classes=2', '--image=val_1', '--pruning=grid:keep=3')
    _inspect(untrained_run, f'--out={tmp_path}', *options)
    pictures = sorted(path.name for path in tmp_path.glob('*.png'))
    assert len(pictures) == 2 and all(name.startswith('val_1_') for name in pictures)
    assert cv2.imread(str(tmp_path / pictures[0])).shape[1] == 1280
    with (tmp_path / 'val_1.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['head'] for row in rows] == ['1 local:1', '2 grid:2', '3 learned'] * 2
    for row in rows:
        assert 0 <= float(row['same_class']) <= 1 and 0 < float(row['chance']) <= 1
    assert rows[2]['neighbours'] == '35'  # 40 x 56 pixels are 5 x 7 positions
    assert rows[0]['neighbours'] in ('4', '6', '9')
    assert 1 <= float(rows[1]['effective']) <= 3.001  # what is kept of the grid


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('--image=9', 'has images 0 to 2'),
        ('--image=other', 'no image of split'),
        ('--query=3,99', 'outside of the image'),
        ('--query=0,0', 'has no class'),
        ('--pruning=grid', '--pruning=grid'),
    ],
)
def test_mistakes_are_refused(untrained_run, tmp_path, option, message):
    with pytest.raises(InputError, match=message):
        _inspect(untrained_run, f'--out={tmp_path}', option)
    assert not any(tmp_path.iterdir())


def test_a_network_without_heads(workdirs, tmp_path):
    with pytest.raises(InputError, match=r"has no heads: config\.model\.context='none'"):
        _inspect(workdirs / 'none', f'--out={tmp_path}')
