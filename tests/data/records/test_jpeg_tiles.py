import struct

import cv2
import numpy as np
import pytest

from ggcf_jax.data.records import jpeg_tiles
from ggcf_jax.errors import InputError

SIZES = [(1, 1), (37, 53), (256, 512), (257, 255), (300, 600)]


def _image(rng, size):
    noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def _change(data, index, content):
    """Replaces bytes at `index`, of either end."""
    start = index % len(data)
    return data[:start] + content + data[start + len(content) :]


@pytest.mark.parametrize('size', SIZES)
def test_all_tiles_are_the_pixels_of_one_jpeg(rng, size):
    image = _image(rng, size)
    whole = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), jpeg_tiles.JPEG)[1]
    tiled = jpeg_tiles.TiledImage(jpeg_tiles.encode(image), 'a')
    assert tiled.shape == image.shape
    np.testing.assert_array_equal(tiled[:, :], cv2.imdecode(whole, cv2.IMREAD_COLOR_RGB))


@pytest.mark.parametrize('size', SIZES)
def test_a_window_is_that_of_the_whole(rng, size):
    tiled = jpeg_tiles.TiledImage(jpeg_tiles.encode(_image(rng, size)), 'a')
    whole = tiled[:, :]
    for _ in range(40):
        rows, columns = (
            slice(*sorted(rng.choice([0, n, min(n, 256), *rng.integers(0, n + 1, 2)], 2)))
            for n in size
        )
        np.testing.assert_array_equal(tiled[rows, columns], whole[rows, columns])


def test_only_the_tiles_of_the_window_are_decoded(rng):
    data = jpeg_tiles.encode(_image(rng, (300, 600)))
    expected = jpeg_tiles.TiledImage(data, 'street')[:, :]
    tiled = jpeg_tiles.TiledImage(
        _change(data, -2, b'??'), 'street'
    )  # end of the last, right below
    np.testing.assert_array_equal(tiled[:256, :], expected[:256])
    np.testing.assert_array_equal(tiled[:, :512], expected[:, :512])
    with pytest.raises(InputError, match='street: the image cannot be decoded'):
        tiled[255:257, 511:513]


@pytest.mark.parametrize(
    'damage',
    [
        lambda data: b'',
        lambda data: data[:7],
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b'?',
        lambda data: _change(data, 0, struct.pack('<I', 301)),
        lambda data: _change(data, 4, struct.pack('<I', 2**31)),
        lambda data: _change(data, 8, struct.pack('<I', 5)),
        lambda data: _change(data, 32, b'??'),
        lambda data: cv2.imencode('.jpg', np.zeros((300, 600, 3), np.uint8))[1].tobytes(),
    ],
)
def test_damage_is_refused(rng, damage):
    data = damage(jpeg_tiles.encode(_image(rng, (300, 600))))
    with pytest.raises(InputError, match='street: the image cannot be decoded'):
        jpeg_tiles.TiledImage(data, 'street')[:, :]
