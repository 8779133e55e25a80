import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from ggcf_jax.data.records import codec
from ggcf_jax.errors import InputError
from ggcf_jax.prediction import inputs


def _encode(array, extension):
    return cv2.imencode(extension, array)[1].tobytes()


def _save(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.fixture
def picture(rng):
    return rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)


@pytest.fixture
def ids(rng):
    return rng.integers(0, 20, (37, 53), dtype=np.uint8)


def test_images_are_rgb(picture):
    data = _encode(picture[..., ::-1], '.png')
    np.testing.assert_array_equal(codec.decode_image(data, 'a'), picture)


def test_a_grey_image_becomes_rgb(picture):
    image = codec.decode_image(_encode(picture[..., 0], '.png'), 'a')
    np.testing.assert_array_equal(image, np.repeat(picture[..., :1], 3, -1))


def test_a_16_bit_image_becomes_8_bit(picture):
    image = codec.decode_image(_encode(picture[..., ::-1].astype(np.uint16) * 257, '.png'), 'a')
    np.testing.assert_array_equal(image, picture)


def test_transparency_is_dropped(picture):
    data = _save(Image.fromarray(np.dstack([picture, picture[..., 0]])), format='png')
    np.testing.assert_array_equal(codec.decode_image(data, 'a'), picture)


def test_a_transparent_colour_is_dropped_too(picture):
    data = _save(Image.fromarray(picture), format='png', transparency=(1, 2, 3))
    np.testing.assert_array_equal(codec.decode_image(data, 'a'), picture)


def test_a_damaged_image_is_refused(picture):
    data = bytearray(_encode(picture, '.png'))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(InputError, match='pair/a: the image cannot be decoded'):
        codec.decode_image(bytes(data), 'pair/a')


def test_jpeg_is_decoded_as_opencv_does(picture):
    smooth = cv2.GaussianBlur(picture, (0, 0), 2)
    for factor in (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444):
        flags = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor)
        data = cv2.imencode('.jpg', smooth, flags)[1]
        expected = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(codec.decode_image(data.tobytes(), 'a'), expected)
    grey = cv2.imencode('.jpg', smooth[..., 0])[1]
    expected = cv2.imdecode(grey, cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(codec.decode_image(grey.tobytes(), 'a'), expected)


def test_a_cmyk_image_becomes_rgb():
    red = Image.fromarray(np.full((16, 16, 3), (250, 10, 10), np.uint8))
    image = codec.decode_image(_save(red.convert('CMYK'), format='jpeg'), 'a')
    assert image.shape == (16, 16, 3)
    assert image[..., 0].min() > 180 and image[..., 1:].max() < 80


def test_exif_rotation_is_ignored_and_a_mismatch_explained(ids):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    data = _save(Image.fromarray(np.zeros((37, 53, 3), np.uint8)), format='jpeg', exif=exif)
    image = codec.decode_image(data, 'a')
    codec.check_sizes(image, ids, 'a')
    with pytest.raises(InputError, match=r'image is 37 x 53 but its label is 53 x 37.*EXIF'):
        codec.check_sizes(image, ids.T, 'a')


@pytest.mark.parametrize('extension', ['.png', '.jpg'])
@pytest.mark.parametrize('share', [0.0, 0.3, 0.99])
def test_an_image_that_breaks_off_is_refused(picture, extension, share):
    data = _encode(picture, extension)
    with pytest.raises(InputError, match='street: the image cannot be decoded'):
        codec.decode_image(data[: int(share * len(data))], 'street')


def test_a_cut_off_jpeg_with_a_preview_is_refused(picture):
    """The preview in the EXIF data ends as a whole JPEG does."""
    whole = _encode(picture, '.jpg')
    preview = b'\xff\xe1' + (len(whole) + 2).to_bytes(2, 'big') + whole
    data = whole[:2] + preview + whole[2:]
    assert codec.is_complete(data)
    assert not codec.is_complete(data[:-20])


def test_something_else_is_refused():
    with pytest.raises(InputError, match='the image cannot be decoded'):
        codec.decode_image(b'<html>', 'a')


def test_labels_keep_their_values(ids):
    np.testing.assert_array_equal(codec.decode_label(_encode(ids, '.png'), 'a'), ids)
    assert codec.label_size(_encode(ids, '.png'), 'a') == (37, 53)


def test_a_palette_label_gives_the_indices(ids):
    image = Image.fromarray(ids, mode='P')
    image.putpalette(list(range(255, -1, -1)) * 3)
    data = _save(image, format='png')
    np.testing.assert_array_equal(codec.decode_label(data, 'a'), ids)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda ids: _encode(ids.astype(np.uint16), '.png'), 'label is a 16-bit grey PNG'),
        (lambda ids: _encode(np.dstack([ids] * 3), '.png'), 'label is a 8-bit colour PNG'),
        (lambda ids: _save(Image.fromarray(ids > 9), format='png'), 'label is a 1-bit grey PNG'),
        (lambda ids: _encode(ids, '.jpg'), 'label is not a PNG'),
        (lambda ids: _encode(ids, '.png')[:-30], 'label cannot be decoded'),
        (lambda ids: b'', 'label is not a PNG'),
    ],
)
def test_labels_that_would_change_are_refused(ids, make, message):
    with pytest.raises(InputError, match=f'street: the {message}'):
        codec.decode_label(make(ids), 'street')


@pytest.mark.parametrize('orientation', range(1, 9))
def test_upright_is_what_opencv_turns(rng, orientation):
    image = Image.fromarray(rng.integers(0, 256, (8, 16, 3), dtype=np.uint8))
    exif, data = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    image.save(data, 'JPEG', exif=exif)
    turned = cv2.imdecode(np.frombuffer(data.getvalue(), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(codec.decode_upright(data.getvalue(), 'photo'), turned)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('turn', range(1, 9))
def test_orientation(kind, turn):
    """Photographs are turned upright, images of a data set stay as they are stored."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16], stored[:8, 16:], stored[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    tag = Image.Exif()
    tag[274] = turn
    options = {'JPEG': {'quality': 100, 'subsampling': 0}, 'WEBP': {'lossless': True}}
    file = io.BytesIO()
    Image.fromarray(stored).save(file, kind, exif=tag, **options.get(kind, {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert('RGB'))
    for decode, pixels in ((codec.decode_image, stored), (codec.decode_upright, expected)):
        found = decode(file.getvalue(), 'x')
        assert found.shape == pixels.shape
        assert np.abs(found.astype(int) - pixels).max() < 40
    given = inputs.Input('x', lambda: io.BytesIO(file.getvalue()), upright=True)
    assert given.size() == expected.shape[:2]
