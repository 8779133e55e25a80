import io
import os
import pathlib
import zipfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from ggcf_jax import data
from ggcf_jax.data.datasets import ade20k
from ggcf_jax.data.records.codec import IGNORE, NOT_ALLOWED
from ggcf_jax.errors import InputError
from tests.helpers import train_with_main

ROOT = 'ADEChallengeData2016'
IMAGE = f'{ROOT}/images/training/ADE_train_00000002.jpg'
LABEL = f'{ROOT}/annotations/training/ADE_train_00000002.png'
# One image of each kind there may be: (size, PIL mode).
KINDS = (((40, 64), 'RGB'), ((33, 57), 'L'), ((24, 24), 'CMYK'), ((51, 16), 'RGB'))


@pytest.fixture
def folder(tmp_path, rng) -> pathlib.Path:
    """The zip in its true layout: four training and two validation images of any size."""
    root = tmp_path / 'zips'
    root.mkdir()
    members = {f'{ROOT}/sceneCategories.txt': b'', f'{ROOT}/objectInfo150.txt': object_info()}
    for folder, prefix, kinds in (
        ('training', 'ADE_train', KINDS),
        ('validation', 'ADE_val', KINDS[:2]),
    ):
        for i, (size, mode) in enumerate(kinds, 1):
            name = f'{prefix}_{i:08d}'
            ids = rng.integers(0, 151, size, dtype=np.uint8)
            members[f'{ROOT}/images/{folder}/{name}.jpg'] = jpeg(size, mode)
            members[f'{ROOT}/annotations/{folder}/{name}.png'] = png(ids)
    write(root, members)
    return root


def object_info(names=ade20k.CLASSES) -> bytes:
    """The published table: tab-separated, synonyms and blanks behind the name."""
    rows = [f'{i}\t0.1\t10\t1\t0\t{name}, another word ' for i, name in enumerate(names, 1)]
    return '\n'.join(['Idx\tRatio\tTrain\tVal\tStuff\tName', *rows, '']).encode()


def jpeg(size, mode) -> bytes:
    """Left half red (grey where there are no colours), right half white."""
    pixels = np.full((*size, 3), 255, np.uint8)
    pixels[:, : size[1] // 2] = (200, 30, 30)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, 'jpeg', quality=95, subsampling=0)
    return buffer.getvalue()


def png(ids: np.ndarray) -> bytes:
    return cv2.imencode('.png', ids)[1].tobytes()


def write(root, members):
    with zipfile.ZipFile(root / f'{ROOT}.zip', 'w') as file:
        for name, content in members.items():
            file.writestr(name, content)


def read(root) -> dict[str, bytes]:
    with zipfile.ZipFile(root / f'{ROOT}.zip') as file:
        return {name: file.read(name) for name in file.namelist()}


def config(folder, tmp_path) -> ConfigDict:
    manual_dir = None if folder is None else str(folder)
    return ConfigDict(
        {'name': 'ade20k', 'manual_dir': manual_dir, 'data_dir': str(tmp_path / 'prepared')}
    )


def test_round_trip(folder, tmp_path, capsys):
    dataset = data.build(config(folder, tmp_path))
    assert 'classes' not in capsys.readouterr().err
    members = read(folder)
    assert list(dataset.sources) == ['train', 'validation']
    for split, published, kinds in (
        ('train', 'training/ADE_train', KINDS),
        ('validation', 'validation/ADE_val', KINDS[:2]),
    ):
        source = dataset.source(split)
        records = {source[i]['name']: source[i] for i in range(len(source))}
        assert len(records) == len(source) == len(kinds)
        for i, (size, mode) in enumerate(kinds, 1):
            stem = f'{published}_{i:08d}'
            record = records[stem.split('/')[1]]
            assert record['image'] == members[f'{ROOT}/images/{stem}.jpg']
            assert record['label'] == members[f'{ROOT}/annotations/{stem}.png']
            example = dataset.decode(record)
            raw = cv2.imdecode(np.frombuffer(record['label'], np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(
                example['label'], np.where(raw == 0, IGNORE, raw.astype(int) - 1)
            )
            left = example['image'][:, : size[1] // 4].reshape(-1, 3).mean(0)
            expected = (81, 81, 81) if mode == 'L' else (200, 30, 30)
            np.testing.assert_allclose(left, expected, atol=4)
            assert example['image'].shape == (*size, 3)
            assert example['image'][:, -size[1] // 4 :].min() > 245


@pytest.mark.slow
def test_main_trains_on_the_zip(folder, tmp_path):
    train_with_main('ade20k', folder, tmp_path, {'data.class_uniform': 0.5})


def test_plain_tfds_reads_it(folder, tmp_path):
    source = data.build(config(folder, tmp_path)).source('train')
    builder = tfds.builder_from_directory(str(tmp_path / 'prepared' / 'ade20k' / '1.0.0'))
    assert builder.info.full_name == 'ade20k/1.0.0'
    plain = builder.as_data_source('train')
    for i in range(len(source)):
        raw = cv2.imdecode(np.frombuffer(source[i]['label'], np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(plain[i]['label'][..., 0], raw)


def test_prepared_set_needs_no_zip(folder, tmp_path):
    data.build(config(folder, tmp_path))
    assert len(data.build(config(None, tmp_path)).source('train')) == 4


def test_classes():
    assert len(ade20k.CLASSES) == len(set(ade20k.CLASSES)) == 150
    assert ade20k.CLASSES[0] == 'wall' and ade20k.CLASSES[149] == 'flag'
    assert ade20k.COLORS[2] == (6, 230, 230) and ade20k.COLORS[149] == (92, 0, 255)
    assert all(0 <= value <= 255 for color in ade20k.COLORS for value in color)
    assert ade20k.LABEL_MAP[0] == IGNORE
    assert ade20k.LABEL_MAP[1:151].tolist() == list(range(150))
    assert (ade20k.LABEL_MAP[151:] == NOT_ALLOWED).all()


@pytest.mark.parametrize('names', [ade20k.CLASSES[:149], ('ceiling', *ade20k.CLASSES[1:])])
def test_other_classes_are_warned_of(folder, tmp_path, names, capsys):
    write(folder, read(folder) | {f'{ROOT}/objectInfo150.txt': object_info(names)})
    data.build(config(folder, tmp_path))
    assert f'has {len(names)} classes and differs' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('member', 'content', 'message'),
    [
        (LABEL, None, f'no labels for 1 of its 4 images of training; .*{LABEL}'),
        (
            LABEL,
            png(np.full((33, 57), 151, np.uint8)),
            rf'{LABEL}: label values 151 \(1,88',
        ),
        (LABEL, png(np.zeros((33, 56), np.uint8)), f'{IMAGE}: the image is 33 x 57 but'),
        (
            LABEL,
            png(np.zeros((33, 57, 3), np.uint8)),
            f'{LABEL}: the label (has shape|is a 8-bit colour)',
        ),
        (IMAGE, b'\xff\xd8\xff', f'{IMAGE}: the image cannot be decoded'),
    ],
)
def test_bad_members_leave_nothing_that_loads(folder, tmp_path, member, content, message):
    members = read(folder) | {member: content}
    write(folder, {name: value for name, value in members.items() if value is not None})
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            data.build(config(folder, tmp_path))
        assert not list((tmp_path / 'prepared').rglob('*array_record*'))


def test_truncated_or_missing_zip(folder, tmp_path):
    path = folder / f'{ROOT}.zip'
    os.truncate(path, path.stat().st_size - 30)
    with pytest.raises(InputError, match=r'2016\.zip cannot be read .*bytes.*download it again'):
        data.build(config(folder, tmp_path))
    path.rename(folder / 'ADE20K.zip')
    with pytest.raises(InputError, match=r'has no ADEChallengeData2016\.zip; .* ADE20K\.zip'):
        data.build(config(folder, tmp_path))
    with pytest.raises(InputError, match=r'pass --config\.data\.manual_dir=DIR'):
        data.build(config(None, tmp_path))
    assert not (tmp_path / 'prepared').exists()


def test_counts_are_compared_with_the_published_ones(folder, tmp_path, capsys):
    data.build(config(folder, tmp_path))
    assert 'ade20k validation has 2 images, the published data set has 2000' in (
        capsys.readouterr().err
    )
