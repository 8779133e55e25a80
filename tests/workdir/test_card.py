"""The card says of a run what its files say, and nothing of the machine."""

import json

import pytest
import yaml

from ggcf_jax.workdir import card, evaluations, report


def _cells(text, first):
    """The cells of the row of a table that begins with a text."""
    (row,) = (line for line in text.splitlines() if line.startswith(f'| {first} |'))
    return [cell.strip() for cell in row.strip('|').split('|')]


def test_card_of_a_run(tiny_run):
    _, workdir, evaluation = tiny_run
    report.write(workdir)
    text = (workdir / card.FILE_NAME).read_text()
    _, front, body = text.split('---\n', 2)
    front = yaml.safe_load(front)
    assert front['license'] == 'unknown' and front['library_name'] == 'ggcf_jax'
    assert body.startswith('\n# GGCF on camvid, resnet10\n')
    paths = list((workdir / 'evaluations').glob('validation_*.json'))
    best = max(map(evaluations.read, paths), key=lambda each: (each['miou'], each['step']))
    assert front['miou'] == pytest.approx(best['miou'], abs=1e-4)
    assert f'| checkpoint | step {best["step"]} |' in text
    # Other tests evaluate this run as well, in other ways.
    rows = [line.split(' | ') for line in text.splitlines() if line.startswith('| validation |')]
    assert ['3', 'whole image'] in [row[1:3] for row in rows]
    for name in evaluation.classes:
        iou = best['iou'][name]
        (row,) = (line for line in text.splitlines() if line.startswith(f'| {name} | '))
        assert row.split('|')[2].strip() == ('' if iou is None else f'{iou:.4f}')
    assert _cells(text, 'crop (height, width)') == ['crop (height, width)', '24, 24']
    assert "Trained on 'train': 6 images of train. Data set: camvid." in text
    assert 'Not measured, since no image has them: ' in text
    assert str(workdir.parent) not in text


def test_card_of_a_run_without_anything(tmp_path):
    text = card.of_workdir(tmp_path, None, plan='whole image', files={})
    assert 'This checkpoint has not been evaluated.' in text
    assert '| checkpoint | none yet |' in text and '## Files' not in text


def test_places_and_bars_in_names(tmp_path):
    config = {'model': {'backbone': {'weights': '/home/me/secret/resnet18.pth'}}}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'classes.json').write_text(json.dumps({'names': ['a|b']}))
    text = card.of_workdir(tmp_path, 3, plan='x', files={'a': 'b'}, license_='mit')
    assert '| weights at the start | resnet18.pth |' in text and 'secret' not in text
    assert '| 0 | a\\|b |  |  |' in text
