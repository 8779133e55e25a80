import base64
import html.parser
import json
import os
import pathlib
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest

from ggcf_jax.display import pictures as visualize
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import host_times, report
from ggcf_jax.workdir.metrics_log import Writer
from tests import browser

_CLASSES = ['road', 'car', 'fence <b>&']
_COLORS = [[128, 64, 128], [0, 0, 142], [190, 153, 153]]


class _Page(html.parser.HTMLParser):
    """Tags that were opened, their attributes, and the text; checks that they are closed."""

    def __init__(self, document):
        super().__init__()
        self.open, self.attributes, self.pieces = [], [], []
        self.feed(document)
        assert self.open == []
        self.text = ' '.join(' '.join(self.pieces).split())

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if 'style' not in self.open:
            self.pieces.append(data)


def _evaluation(workdir, step, miou, split='validation'):
    content = {
        'step': step,
        'split': split,
        'classes': _CLASSES,
        'colors': _COLORS,
        'matrix': [[8, 2, 0], [1, 9, 0], [0, 0, 0]],
        'miou': miou,
        'pixel_accuracy': 0.85,
        'iou': dict(zip(_CLASSES, [0.7272, 0.75, None])),
        'absent': _CLASSES[2:],
    }
    folder = workdir / 'evaluations'
    folder.mkdir(exist_ok=True)
    (folder / f'{split}_{step:08d}.json').write_text(json.dumps(content))


def _run(workdir):
    with Writer(workdir, 0) as metrics:
        for step in range(10, 50, 10):
            loss = float('nan') if step == 30 else 1.0
            # Resumed after step 20: the clock starts again.
            elapsed = step * 3.0 if step <= 20 else (step - 20) * 3.0
            metrics.scalars(
                step,
                {
                    'train/loss': loss,
                    'train/learning_rate': 0.01,
                    'train/images_per_sec': None if step == 10 else 8.0,
                    'train/model_flop_utilisation': 0.41,
                    'train/elapsed_sec': elapsed,
                },
            )
            metrics.scalars(step, {'val/miou': 0.5})
    _evaluation(workdir, 20, 0.7386)
    _evaluation(workdir, 40, 0.7001)
    _evaluation(workdir, 40, 0.99, split='test')
    config = {
        'data': {'name': 'street_scenes', 'crop_size': [64, 128]},
        'train': {'steps': 40},
        'note': '<img src=x>',
        'weights': ','.join(['4.1'] * 30),
        'model': {'context': 'ggcf', 'heads': 'local:2,grid:2', 'backbone': {'name': 'resnet18'}},
    }
    (workdir / 'config.json').write_text(json.dumps(config))
    run = {
        'command': 'python main.py --config=a.py --note="<script>alert(1)</script>"',
        'versions': {'jax': '0.10.2'},
        'devices': '2 x cpu',
        'platform': 'Linux',
        'started': '2026-01-02T03:04:05',
        'git': None,
    }
    (workdir / 'run.json').write_text(json.dumps(run))
    for step in (20, 40):
        for index in (2, 10):
            picture = np.full((10, 3000 if index == 2 else 40, 3), step, np.uint8)
            name = f'{index}_scene_{step}_{index}.png'
            visualize.write_png(workdir / 'panels' / f'{step:08d}' / name, picture)


def _pictures(page):
    sources = [attrs['src'] for tag, attrs in page.attributes if tag == 'img']
    head = 'data:image/webp;base64,'
    assert all(source.startswith(head) for source in sources)
    data = [np.frombuffer(base64.b64decode(source[len(head) :]), np.uint8) for source in sources]
    return [cv2.imdecode(each, cv2.IMREAD_COLOR) for each in data]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    _run(workdir)
    path = report.write(workdir)
    assert path == workdir / 'report.html'
    assert not [file for file in workdir.iterdir() if file.name.startswith('.')]
    return path.read_text()


def test_headline_is_of_the_validation_split(finished):
    text = _Page(finished).text
    assert 'GGCF on street_scenes' in text
    assert 'best mIoU 0.7386 validation, step 20' in text
    assert 'final mIoU 0.7001 step 40' in text
    assert 'steps 40 of 40' in text
    assert 'throughput 8.0 images/s' in text
    assert 'utilisation 41.0% of the bfloat16 peak' in text
    assert 'wall time 2 min 00 s' in text
    assert '40 test whole image later 0.9900' in text


def test_absent_classes_gaps_command_versions_and_config_are_told(finished):
    text = _Page(finished).text
    assert 'excluded from the mean: fence <b>&.' in text
    assert 'Not finite in 1 rows' in text
    assert 'python main.py --config=a.py --note="<script>alert(1)</script>"' in text
    for piece in ('jax 0.10.2', '2 x cpu', 'Linux', '2026-01-02T03:04:05'):
        assert piece in text
    assert 'note <img src=x>' in text
    assert 'data.crop_size [64, 128]' in text and 'model.backbone.name resnet18' in text


def test_page_shows_what_is_inside_and_is_escaped(finished):
    page = _Page(finished)
    tags = {tag for tag, _ in page.attributes}
    assert not tags & {'script', 'link', 'iframe', 'object'}
    assert 'fence <b>' not in finished and '<script' not in finished
    for tag, attributes in page.attributes:
        if tag == 'a':  # the full panels
            assert attributes['href'].startswith('panels/00000040/')
            continue
        for name in ('src', 'href', 'xlink:href'):
            value = attributes.get(name, '')
            assert value == '' or value.startswith(('data:', '#'))
    assert not re.search(r'url\((?!#)|@import', finished)


def test_charts_are_well_formed_svg(finished):
    charts = re.findall(r'<svg.*?</svg>', finished, re.DOTALL)
    assert len(charts) == 5
    for chart in charts:
        ElementTree.fromstring(chart)


def test_latest_panels_are_thumbnails_in_order_that_lead_to_the_files(finished):
    page = _Page(finished)
    names = [attrs['alt'] for tag, attrs in page.attributes if tag == 'img']
    assert names == ['scene_40_2', 'scene_40_10']
    links = [attrs['href'] for tag, attrs in page.attributes if tag == 'a']
    assert links == ['panels/00000040/2_scene_40_2.png', 'panels/00000040/10_scene_40_10.png']
    pictures = _pictures(page)
    assert [picture.shape[:2] for picture in pictures] == [(4, 1200), (10, 40)]
    assert all(np.abs(picture.astype(int) - 40).max() <= 2 for picture in pictures)


def test_thumbnails_of_odd_names_lead_to_their_files(tmp_path):
    path = tmp_path / 'panels' / '00000001' / '0_a b#1?"ä.png'
    visualize.write_png(path, np.zeros((4, 4, 3), np.uint8))
    page = _Page(report.write(tmp_path).read_text())
    (link,) = (attrs['href'] for tag, attrs in page.attributes if tag == 'a')
    assert tmp_path / urllib.parse.unquote(link) == path


def test_numbers_are_not_broken_across_lines(finished):
    page = _Page(finished)
    evaluations = finished[finished.index('<h2>Evaluations') :]
    assert re.findall(r'<td class="number">([^<]+)', evaluations)[:3] == ['20', '0.7386', '0.8500']
    assert '.number { white-space: nowrap' in finished and page.open == []


@pytest.mark.slow
def test_the_report_in_a_browser(tmp_path):
    """At 1280 pixels: numbers on one line, nothing wider than the page, full panels on click."""
    path = browser.find()
    if path is None:
        pytest.skip(f'no browser: none of {", ".join(browser.NAMES)} is installed')
    _run(tmp_path)
    file = tmp_path / 'evaluations' / 'validation_00000040.json'
    content = json.loads(file.read_text())
    content['inference'] = 'windows of 769 x 769, scales 0.5, 0.75, 1, 1.25, 1.5, 1.75, mirrored'
    names = ('mean_accuracy', 'mean_precision', 'mean_f1', 'frequency_weighted_iou', 'boundary_iou')
    content['metrics'] = dict.fromkeys(names, 0.123456)
    file.write_text(json.dumps(content))
    document = report.write(tmp_path)
    lines = (
        '[...document.querySelectorAll("td.number, .fact b")]'
        '.map(e => Math.round(e.getClientRects().length && (() => {'
        ' const r = document.createRange(); r.selectNodeContents(e);'
        ' return new Set([...r.getClientRects()].map(b => b.top)).size; })()))'
    )
    with browser.open_page(path) as page:
        page.call('Page.navigate', url=document.as_uri())
        page.wait('document.querySelectorAll("figure img").length == 2')
        found = page.run(lines)
        assert len(found) >= 20 and set(found) == {1}
        wide = (
            '[...document.querySelectorAll("section")].filter(e => e.scrollWidth > e.clientWidth)'
        )
        assert page.run(f'{wide}.length') == 0
        if 'SCREENSHOTS' in os.environ:
            page.screenshot(pathlib.Path(os.environ['SCREENSHOTS']) / 'report_test.png')
        page.click('figure a')
        page.wait('location.href.endsWith("2_scene_40_2.png")')
        assert page.run('document.images[0].naturalWidth') == 3000


def test_empty_workdir_says_what_is_missing(tmp_path):
    text = _Page(report.write(tmp_path).read_text()).text
    for piece in (
        'No metrics yet',
        'No evaluation yet',
        'No panels yet',
        'run.json is missing',
        'config.json is missing',
    ):
        assert piece in text


@pytest.mark.parametrize('wait', [0.02, 0.41])
def test_the_host_that_holds_up_the_others_is_named(tmp_path, wait):
    """Of the last start; the first one was on other machines."""
    with Writer(tmp_path, 0) as metrics:
        for step in range(1, 9):
            waits = [0.02, 0.021, 0.5 if step < 5 else wait]
            times = {'train/step_sec': 1.0, 'train/data_wait_sec': 0.02}
            start = {1: (66.2, 41.5), 5: (7.1, 0.5)}.get(step)
            if start:
                times |= dict(zip(('run/start_sec', 'run/compile_sec'), start))
            row = {host_times.key(index): each for index, each in enumerate(waits)}
            metrics.scalars(step, times | row)
    (tmp_path / 'run.json').write_text(json.dumps({'machines': ['node1', 'node2', 'node7']}))
    text = _Page(report.write(tmp_path).read_text()).text
    assert 'step, median 1 s wait for data, median 0.02 s' in text
    assert 'compilation, all starts 42 s first step after the start 66.2 s, 7.1 s' in text
    assert '1 node2 0.021 s 2%' in text
    slow = 'Process 2 on node7 holds up the others' in text
    assert slow == (wait == 0.41)
    assert ('2 node7 0.41 s 41% holds up the others' in text) == slow


def test_undefined_scores_and_nan_losses(tmp_path):
    with Writer(tmp_path, 0) as metrics:
        metrics.scalars(1, {'train/loss': float('nan'), 'val/miou': float('nan')})
    _evaluation(tmp_path, 1, None)
    _evaluation(tmp_path, 2, 0.25)
    _evaluation(tmp_path, 3, None)
    (tmp_path / 'config.json').write_text('{"data": {"name": "<i>"}, "model": {"heads": null}}')
    text = _Page(report.write(tmp_path).read_text()).text
    assert text.count('GGCF on <i>') == 2
    assert 'best mIoU 0.2500 validation, step 2' in text
    assert 'final mIoU undefined step 3' in text


def test_many_classes_are_shown_in_several_charts(tmp_path):
    names = [f'class {index}' for index in range(60)]
    content = {
        'step': 1,
        'split': 'validation',
        'classes': names,
        'colors': [[index, 0, 0] for index in range(60)],
        'matrix': np.eye(60, dtype=int).tolist(),
        'miou': 1.0,
        'pixel_accuracy': 1.0,
        'iou': dict.fromkeys(names, 1.0),
        'absent': [],
    }
    (tmp_path / 'evaluations').mkdir()
    (tmp_path / 'evaluations' / 'validation_00000001.json').write_text(json.dumps(content))
    charts = re.findall(r'<svg.*?</svg>', report.write(tmp_path).read_text(), re.DOTALL)
    assert [chart.count('1.000</text>') for chart in charts] == [50, 10, 0]


def test_running_again_replaces_the_report(tmp_path):
    first = report.write(tmp_path).read_text()
    _evaluation(tmp_path, 1, 0.5)
    second = report.write(tmp_path).read_text()
    assert first != second and 'best mIoU' in second
    assert report.write(tmp_path).read_text() == second


def test_bad_workdirs_are_named(tmp_path):
    with pytest.raises(InputError, match='missing does not exist'):
        report.write(tmp_path / 'missing')
    (tmp_path / 'config.json').write_text('{"a":')
    with pytest.raises(InputError, match=r'config\.json is not JSON'):
        report.write(tmp_path)
    (tmp_path / 'config.json').write_text('{}')
    (tmp_path / 'panels' / '00000001').mkdir(parents=True)
    (tmp_path / 'panels' / '00000001' / '0_a.png').write_bytes(b'x')
    with pytest.raises(InputError, match=r'0_a\.png is not a readable PNG'):
        report.write(tmp_path)
    assert not (tmp_path / 'report.html').exists()
