"""Mutations of image and label files of every format: refused in one line, or decoded in full.

    pytest -m soak tests/data/records/test_damaged_files.py -s

makes `MUTATIONS` of every kind of file and prints what became of them; the suite takes a few.
"""

import io
import multiprocessing
import pathlib
import re
import zlib
from collections import Counter

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image

from ggcf_jax.data.records import codec, depth
from ggcf_jax.errors import InputError

MUTATIONS = 5_000
SEED = 20_26
MAX_PIXELS = 1 << 20  # allowed in these tests, where images have 64 x 96
# Decoding takes up to 16 bytes a pixel; the rest is what libraries allocate once.
MAX_BYTES = 16 * MAX_PIXELS + (96 << 20)


def _pillow(array, kind, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _picture():
    """Noise without a constant block, smooth enough for JPEG."""
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8), (0, 0), 1)
    return cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX)


def _palette(ids):
    image = Image.fromarray(ids, mode='P')
    image.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
    return image


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _files() -> dict[str, bytes]:
    """A file of every format and of the forms that are decoded in another way."""
    rgb = _picture()
    grey, ids = rgb[..., 0], rgb[..., 0] % 20
    return {
        'png': _pillow(rgb, 'PNG'),
        'png palette': _pillow(_palette(ids), 'PNG'),
        'png grey': _pillow(grey, 'PNG'),
        'png 16 bits': cv2.imencode('.png', rgb.astype(np.uint16) * 257)[1].tobytes(),
        'png transparent': _pillow(np.dstack([rgb, grey]), 'PNG'),
        'jpeg': _pillow(rgb, 'JPEG', quality=90),
        'jpeg progressive': _pillow(rgb, 'JPEG', progressive=True),
        'jpeg restarts': _pillow(rgb, 'JPEG', restart_marker_blocks=2),
        'jpeg grey': _pillow(grey, 'JPEG'),
        'jpeg cmyk': _pillow(Image.fromarray(rgb).convert('CMYK'), 'JPEG'),
        'webp': _pillow(rgb, 'WEBP'),
        'webp lossless': _pillow(rgb, 'WEBP', lossless=True),
        'bmp': _pillow(rgb, 'BMP'),
        'bmp palette': _pillow(_palette(ids), 'BMP'),
        'gif': _pillow(_palette(ids), 'GIF'),
        'tiff': _pillow(rgb, 'TIFF'),
        'tiff lzw': _pillow(rgb, 'TIFF', compression='tiff_lzw'),
        'tiff deflate': _pillow(rgb, 'TIFF', compression='tiff_deflate'),
        'tiff jpeg': _pillow(rgb, 'TIFF', compression='jpeg'),
        'tiff palette': _pillow(_palette(ids), 'TIFF'),
        'tiff tiles': imagecodecs.tiff_encode(rgb, photometric='rgb', tile=(32, 32)),
        'npy': _npy(ids.astype(np.int32)),
    }


FILES = _files()


def _mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes: of bits, bytes or numbers, cuts, insertions, repetitions, tails."""
    new = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(new))) if rng.random() < 0.7 else int(rng.integers(64))
        at = min(at, len(new) - 1)
        length = int(rng.integers(1, 40))
        noise = rng.integers(0, 256, length, np.uint8).tobytes()
        kind = rng.integers(8)
        if kind == 0:
            new[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            new[at : at + length] = noise[: len(new) - at]
        elif kind == 2:  # a number, of either byte order
            number = rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
            order = '<>'[rng.integers(2)]
            size = rng.choice([2, 4])
            number = int(number) & (256 ** int(size) - 1)
            new[at : at + size] = np.array(number, f'{order}u{size}').tobytes()
        elif kind == 3:
            del new[at:]
        elif kind == 4:
            del new[at : at + length]
        elif kind == 5:
            new[at:at] = noise
        elif kind == 6:
            new[at:at] = new[at : at + length]
        else:
            new += noise
        if not new:
            break
    return bytes(new)


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums, so that decoders come to the damage inside."""
    new, at = bytearray(data), 8
    while at + 12 <= len(new):
        length = int.from_bytes(new[at : at + 4], 'big')
        stop = at + 8 + length
        if stop + 4 > len(new):
            break
        new[stop : stop + 4] = zlib.crc32(new[at + 4 : stop]).to_bytes(4, 'big')
        at = stop + 4
    return bytes(new)


def _fill(name: str) -> int | None:
    """The value that decoders of a format put where data are missing.

    Other constant blocks are what the damaged data say. Lossy WebP predicts any value from its
    neighbours, and reports missing data.
    """
    return None if name == 'webp' else 128 if 'jpeg' in name else 0


def _filled_blocks(pixels: np.ndarray, value: int | None) -> int:
    """Number of blocks of 8 x 8 that have this one value."""
    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    if not height * width:
        return 0
    blocks = pixels[:height, :width].reshape(height // 8, 8, width // 8, 8, -1)
    return int((blocks == value).all((1, 3, 4)).sum())


def _outcome(call, data: bytes, fill: int | None) -> str:
    """'refused' or 'decoded'; anything else is a fault."""
    try:
        pixels = call(data)
    except InputError as error:
        text = str(error)
        assert text.startswith('photo 7: the ') and '\n' not in text, text
        return 'refused'
    height, width = pixels.shape[:2]
    return 'filled' if _filled_blocks(pixels, fill) > height * width // 64 // 20 else 'decoded'


def _image(data: bytes) -> np.ndarray:
    image = codec.decode_image(data, 'photo 7', max_pixels=MAX_PIXELS)
    assert image.shape[:2] == codec.image_size(data, 'photo 7')
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    upright = codec.decode_upright(data, 'photo 7', max_pixels=MAX_PIXELS)
    assert sorted(upright.shape) == sorted(image.shape)
    largest = codec.largest_of_16_bits(data, 'photo 7')
    if largest is not None:
        bits = depth.needed_bits(largest)
        assert codec.decode_image(data, 'photo 7', bits=bits).shape == image.shape
    return image


def _label(data: bytes) -> np.ndarray:
    label = codec.decode_label(data, 'photo 7')
    assert label.shape[:2] == codec.label_size(data, 'photo 7')
    assert label.ndim == 2 or label.shape[2] == 3
    return label


def mutations(name: str, count: int) -> Counter:
    """What became of `count` mutations of a file."""
    data = FILES[name]
    rng = np.random.default_rng([SEED, list(FILES).index(name)])
    codec.MAX_PIXELS = MAX_PIXELS  # in a process of its own, or by a patch
    found: Counter = Counter()
    for _ in range(count):
        mutated = _mutate(data, rng)
        if name.startswith('png') and rng.random() < 0.5:
            mutated = _with_checksums(mutated)
        found['image', _outcome(_image, mutated, _fill(name))] += 1
        found['label', _outcome(_label, mutated, None)] += 1
    return found


def test_the_files_decode():
    for name, data in FILES.items():
        if name != 'npy':
            assert _image(data).shape == (64, 96, 3) and not _filled_blocks(
                _image(data), _fill(name)
            ), name
        if name not in ('png 16 bits', 'tiff jpeg') and name.split()[0] not in ('jpeg', 'webp'):
            assert _label(data).shape[:2] == (64, 96), name


@pytest.mark.parametrize('name', FILES)
def test_some_mutations(name, monkeypatch):
    monkeypatch.setattr(codec, 'MAX_PIXELS', MAX_PIXELS)
    found = mutations(name, 100)
    assert found['image', 'filled'] == 0
    assert sum(found.values()) == 200


def _peak() -> int:
    """Largest memory of this process in bytes, since it was last asked for."""
    status = pathlib.Path('/proc/self/status').read_text()
    pathlib.Path('/proc/self/clear_refs').write_text('5')
    return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) << 10


def _process(name: str, count: int, queue) -> None:
    mutations(name, 20)  # what libraries allocate once
    _peak()
    before = _peak()
    found = mutations(name, count)
    queue.put((found, _peak() - before))


@pytest.mark.soak
@pytest.mark.parametrize('name', FILES)
def test_many_mutations(name):
    """In a process of its own: a decoder that crashes, hangs or takes memory is found out, too."""
    spawn = multiprocessing.get_context('spawn')
    queue = spawn.SimpleQueue()
    process = spawn.Process(target=_process, args=(name, MUTATIONS, queue))
    process.start()
    process.join(1800)
    alive = process.is_alive()
    process.kill()
    assert not alive, 'it hangs'
    assert process.exitcode == 0
    found, memory = queue.get()
    print(f'{name}: {MUTATIONS} mutations, {dict(found)}, {memory / 2**20:.0f} MiB')
    assert found['image', 'filled'] == 0
    assert memory < MAX_BYTES
