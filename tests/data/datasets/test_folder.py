import cv2
import numpy as np
import pytest

from ggcf_jax import data
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.errors import InputError
from tests.helpers import load_config

CLASSES = 'name, red, green, blue, ids\nroad, 128, 64, 128, 7 8\ncar, 0, 0, 142, 26\n'


@pytest.fixture
def folder(tmp_path, rng):
    """Three + two pairs, with ids 7, 8, 26 and 255."""
    root = tmp_path / 'mine'
    for split, count in (('train', 3), ('validation', 2)):
        for i in range(count):
            image, label = root / split / 'images' / 'a', root / split / 'labels' / 'a'
            image.mkdir(parents=True, exist_ok=True)
            label.mkdir(parents=True, exist_ok=True)
            pixels = rng.choice(np.array([7, 8, 26, 255], np.uint8), (20 + i, 30))
            cv2.imwrite(str(image / f'{i}.jpg'), np.full((20 + i, 30, 3), 40 * i, np.uint8))
            cv2.imwrite(str(label / f'{i}.png'), pixels)
    (root / 'classes.csv').write_text(CLASSES)
    return root


def _build(root, tmp_path, **changes):
    config = load_config('folder').data
    config.manual_dir, config.data_dir = str(root), str(tmp_path / 'derived')
    config.update_from_flattened_dict(changes)
    return data.build(config)


def test_pairs_classes_and_ids(folder, tmp_path):
    dataset = _build(folder, tmp_path)
    assert dataset.classes == ('road', 'car')
    assert dataset.colors == ((128, 64, 128), (0, 0, 142))
    source = dataset.source('train')
    assert [source[i]['name'] for i in range(len(source))] == ['0', '1', '2']
    raw = cv2.imread(str(folder / 'train' / 'labels' / 'a' / '1.png'), cv2.IMREAD_UNCHANGED)
    expected = np.select([raw == 255, raw == 26], [IGNORE, 1], 0)
    np.testing.assert_array_equal(dataset.decode(source[1])['label'], expected)
    assert set(dataset.sources) == {'train', 'validation'}


def test_list_files(folder, tmp_path):
    (folder / 'some.txt').write_text(
        '# two of them\ntrain/images/a/2.jpg train/labels/a/2.png\n\n'
        'train/images/a/0.jpg\ttrain/labels/a/0.png\n'
    )
    source = _build(folder, tmp_path, **{'splits.train': 'some.txt'}).source('train')
    assert [source[i]['name'] for i in range(len(source))] == ['2', '0']


def test_a_text_file_of_names_numbers_the_classes(folder, tmp_path):
    (folder / 'names.txt').write_text('\n'.join(f'class {i}' for i in range(30)))
    dataset = _build(folder, tmp_path, classes='names.txt')
    assert dataset.classes[26] == 'class 26'
    assert len(set(dataset.colors)) == 30
    assert dataset.decoder.label_map[[26, 255]].tolist() == [26, IGNORE]


def test_changed_files_change_the_identity(folder, tmp_path):
    before = _build(folder, tmp_path).identity
    assert _build(folder, tmp_path).identity == before
    cv2.imwrite(str(folder / 'train/labels/a/0.png'), np.full((20, 30), 7, np.uint8))
    assert _build(folder, tmp_path).identity != before


def _append(folder, text):
    with (folder / 'classes.csv').open('a') as file:
        file.write(text)


@pytest.mark.parametrize(
    ('damage', 'changes', 'message'),
    [
        (lambda f: (f / 'classes.csv').unlink(), {}, 'there is no file .*classes.csv'),
        (lambda f: (f / 'classes.csv').write_text(''), {}, 'no classes; write one name a line'),
        (lambda f: _append(f, 'car, 1, 2, 3, 9\n'), {}, "class name 'car' is .* duplicated"),
        (lambda f: _append(f, 'bus, 1, 2, 3, 26\n'), {}, "value 26 of class 'bus' belongs to an"),
        (lambda f: _append(f, 'bus, 1, 2, 3, \n'), {}, "class 'bus' has no ids"),
        (lambda f: _append(f, 'bus, 1, 2, 300, 9\n'), {}, "blue '300' of class 'bus' is not in 0"),
        (lambda f: (f / 'train/labels/a/1.png').unlink(), {}, '1 of 3 images have no label, .*1.p'),
        (lambda f: None, {'splits.train': 'a,b'}, 'splits.train=.*a is not a directory'),
        (lambda f: None, {'splits.train': ''}, 'splits.train is empty'),
        (lambda f: None, {'splits.train': 'no.txt'}, 'no.txt is not a file'),
        (lambda f: (f / 'l.txt').write_text('a'), {'splits.train': 'l.txt'}, "l.txt:1: 'a' is not"),
        (lambda f: (f / 'l.txt').write_text('a b'), {'splits.train': 'l.txt'}, 'no file .*a'),
        (lambda f: (f / 'l.txt').write_text(''), {'splits.train': 'l.txt'}, 'no images found'),
        (
            lambda f: [(f / name).mkdir() for name in 'ab'],
            {'splits.train': 'a,b'},
            "splits.train='a,b': no images found; supported extensions: ",
        ),
        (lambda f: None, {'ignore': (300,)}, r'ignore=\(300,\) must hold values in 0..255'),
    ],
)
def test_bad_input(folder, tmp_path, damage, changes, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        _build(folder, tmp_path, **changes)


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match=r'there is no file .*classes.csv'):
        _build(tmp_path, tmp_path)
    with pytest.raises(InputError, match='is not a directory'):
        _build(tmp_path / 'nowhere', tmp_path)
