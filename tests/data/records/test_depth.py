import dataclasses
import io
import threading

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image

from ggcf_jax import config as config_lib
from ggcf_jax import data, doctor
from ggcf_jax.data.records import codec, compact, depth
from ggcf_jax.data.scan import scan
from ggcf_jax.errors import InputError
from ggcf_jax.prediction import inputs
from ggcf_jax.serving.answers import Answers
from tests.helpers import load_config
from tests.test_serve import VIEWER, decode


@pytest.fixture
def picture(rng):
    """Every value from 0 to 255 is in it."""
    grey = rng.permutation(np.arange(2 * 256) % 256).reshape(16, 32)
    return np.dstack([grey, grey.T.reshape(16, 32), grey[::-1]]).astype(np.uint8)


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    """As in a process that has printed no warning."""
    monkeypatch.setattr(depth, '_told', threading.Lock())


def _png(samples):
    return imagecodecs.png_encode(np.ascontiguousarray(samples))


def _tiff(samples):
    return imagecodecs.tiff_encode(samples, photometric='rgb')


def _with_alpha(samples):
    return np.dstack([samples, np.full(samples.shape[:2], 65535, np.uint16)])


KINDS = {
    'PNG': _png,
    'PNG, transparent': lambda x: _png(_with_alpha(x)),
    'PNG, grey': lambda x: _png(x[..., 0]),
    'PNG, grey and transparent': lambda x: _png(_with_alpha(x[..., :1])),
    'TIFF': _tiff,
    'TIFF, transparent': lambda x: _tiff(_with_alpha(x)),
    'TIFF, grey': lambda x: imagecodecs.tiff_encode(x[..., 0], photometric='minisblack'),
    'TIFF, planes': lambda x: imagecodecs.tiff_encode(
        np.moveaxis(x, -1, 0).copy(), photometric='rgb', planarconfig='separate'
    ),
}


@pytest.mark.parametrize('bits', [8, 10, 12, 16])
@pytest.mark.parametrize('kind', KINDS)
def test_the_used_bits_become_eight(kind, bits, picture, capsys):
    """The highest value becomes white, whatever the file says about transparency."""
    samples = (picture.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)
    content = KINDS[kind](samples)
    expected = (samples >> bits - 8).astype(np.uint8)
    if 'grey' in kind:
        expected = np.repeat(expected[..., :1], 3, -1)
    assert expected.max() == 255 and expected.min() == 0
    np.testing.assert_array_equal(codec.decode_image(content, 'a', bits=bits), expected)
    np.testing.assert_array_equal(codec.decode_upright(content, 'a', bits=bits), expected)
    assert codec.largest_of_16_bits(content, 'a') == 2**bits - 1
    assert capsys.readouterr().err == ''
    if bits == 8:
        return
    message = f'street 7: the 16-bit image has values up to {2**bits - 1}, but .*set it to {bits}'
    with pytest.raises(InputError, match=message):
        codec.decode_image(content, 'street 7', bits=bits - 1)


def test_white_may_be_zero(picture):
    """The range is that of the values as they are stored."""
    samples = picture[..., 0].astype(np.uint16) << 4
    content = imagecodecs.tiff_encode(samples, photometric='miniswhite')
    found = codec.decode_image(content, 'a', bits=12)
    np.testing.assert_array_equal(found, 255 - np.dstack([picture[..., 0]] * 3))
    full = imagecodecs.tiff_encode(samples << 4, photometric='miniswhite')
    np.testing.assert_array_equal(codec.decode_image(full, 'a'), found)


def test_other_depths_have_one_range(picture):
    """8 bits and fewer are what they are, whatever is said about 16."""
    bilevel = io.BytesIO()
    Image.fromarray(picture[..., 0] > 99).save(bilevel, 'tiff')
    for content in (_png(picture), bilevel.getvalue(), cv2.imencode('.jpg', picture)[1].tobytes()):
        assert codec.largest_of_16_bits(content, 'a') is None
        found = codec.decode_image(content, 'a', bits=10)
        np.testing.assert_array_equal(found, codec.decode_image(content, 'a'))


def test_an_almost_black_image_is_told_once(picture, capsys):
    dark = _png(picture.astype(np.uint16) * 4)  # 10 bits
    for name in ('street 1', 'street 2'):
        assert codec.decode_image(dark, name).max() == 3
    assert capsys.readouterr().err.splitlines() == [
        'warning: street 1: the largest value of the 16-bit image is 1020 of 65535, so that it '
        'becomes almost black. If all images are like it, set --config.data.image_bits=10 (now '
        '16); --mode=doctor finds the number for a data set'
    ]


@pytest.mark.parametrize('most', [0, 16384, 65535])
def test_normal_and_black_images_are_not_told(most, capsys):
    codec.decode_image(_png(np.full((4, 5, 3), most, np.uint16)), 'street')
    assert capsys.readouterr().err == ''


@pytest.fixture
def folder(tmp_path, picture):
    """Two training images and one for validation, of 12 bits."""
    root = tmp_path / 'mine'
    for split, count in (('train', 2), ('validation', 1)):
        for i in range(count):
            for kind in ('images', 'labels'):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
            samples = np.minimum(picture.astype(np.uint16) << 4, 4000 + i)
            (root / split / 'images' / f'{i}.png').write_bytes(_png(samples))
            cv2.imwrite(str(root / split / 'labels' / f'{i}.png'), picture[..., 0] % 2)
    (root / 'classes.txt').write_text('even\nodd\n')
    return root


def _config(folder, tmp_path, bits):
    config = load_config('folder')
    config.data.manual_dir, config.data.data_dir = str(folder), str(tmp_path / 'data')
    config.data.classes, config.data.image_bits = 'classes.txt', bits
    return config


def test_a_data_set_has_one_range(folder, tmp_path, picture):
    """Its images, its compact copy, and its identity, which copies and evaluations are named by."""
    full, scaled = (data.build(_config(folder, tmp_path, bits).data) for bits in (16, 12))
    assert full.identity != scaled.identity
    expected = np.minimum(picture, 4000 >> 4)
    record = scaled.source('train')[0]
    np.testing.assert_array_equal(scaled.decode(record)['image'], expected)
    assert full.decode(record)['image'].max() == 4000 >> 8
    largest = []
    for dataset in (full, scaled):
        made = compact.dataset(dataset, ['train'], directory=tmp_path / 'data', threads=1)
        largest.append(made.decode(made.source('train')[0])['image'].max())
    assert largest[0] < 30 and largest[1] > 230


@pytest.mark.parametrize(
    ('bits', 'kind', 'line'),
    [
        (16, 'warnings', 'so that they become almost black with config.data.image_bits=16: set'),
        (12, None, 'of 12 bits'),
        (10, 'errors', 'of 12 bits: set --config.data.image_bits=12, which is 10'),
    ],
)
def test_the_doctor_finds_the_range(bits, kind, line, folder, tmp_path):
    dataset = data.build(_config(folder, tmp_path, bits).data)
    scans = [scan(dataset, split, 1) for split in ('train', 'validation')]
    assert [look.deep for look in scans] == [2, 1]
    said = []
    found = doctor.Findings(dataclasses.make_dataclass('Progress', ['print'])(_keep(said)))
    doctor._judge_depth(scans, bits, found)
    assert len(said) == 1 and line in said[0]
    assert '3 images have 16 bits; their largest value is 4001 (' in said[0]
    assert 'train/images/1.png' in said[0]
    assert (found.errors, found.warnings) == (kind == 'errors', kind == 'warnings')


def _keep(said):
    return lambda text, style='': said.append(text)


def test_predictions_have_the_range_of_their_run(folder, picture):
    path = folder / 'train' / 'images' / '0.png'
    expected = np.minimum(picture, 4000 >> 4)
    found, full = (inputs.of_path(path, folder / 'out', bits=bits)[0] for bits in (12, 16))
    np.testing.assert_array_equal(found.decode(), expected)
    given = inputs.of_any(path, upright=True, bits=12)
    np.testing.assert_array_equal(given.decode(), expected)
    assert found.stamp() != full.stamp() and found.read().digest() != full.read().digest()
    viewer = dataclasses.replace(VIEWER, image_bits=12)
    answer = Answers(viewer).segment(path.read_bytes())
    np.testing.assert_array_equal(decode(answer['image']), expected)


@pytest.mark.parametrize('bits', [7, 17, 0, -1])
def test_impossible_bits_are_refused(bits):
    config = config_lib.default()
    config.data.image_bits = bits
    with pytest.raises(InputError, match=f'config.data.image_bits={bits} must be in .8, 16.'):
        config_lib.check(config, devices=1)
