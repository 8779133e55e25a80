import io
import re
import struct

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from ggcf_jax.data.records import codec
from ggcf_jax.data.records.dataset import identity_label_map
from ggcf_jax.errors import InputError
from ggcf_jax.prediction import inputs
from tests.helpers import ROOT


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
    np.testing.assert_array_equal(codec.decode_image(data, 'a'), codec.decode_image(whole, 'a'))
    with pytest.raises(InputError, match=r'street: the image cannot be decoded.*breaks off'):
        codec.decode_image(data[:-20], 'street')


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


LABELS = {  # what holds the ids 0 to 3 without loss
    'grey': lambda ids: _save(Image.fromarray(ids), format='png'),
    '16 bits': lambda ids: _encode(ids.astype(np.uint16), '.png'),
    '2 bits': lambda ids: _save(_palette(ids), format='png', bits=2),
    'three equal channels': lambda ids: _encode(np.dstack([ids] * 3), '.png'),
    'equal channels and alpha': lambda ids: _save(
        Image.fromarray(np.dstack([ids] * 3 + [np.full_like(ids, 255)])), format='png'
    ),
    'tif': lambda ids: _save(Image.fromarray(ids), format='tiff', compression='tiff_lzw'),
    '16-bit tif': lambda ids: imagecodecs.tiff_encode(ids.astype(np.uint16)),
    'bmp': lambda ids: _save(Image.fromarray(ids), format='bmp'),
    'gif': lambda ids: _save(Image.fromarray(ids), format='gif'),
    'npy': lambda ids: _array(ids.astype(np.int64)),
    'npy [1, h, w]': lambda ids: _array(ids[None].astype(np.int16)),
}


def _palette(ids):
    image = Image.fromarray(ids, mode='P')
    image.putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2])
    return image


def _array(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize('make', LABELS.values(), ids=LABELS)
def test_labels_in_every_form(rng, make):
    ids = rng.integers(0, 4, (37, 53), dtype=np.uint8)
    decoder = codec.FileDecoder(identity_label_map(4, 255))
    np.testing.assert_array_equal(decoder.label(make(ids), 'a'), ids)
    assert decoder.label_size(make(ids), 'a') == (37, 53)


def test_bits_are_kept_as_they_are(ids):
    masks = _save(Image.fromarray(ids > 9), format='png')
    np.testing.assert_array_equal(codec.decode_label(masks, 'a'), ids > 9)


COLORS = {(0, 0, 0): 0, (128, 0, 0): 1, (128, 128, 128): 2, (1, 2, 3): codec.IGNORE}


def test_colours_are_looked_up(rng):
    """And colours that no class has are named with their number of pixels."""
    ids = rng.integers(0, 4, (37, 53))
    colors = np.array(list(COLORS), np.uint8)[ids]
    decoder = codec.FileDecoder(identity_label_map(3, 255), COLORS)
    label = decoder.label(_encode(colors[..., ::-1], '.png'), 'a')
    np.testing.assert_array_equal(label, np.array(list(COLORS.values()))[ids])
    colors[:2, :3] = (4, 5, 6)
    with pytest.raises(InputError, match=r'a: label colours \(4, 5, 6\) \(6 pixels\) are none'):
        decoder.label(_encode(colors[..., ::-1], '.png'), 'a')
    with pytest.raises(InputError, match='a: the label holds colours, not class ids'):
        codec.FileDecoder(identity_label_map(3, 255)).label(_encode(colors, '.png'), 'a')


def test_greys_that_could_be_ids_or_colours():
    """(2, 2, 2) is id 2; (128, 128, 128) a colour; (1, 1, 1) id 1 and the colour of class 0."""
    colors = {**COLORS, (1, 1, 1): 0}

    def label(value, form):
        decoder = codec.FileDecoder(identity_label_map(3, 255), colors, form)
        return decoder.label(_encode(np.full((4, 5, 3), value, np.uint8), '.png'), 'a')

    assert (label(2, 'auto') == 2).all() and (label(128, 'auto') == 2).all()
    assert (label(0, 'auto') == 0).all()  # both mean class 0
    with pytest.raises(InputError, match='are class ids as well as colours of other classes; set'):
        label(1, 'auto')
    assert (label(1, 'ids') == 1).all() and (label(1, 'colors') == 0).all()
    with pytest.raises(InputError, match='label values 128'):
        label(128, 'ids')
    with pytest.raises(InputError, match='label colours'):
        label(2, 'colors')


def test_a_palette_in_colours(ids):
    image = Image.fromarray(ids % 2, mode='P')
    image.putpalette([128, 128, 128, 128, 0, 0])
    data = _save(image, format='png')
    decoder = codec.FileDecoder(identity_label_map(3, 255), COLORS, 'colors')
    np.testing.assert_array_equal(decoder.label(data, 'a'), 2 - ids % 2)


def test_values_above_255_by_a_table():
    label_map = np.full(1 << 16, codec.NOT_ALLOWED, np.uint8)
    label_map[[300, 41000]] = 0, 1
    label = np.array([[300, 41000, 41000]], np.uint16)
    decoder = codec.FileDecoder(label_map)
    assert decoder.label(_encode(label, '.png'), 'a').tolist() == [[0, 1, 1]]
    bad = _array(label.astype(np.int64) - 301)
    with pytest.raises(InputError, match=r'values 40699 \(2 pixels\), -1 \(1 pixel\) are outside'):
        decoder.label(bad, 'a')


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda ids: _encode(ids, '.jpg'), 'label is a JPEG file, a format that changes class ids'),
        (lambda ids: _encode(ids, '.webp'), 'label is a WebP file, a format that changes'),
        (lambda ids: _encode(ids, '.png')[:-30], 'label cannot be decoded.*breaks off'),
        (lambda ids: b'', 'label cannot be decoded.*an empty file'),
        (lambda ids: _array(ids)[:-30], 'label cannot be decoded.*bytes do not fit its size'),
        (lambda ids: _array(ids.astype(np.float32)), 'label is an array float32'),
        (lambda ids: _array(ids[0]), r'label is an array uint8 \[53\]'),
        (lambda ids: _array(np.array(None)), 'label cannot be decoded.*of no array of numbers'),
        (lambda ids: _array(ids) + b'more', 'label cannot be decoded'),
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
    given = inputs.Input('x', lambda: io.BytesIO(file.getvalue()), upright=True, bits=16)
    assert given.size() == expected.shape[:2]


@pytest.mark.parametrize('kind', ['png', 'jpeg', 'webp', 'bmp', 'gif', 'tiff'])
def test_bytes_behind_the_picture_are_none_of_it(picture, rng, kind):
    """As in a motion photo: a JPEG with a video behind it."""
    data = _save(Image.fromarray(picture), format=kind)
    image = codec.decode_image(data, 'a')
    for length in (1, 100, 70_000):
        for _ in range(5):
            tail = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
            np.testing.assert_array_equal(codec.decode_image(data + tail, 'a'), image)
    np.testing.assert_array_equal(codec.decode_image(data + data[:-9], 'a'), image)


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9])
@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'restart_marker_blocks': 2}])
def test_a_jpeg_with_an_early_end_is_refused(picture, share, options):
    """A whole file by its markers, of which decoders fill the rest of the first scan with grey."""
    data = _save(Image.fromarray(picture), format='jpeg', quality=95, **options)
    start = data.find(b'\xff\xda') + 14
    stop = data.find(b'\xff\xc4', start) if 'progressive' in options else len(data) - 2
    cut = data[: start + int(share * (stop - start))].rstrip(b'\xff')
    with pytest.raises(InputError, match='street: the image cannot be decoded'):
        codec.decode_image(cut + data[stop:], 'street')


def test_a_grey_jpeg_is_complete():
    """Blocks that are grey as those which decoders fill in."""
    for size in ((64, 80, 3), (33, 41, 3), (64, 80)):
        data = _save(Image.fromarray(np.full(size, 128, np.uint8)), format='jpeg')
        assert (codec.decode_image(data, 'a') == 128).all()


def _bands(samples, photometric):
    """A TIFF whose bands have no stated colours, or another number of them."""
    data = bytearray(imagecodecs.tiff_encode(samples, photometric='rgb'))
    entry = data.find(struct.pack('<HHI', 262, 3, 1))
    data[entry + 8 : entry + 10] = struct.pack('<H', photometric)
    return bytes(data)


def test_bands_without_a_meaning_are_the_colours(picture):
    """Three or four bands stored as MINISBLACK (1), as remote sensing does."""
    for samples in (picture, np.dstack([picture, picture[..., 0]])):
        np.testing.assert_array_equal(codec.decode_image(_bands(samples, 1), 'a'), picture)
    with pytest.raises(InputError, match=r'the image cannot be decoded.*has 5 bands; save three'):
        codec.decode_image(_bands(np.dstack([picture, picture[..., :2]]), 1), 'a')
    floats = imagecodecs.tiff_encode(picture.astype(np.float32), photometric='rgb')
    with pytest.raises(InputError, match='32-bit floating-point numbers; supported are unsigned'):
        codec.decode_image(floats, 'a')


def _planes(picture):
    planes = np.moveaxis(picture, -1, 0).copy()
    return imagecodecs.tiff_encode(planes, photometric='rgb', planarconfig='separate')


def test_tiffs_of_other_kinds(picture, ids):
    grey = picture[..., 0]
    for data, expected in (
        (_save(_palette(ids % 4), format='tiff'), np.array(_palette(ids % 4).convert('RGB'))),
        (_save(Image.fromarray(grey > 99), format='tiff'), 255 * np.dstack([grey > 99] * 3)),
        (imagecodecs.tiff_encode(picture.astype(np.uint16) * 257, photometric='rgb'), picture),
        (_planes(picture), picture),
        (imagecodecs.tiff_encode(grey, photometric='miniswhite'), 255 - np.dstack([grey] * 3)),
    ):
        np.testing.assert_array_equal(codec.decode_image(data, 'a'), expected)


def test_the_size_is_checked_before_decoding(picture):
    """And by what decodes: 12,000 x 12,000 pixels of WebP or GIF are a few kilobytes."""
    for kind in ('png', 'jpeg', 'webp', 'bmp', 'gif', 'tiff'):
        data = _save(Image.fromarray(picture), format=kind)
        assert codec.image_size(data, 'a', max_pixels=37 * 53) == (37, 53)
        codec.decode_image(data, 'a', max_pixels=37 * 53)
        for read in (codec.decode_image, codec.decode_upright, codec.image_size):
            with pytest.raises(codec.TooLarge, match='a: the image has 37 x 53 pixels, more than'):
                read(data, 'a', max_pixels=37 * 53 - 1)


def test_no_decoder_guesses_the_format():
    """What guesses may take a file for another format than the one whose size was checked."""
    guess = re.compile(r'\bimdecode\(|\bimread\(|\bImage\.open\(|imagecodecs\.imread')
    found = {
        path.name
        for folder in ('data', 'prediction', 'serving')
        for path in (ROOT / 'ggcf_jax' / folder).rglob('*.py')
        if guess.search(path.read_text())
    }
    # Reads the EXIF header alone; read what was written here.
    assert found <= {'orientation.py', 'outputs.py', 'examples.py'}


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (b'', 'an empty file'),
        (b'\0\0\0\x1cftypheic' + bytes(50), "a file of type 'heic' .AVIF, HEIC or a video"),
        (b'  <!DOCTYPE html><html>', 'a web page'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'a pointer of Git LFS .run git lfs pull'),
        (b'\x00\x01\x02', 'no image, or one of another format; supported are PNG, JPEG, TIFF'),
    ],
)
def test_what_a_file_is_instead(data, reason):
    with pytest.raises(InputError, match=f'a: the image cannot be decoded.*it is {reason}'):
        codec.decode_image(data, 'a')
