import numpy as np
import pytest

from ggcf_jax.data import transforms
from ggcf_jax.data.dataset import IGNORE


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
    image, label = transforms.rescaled_crop(*_pair(rng), rng, scales, crop)
    assert image.shape == (*crop, 3)
    assert label.shape == crop
    assert image.dtype == label.dtype == np.uint8


def test_crop_at_scale_one_is_a_window_of_the_source(rng):
    image, label = _pair(rng)
    cropped, cropped_label = transforms.rescaled_crop(image, label, rng, (1.0, 1.0), (10, 12))
    windows = np.lib.stride_tricks.sliding_window_view(label, (10, 12))
    assert (windows == cropped_label).all((2, 3)).any()
    np.testing.assert_array_equal(cropped[..., 0], cropped_label * 20)


def test_image_and_label_stay_aligned_when_rescaled(rng):
    image, label = _pair(rng, 60, 80)
    for _ in range(20):
        scaled, scaled_label = transforms.rescaled_crop(image, label, rng, (0.5, 1.5), (48, 48))
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
    image, label = transforms.rescaled_crop(*_pair(rng), rng, (0.5, 0.5), (32, 40))
    height, width = round(37 * 0.5), round(53 * 0.5)
    assert (label[height:] == IGNORE).all() and (label[:, width:] == IGNORE).all()
    assert (label[:height, :width] != IGNORE).all()
    assert (image[height:] == transforms.MEAN_COLOR).all()


def test_labels_are_never_blended(rng):
    image, label = _pair(rng)
    seen = set()
    for _ in range(30):
        seen |= set(np.unique(transforms.rescaled_crop(image, label, rng, (0.5, 1.5), (32, 32))[1]))
    assert seen <= set(np.unique(label)) | {IGNORE}


def test_every_place_can_be_cropped(rng):
    label = np.arange(40, dtype=np.uint8)[None].repeat(8, 0)
    image = np.zeros((8, 40, 3), np.uint8)
    firsts = {
        int(transforms.rescaled_crop(image, label, rng, (1.0, 1.0), (8, 8))[1][0, 0])
        for _ in range(600)
    }
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
