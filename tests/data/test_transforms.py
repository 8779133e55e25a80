import numpy as np
import pytest

from ggcf_jax.data import transforms
from ggcf_jax.data.records.codec import IGNORE


def _crop(image, label, rng, scales, crop):
    """A rescaled crop without the flip."""
    rows, columns = (
        transforms.random_window(n, c, scale, rng)
        for n, c, scale in zip(label.shape, crop, transforms.random_scales(rng, scales))
    )
    return transforms.pad_to(*transforms.resize_window(image, label, rows, columns), crop)


def _pair(rng, height=37, width=53):
    """An image whose red channel is its label, so that they can be compared after resampling."""
    bands = rng.permuted(np.arange(5, dtype=np.uint8))[np.arange(height) // 12 % 5]
    label = np.repeat(bands[:, None], width, 1)
    label[:, width // 2 :] += 5
    image = np.stack([label * 20] * 3, -1)
    return image, label


@pytest.mark.parametrize('crop', [(16, 24), (37, 53), (64, 80), (20, 90)])
@pytest.mark.parametrize('scales', [(0.5, 1.5), (1.0, 1.0), (0.1, 0.2), (3.0, 3.0)])
def test_rescaled_crop_has_the_size_of_the_crop(rng, crop, scales):
    image, label = _crop(*_pair(rng), rng, scales, crop)
    assert image.shape == (*crop, 3)
    assert label.shape == crop
    assert image.dtype == label.dtype == np.uint8


def test_crop_at_scale_one_is_a_window_of_the_source(rng):
    image, label = _pair(rng)
    cropped, cropped_label = _crop(image, label, rng, (1.0, 1.0), (10, 12))
    windows = np.lib.stride_tricks.sliding_window_view(label, (10, 12))
    assert (windows == cropped_label).all((2, 3)).any()
    np.testing.assert_array_equal(cropped[..., 0], cropped_label * 20)


def test_image_and_label_stay_aligned_when_rescaled(rng):
    image, label = _pair(rng, 60, 80)
    for _ in range(20):
        scaled, scaled_label = _crop(image, label, rng, (0.5, 1.5), (48, 48))
        inside = scaled_label != IGNORE
        # Away from edges, which bilinear interpolation blends, colours must agree.
        flat = np.ones_like(inside)
        for axis in (0, 1):
            for shift in (-1, 1):
                flat &= np.roll(scaled_label, shift, axis) == scaled_label
        assert (flat & inside).sum() > 300
        agree = np.abs(scaled[..., 0].astype(int) - scaled_label * 20) <= 2
        assert agree[flat & inside].mean() > 0.98


def test_small_images_are_padded_below_and_right(rng):
    image, label = _crop(*_pair(rng), rng, (0.5, 0.5), (32, 40))
    height, width = round(37 * 0.5), round(53 * 0.5)
    assert (label[height:] == IGNORE).all() and (label[:, width:] == IGNORE).all()
    assert (label[:height, :width] != IGNORE).all()
    assert (image[height:] == transforms.MEAN_COLOR).all()


def test_labels_are_never_blended(rng):
    image, label = _pair(rng)
    seen = set()
    for _ in range(30):
        seen |= set(np.unique(_crop(image, label, rng, (0.5, 1.5), (32, 32))[1]))
    assert seen <= set(np.unique(label)) | {IGNORE}


def test_every_place_can_be_cropped(rng):
    label = np.arange(40, dtype=np.uint8)[None].repeat(8, 0)
    image = np.zeros((8, 40, 3), np.uint8)
    firsts = {int(_crop(image, label, rng, (1.0, 1.0), (8, 8))[1][0, 0]) for _ in range(600)}
    assert firsts == set(range(33))


def test_flip_mirrors_both_or_none(rng):
    image, label = _pair(rng)
    flips = 0
    for _ in range(200):
        flipped, flipped_label = transforms.random_flip(image, label, rng)
        mirrored = bool((flipped_label == label[:, ::-1]).all())
        np.testing.assert_array_equal(flipped, image[:, ::-1] if mirrored else image)
        np.testing.assert_array_equal(flipped_label, label[:, ::-1] if mirrored else label)
        flips += mirrored
    assert 70 < flips < 130


def test_transform_is_a_function_of_the_generator(rng):
    transform = transforms.TrainTransform((24, 24), (0.5, 1.5))
    image, label = _pair(rng)
    first, again, other = (
        transform(image, label, np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_scale_steps_and_range(rng):
    stepped = {transforms.random_scales(rng, (0.5, 2.0), scale_step=0.25) for _ in range(300)}
    assert stepped == {(s, s) for s in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)}
    scales = [transforms.random_scales(rng, (0.7, 2.0))[0] for _ in range(300)]
    assert 0.7 <= min(scales) < 0.75 and 1.9 < max(scales) <= 2.0


def test_aspect_jitter_keeps_the_area_and_its_bounds(rng):
    pairs = [transforms.random_scales(rng, (1.0, 1.0), aspect_jitter=0.1) for _ in range(300)]
    np.testing.assert_allclose([rows * columns for rows, columns in pairs], 1.0)
    ratios = [columns / rows for rows, columns in pairs]
    assert 0.9 <= min(ratios) < 0.92 and 1.08 < max(ratios) <= 1.1


@pytest.mark.parametrize('scale', [0.3, 1.0, 2.5])
def test_a_window_around_a_pixel_contains_it(rng, scale):
    for around in (0, 1, 20, 39):
        for _ in range(50):
            window = transforms.random_window(40, 16, scale, rng, around)
            assert window.start <= around < window.start + window.length
            assert window.start >= 0 and window.start + window.length <= 40


def test_largest_class_share_leaves_out_ignored_pixels():
    label = np.array([[0, 0, 0, 1], [IGNORE] * 4], np.uint8)
    assert transforms.largest_class_share(label) == 0.75
    assert transforms.largest_class_share(label[1:]) == 1.0


def test_crops_dominated_by_one_class_are_drawn_again(rng):
    label = np.zeros((32, 200), np.uint8)
    label[:, 180:] = 1
    image = np.zeros((32, 200, 3), np.uint8)

    def dominated(share):
        transform = transforms.TrainTransform((32, 32), (1.0, 1.0), max_class_share=share)
        crops = (transform(image, label, rng)[1] for _ in range(150))
        return np.mean([transforms.largest_class_share(crop) > 0.75 for crop in crops])

    assert dominated(1.0) > 0.8
    assert dominated(0.75) < 0.5


def test_photometric_distortion_at_strength_zero_changes_nothing(rng):
    image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for _ in range(20):
        np.testing.assert_array_equal(transforms.photometric_distortion(image, rng, 0.0), image)


def test_photometric_distortion_stays_in_its_ranges(rng):
    """On grey, saturation and hue do nothing: what is left is contrast * (x + offset)."""
    image = np.full((4, 4, 3), 100, np.uint8)
    values = []
    for _ in range(400):
        changed = transforms.photometric_distortion(image, rng)
        assert (changed == changed[0, 0, 0]).all()
        values.append(int(changed[0, 0, 0]))
    assert 33 <= min(values) < 60 and 150 < max(values) <= 199
    assert values.count(100) > 50  # neither was drawn


def test_photometric_distortion_changes_hue_and_saturation(rng):
    image = np.zeros((2, 2, 3), np.uint8)
    image[...] = (200, 100, 100)
    changed = np.array(
        [transforms.photometric_distortion(image, rng)[0, 0] for _ in range(200)]
    ).astype(int)
    spread = changed.max(1) - changed.min(1)
    assert spread.min() < 70 and spread.max() > 130
    assert (changed[:, 1] != changed[:, 2]).mean() > 0.3  # the hue moved off pure red
