import os
import shutil

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from ggcf_jax import data
from ggcf_jax.data.datasets import camvid
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.errors import InputError


def _config(folder, tmp_path):
    manual_dir = None if folder is None else str(folder)
    return ConfigDict(
        {'name': 'camvid', 'manual_dir': manual_dir, 'data_dir': str(tmp_path / 'prepared')}
    )


def _label(folder, name='train_1'):
    return folder / 'trainannot' / f'{name}.png'


def test_round_trip(camvid_folder, tmp_path):
    dataset = data.build(_config(camvid_folder, tmp_path))
    assert {split: len(source) for split, source in dataset.sources.items()} == {
        'train': 6,
        'validation': 3,
    }
    for split, folder in (('train', 'train'), ('validation', 'val')):
        source = dataset.source(split)
        names = set()
        for i in range(len(source)):
            example = dataset.decode(source[i])
            path = camvid_folder / folder / f'{example["name"]}.png'
            np.testing.assert_array_equal(example['image'], cv2.imread(str(path))[..., ::-1])
            path = camvid_folder / f'{folder}annot' / f'{example["name"]}.png'
            raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(example['label'], np.where(raw == 11, IGNORE, raw))
            names.add(example['name'])
        assert len(names) == len(source)


def test_changed_files_are_prepared_anew(camvid_folder, tmp_path):
    data.build(_config(camvid_folder, tmp_path))
    image = np.zeros((40, 56, 3), np.uint8)
    cv2.imwrite(str(camvid_folder / 'train' / 'train_1.png'), image)
    dataset = data.build(_config(camvid_folder, tmp_path))
    examples = {
        e['name']: e['image']
        for e in map(dataset.decode, map(dataset.source('train').__getitem__, range(6)))
    }
    assert not examples['train_1'].any()


def test_another_folder_is_other_data(camvid_folder, tmp_path):
    """Even if names, sizes and times of its files are those of the first."""
    first = data.build(_config(camvid_folder, tmp_path))
    other = tmp_path / 'other'
    shutil.copytree(camvid_folder, other)
    assert data.build(_config(other, tmp_path)).identity == first.identity
    path = other / 'trainannot' / 'train_1.png'
    stat = path.stat()
    content = path.read_bytes()
    path.write_bytes(_label(camvid_folder, 'train_2').read_bytes().ljust(len(content), b'\0'))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size >= len(content)
    second = data.build(_config(other, tmp_path))
    assert second.identity != first.identity
    labels = [
        {e['name']: e['label'] for e in map(d.decode, map(d.source('train').__getitem__, range(6)))}
        for d in (first, second)
    ]
    np.testing.assert_array_equal(labels[1]['train_1'], labels[0]['train_2'])
    assert not np.array_equal(labels[1]['train_1'], labels[0]['train_1'])


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda f: _label(f).unlink(), r'1 images in .*train have no label .*train_1.png'),
        (
            lambda f: _label(f).write_bytes(b'no PNG'),
            'train_1.png: the label cannot be decoded',
        ),
        (
            lambda f: (f / 'train' / 'train_1.png').write_bytes(b''),
            'train_1.png: the image cannot be decoded',
        ),
        (
            lambda f: cv2.imwrite(str(_label(f)), np.full((40, 56), 17, np.uint8)),
            r'train_1.png: label values 17 \(.* pixels\) are outside',
        ),
        (
            lambda f: cv2.imwrite(str(_label(f)), np.zeros((40, 55), np.uint8)),
            'train_1.png: the image is 40 x 56 but its label is 40 x 55',
        ),
        (
            lambda f: cv2.imwrite(str(_label(f)), np.zeros((40, 56, 3), np.uint8)),
            'train_1.png: the label is a 8-bit colour PNG',
        ),
        (lambda f: [p.unlink() for p in (f / 'val').iterdir()], 'val holds no .jpg or .png'),
        (lambda f: (f / 'val').rename(f / 'validation'), 'has no folder val/'),
    ],
)
def test_bad_folder_is_refused_before_anything_is_written(camvid_folder, tmp_path, damage, message):
    damage(camvid_folder)
    with pytest.raises(InputError, match=message):
        data.build(_config(camvid_folder, tmp_path))
    assert not (tmp_path / 'prepared').exists()


def test_missing_manual_dir(tmp_path):
    with pytest.raises(InputError, match=r'pass --config\.data\.manual_dir=DIR'):
        data.build(_config(None, tmp_path))
    with pytest.raises(InputError, match="nowhere' is not a directory"):
        data.build(_config(tmp_path / 'nowhere', tmp_path))


def test_unknown_data_set(tmp_path):
    config = _config(None, tmp_path)
    config.name = 'camvit'
    with pytest.raises(InputError, match=r"config.data.name='camvit' is not one of .*camvid"):
        data.build(config)


def test_real_images(real_camvid, tmp_path):
    dataset = data.build(_config(real_camvid, tmp_path))
    assert len(dataset.source('train')) == 367
    assert len(dataset.source('validation')) == 101
    example = dataset.decode(dataset.source('validation')[100])
    assert example['image'].shape == (360, 480, 3)
    assert set(np.unique(example['label'])) <= {*range(len(camvid.CLASSES)), IGNORE}
