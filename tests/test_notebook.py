"""docs/notebook.py runs cell by cell, with a tiny network and two steps of training."""

import re

import cv2
import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.helpers import ROOT, TINY_MODEL

_TINY = {
    **TINY_MODEL,
    'data.image_size': (64, 128),
    'data.num_images': (4, 3, 1),
    'data.crop_size': (64, 64),
    'data.threads': 1,
    'train.steps': 2,
    'train.warmup_steps': 0,
    'train.eval_every': 2,
    'train.batch_size': 8,
    'eval.batch_size': 8,
    'train.checkpoint_every': 2,
}


@pytest.mark.slow
def test_the_notebook_runs_and_its_pictures_show_something(tmp_path, monkeypatch):
    matplotlib.use('Agg')
    monkeypatch.chdir(tmp_path)
    text = (ROOT / 'docs' / 'notebook.py').read_text()
    cells = re.split(r'(?m)^# %%', text)
    assert [cell.split('.')[0].strip() for cell in cells[2:]] == list(map(str, range(1, 11)))
    namespace = {}
    for number, cell in enumerate(cells[2:], 1):
        code = cell.partition('\n')[2]
        if number == 1:
            code, count = re.subn(r'(?m)^SETTINGS = .*$', f'SETTINGS = {_TINY}', code)
            assert count == 1
        exec(compile(code, f'cell {number}', 'exec'), namespace)
    plt.close('all')
    pictures = {path.stem: cv2.imread(str(path)) for path in (tmp_path / 'notebook').glob('*.png')}
    assert sorted(pictures) == [
        'attention', 'classes', 'confidence', 'crops', 'graphs', 'predictions', 'pruned', 'scenes',
    ]  # fmt: skip
    assert all(picture.std() > 10 for picture in pictures.values())
