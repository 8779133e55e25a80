import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ggcf_jax.display import charts

_COLORS = [(128, 64, 128), (0, 0, 142), (107, 142, 35)]
_NAMES = ['road', 'car', 'vegetation']


def _texts(svg):
    root = ElementTree.fromstring(svg)
    return [''.join(node.itertext()) for node in root.iter('{http://www.w3.org/2000/svg}text')]


def test_confusion_chart_shows_percent_of_each_row():
    matrix = [[30, 10, 0], [0, 999, 1], [0, 0, 0]]
    svg = charts.confusion_chart(np.array(matrix), _NAMES)
    numbers = [text for text in _texts(svg) if text.isdigit()]
    assert sorted(numbers) == ['100', '25', '75']
    assert _texts(svg).count('vegetation') == 2
    with pytest.raises(ValueError, match=r'\[3, 3\] for 2 classes'):
        charts.confusion_chart(np.array(matrix), _NAMES[:2])


def test_confusion_chart_of_many_classes_has_no_numbers():
    names = [f'class {index}' for index in range(40)]
    texts = _texts(charts.confusion_chart(np.eye(40), names))
    assert not [text for text in texts if text.isdigit()] and texts.count('class 39') == 2


def test_iou_chart_has_colors_values_and_absent_classes():
    svg = charts.iou_chart(['a$x$', 'b<c', 'd'], [0.5, None, float('nan')], _COLORS)
    texts = _texts(svg)
    assert 'a$x$' in texts and 'b<c' in texts and '0.500' in texts
    assert texts.count('absent') == 2
    assert b'#804080' in svg


def test_curve_chart_leaves_gaps_and_takes_all_nan():
    steps = list(range(100))
    whole = [1.0 - s / 200 for s in steps]
    broken = [None if 40 <= s < 50 else v for s, v in zip(steps, whole)]
    moves = []
    for values in (whole, broken, [float('nan')] * 100, []):
        svg = charts.curve_chart('loss', {'loss': (steps[: len(values)], values)}).decode()
        path = re.search(r'<g id="line2d_\d+">\s*<path d="([^"]*)"[^>]*stroke: #3b82f6', svg)
        moves.append(path[1].count('M') if path else 0)
    assert moves == [1, 2, 0, 0]
    assert 'b' in _texts(charts.curve_chart('x', {'a': ([1], [2.0]), 'b': ([1], [3.0])}))


def test_charts_follow_the_page_and_repeat_byte_for_byte():
    first, second = (charts.iou_chart(_NAMES, [0.1, 0.2, 0.3], _COLORS) for _ in range(2))
    assert first == second
    assert first.startswith(b'<svg') and b'currentColor' in first and b'#010203' not in first
