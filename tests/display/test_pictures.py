import cv2
import numpy as np
import pytest

from ggcf_jax.display import pictures

_COLORS = [(128, 64, 128), (0, 0, 142), (107, 142, 35)]


def _scene():
    image = np.full((60, 120, 3), 200, np.uint8)
    label = np.zeros((60, 120), np.uint8)
    label[:, 60:] = 1
    label[40:] = 255
    prediction = np.zeros((60, 120), np.int32)
    return image, label, prediction


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


@pytest.mark.parametrize('size', [(7, 1), (40, 56), (60, 481), (33, 640), (20, 1000)])
def test_the_image_is_taken_out_of_its_panel(size, rng):
    image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    label = np.zeros(size, np.uint8)
    panel = pictures.panel(image, label, label, _COLORS, 255)
    np.testing.assert_array_equal(pictures.input_of_panel(panel), image)
    assert pictures.input_of_panel(image) is None
    assert pictures.input_of_panel(panel[:, 1:]) is None


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
