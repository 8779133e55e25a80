"""The figures and pictures of the inspection, by hand and on an untrained network."""

import csv

import cv2
import numpy as np
import pytest

from experiments import inspect_attention
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import config as workdir_config


def test_figures_by_hand():
    label = np.array([[0, 0, 1], [1, 255, 0]], np.uint8)
    seen = np.array([[1, 1, 1], [0, 1, 1]], bool)
    weights = np.array([[0.1, 0.2, 0.3], [0, 0.2, 0.2]])
    found = inspect_attention.measure(weights, seen, label, (0, 1))
    # Without the position that has no class: 0.5 of 0.8, and 3 of the 4 neighbours.
    assert found['same_class'] == pytest.approx(0.5 / 0.8)
    assert found['chance'] == pytest.approx(3 / 4)
    assert found['on_itself'] == pytest.approx(0.2) and found['neighbours'] == 5
    entropy = -sum(p * np.log(p) for p in (0.1, 0.2, 0.3, 0.2, 0.2))
    assert found['effective'] == pytest.approx(np.exp(entropy))
    even = inspect_attention.measure(seen / 5, seen, label, (0, 1))
    assert even['same_class'] == pytest.approx(even['chance'])
    assert even['effective'] == pytest.approx(5)


def test_an_image_of_a_run(untrained_run, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out'

    def inspect(*options):
        command = ['inspect', f'--workdir={untrained_run}', f'--out={out}', *options]
        monkeypatch.setattr('sys.argv', command)
        return inspect_attention.main()

    assert inspect('--classes=2', '--image=val_1', '--pruning=grid:keep=3') == 0
    pictures = sorted(path.name for path in out.glob('*.png'))
    assert len(pictures) == 2 and all(name.startswith('val_1_') for name in pictures)
    assert cv2.imread(str(out / pictures[0])).shape[1] == 1280
    with (out / 'val_1.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['head'] for row in rows] == ['1 local:1', '2 grid:2', '3 learned'] * 2
    for row in rows:
        assert 0 <= float(row['same_class']) <= 1 and 0 < float(row['chance']) <= 1
    assert rows[2]['neighbours'] == '35'  # 40 x 56 pixels are 5 x 7 positions
    assert rows[0]['neighbours'] in ('4', '6', '9')
    assert 1 <= float(rows[1]['effective']) <= 3.001  # what is kept of the grid
    assert inspect('--image=9') == 2
    assert 'has images 0 to 2' in capsys.readouterr().err
    assert inspect('--query=3,99') == inspect('--image=other') == 2
    assert inspect('--query=0,0') == 2  # no class there
    assert 'has no class' in capsys.readouterr().err


def test_a_network_without_heads(tiny_config, tmp_path):
    tiny_config.model.context = 'none'
    workdir_config.claim_workdir(tiny_config, tmp_path / 'run')
    with pytest.raises(InputError, match=r"has no heads: config\.model.context='none'"):
        inspect_attention.inspect(
            tmp_path / 'run', 'best', 'validation', '0', [], 1, (), tmp_path / 'out'
        )
