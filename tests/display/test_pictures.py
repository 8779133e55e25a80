import re
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest

from ggcf_jax.display import pictures

_COLORS = [(128, 64, 128), (0, 0, 142), (107, 142, 35)]
_NAMES = ['road', 'car', 'vegetation']


def _scene():
    image = np.full((60, 120, 3), 200, np.uint8)
    label = np.zeros((60, 120), np.uint8)
    label[:, 60:] = 1
    label[40:] = 255
    prediction = np.zeros((60, 120), np.int32)
    return image, label, prediction


def _texts(svg):
    root = ElementTree.fromstring(svg)
    return [''.join(node.itertext()) for node in root.iter('{http://www.w3.org/2000/svg}text')]


def test_colorize_paints_classes_and_ignore():
    labels = np.array([[0, 1], [2, 255]])
    expected = [[_COLORS[0], _COLORS[1]], [_COLORS[2], (0, 0, 0)]]
    for dtype in (np.uint8, np.int32):
        painted = pictures.colorize(labels.astype(dtype), _COLORS, 255)
        assert painted.dtype == np.uint8
        np.testing.assert_array_equal(painted, expected)


@pytest.mark.parametrize('value', [3, -1, 254])
def test_colorize_names_a_label_out_of_range(value):
    with pytest.raises(ValueError, match=rf'label {value} is neither one of 0\.\.2 nor 255'):
        pictures.colorize(np.array([[0, value]], np.int32), _COLORS, 255)


def test_panel_has_the_four_pictures_below_their_captions():
    image, label, prediction = _scene()
    panel = pictures.panel(image, label, prediction, _COLORS, 255)
    assert panel.dtype == np.uint8
    height, width = label.shape
    gap = (panel.shape[1] - 4 * width) // 3
    tiles = [panel[-height:, i * (width + gap) : i * (width + gap) + width] for i in range(4)]
    np.testing.assert_array_equal(tiles[0], image)
    np.testing.assert_array_equal(tiles[1], pictures.colorize(label, _COLORS, 255))
    np.testing.assert_array_equal(tiles[2], pictures.colorize(prediction, _COLORS, 255))
    right, wrong, ignored = tiles[3][:40, :60], tiles[3][:40, 60:], tiles[3][40:]
    assert (right == 100).all()
    assert (wrong[..., 0] > 180).all() and (wrong[..., 1:] < 130).all()
    assert (ignored == 128).all()
    captions = panel[:-height]
    assert all(
        (captions[:, i * (width + gap) : i * (width + gap) + width] > 100).any() for i in range(4)
    )


def test_panel_inputs_are_left_as_they_were():
    scene = _scene()
    before = [each.copy() for each in scene]
    pictures.panel(*scene, _COLORS, 255)
    for one, other in zip(before, scene):
        np.testing.assert_array_equal(one, other)


def test_panel_where_everything_is_ignored():
    image, label, prediction = _scene()
    panel = pictures.panel(image, np.full_like(label, 255), prediction, _COLORS, 255)
    assert (panel[-60:, -120:] == 128).all()


def test_panel_checks_sizes():
    image, label, prediction = _scene()
    with pytest.raises(ValueError, match=r'image \[60, 120\], label \[59, 120\] and prediction'):
        pictures.panel(image, label[1:], prediction, _COLORS, 255)
    with pytest.raises(ValueError, match='float64'):
        pictures.panel(image / 255, label, prediction, _COLORS, 255)


def test_png_keeps_the_channels_in_order(tmp_path):
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[..., 0] = 250
    path = tmp_path / 'panels' / '0_a.png'
    pictures.write_png(path, rgb)
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), rgb)
    assert list(path.parent.iterdir()) == [path]


def test_png_refuses_floats_and_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.png'
    path.write_bytes(b'old')
    with pytest.raises(ValueError, match='float64'):
        pictures.write_png(path, np.zeros((4, 6, 3)))
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def test_confusion_chart_shows_percent_of_each_row():
    matrix = [[30, 10, 0], [0, 999, 1], [0, 0, 0]]
    svg = pictures.confusion_chart(np.array(matrix), _NAMES)
    numbers = [text for text in _texts(svg) if text.isdigit()]
    assert sorted(numbers) == ['100', '25', '75']
    assert _texts(svg).count('vegetation') == 2
    with pytest.raises(ValueError, match=r'\[3, 3\] for 2 classes'):
        pictures.confusion_chart(np.array(matrix), _NAMES[:2])


def test_confusion_chart_of_many_classes_has_no_numbers():
    names = [f'class {index}' for index in range(40)]
    texts = _texts(pictures.confusion_chart(np.eye(40), names))
    assert not [text for text in texts if text.isdigit()] and texts.count('class 39') == 2


def test_iou_chart_has_colors_values_and_absent_classes():
    svg = pictures.iou_chart(['a$x$', 'b<c', 'd'], [0.5, None, float('nan')], _COLORS)
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
        svg = pictures.curve_chart('loss', {'loss': (steps[: len(values)], values)}).decode()
        path = re.search(r'<g id="line2d_\d+">\s*<path d="([^"]*)"[^>]*stroke: #3b82f6', svg)
        moves.append(path[1].count('M') if path else 0)
    assert moves == [1, 2, 0, 0]
    assert 'b' in _texts(pictures.curve_chart('x', {'a': ([1], [2.0]), 'b': ([1], [3.0])}))


def test_charts_follow_the_page_and_repeat_byte_for_byte():
    first, second = (pictures.iou_chart(_NAMES, [0.1, 0.2, 0.3], _COLORS) for _ in range(2))
    assert first == second
    assert first.startswith(b'<svg') and b'currentColor' in first and b'#010203' not in first
