import os
import pathlib
import shutil
import unicodedata

import cv2
import numpy as np
import pytest

from ggcf_jax import data, train
from ggcf_jax.data.datasets import class_file, pairing
from ggcf_jax.data.records import finder
from ggcf_jax.data.records.codec import IGNORE, NOT_ALLOWED
from ggcf_jax.errors import InputError
from ggcf_jax.workdir.metrics_log import read_rows
from tests.helpers import TINY_MODEL, load_config

ENDINGS = pairing.Endings.parse('_leftImg8bit,_rgb', '_gtFine_labelIds,_mask,_gt,_label,_L')
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


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('train/images,train/labels,2 0', ['2', '0']),
        ('train/images,train/labels,a/1.jpg', ['1']),
        ('train/images/*/[!1].jpg,train/labels/*/?.png', ['0', '2']),
        ('train/images/*/*.jpg,train/labels/*/*.png,1', ['1']),
        ('train/images/a/[12].jpg,train/labels/a/*.png', ['1', '2']),
        (
            'train/images,train/labels,1; validation/images,validation/labels',
            ['1', '0', '1'],
        ),
    ],
)
def test_patterns_and_names(folder, tmp_path, text, expected):
    source = _build(folder, tmp_path, **{'splits.train': text}).source('train')
    assert [source[i]['name'] for i in range(len(source))] == expected
    for i in range(len(source)):
        image, label = (pathlib.Path(source[i][k]) for k in ('image_file', 'label_file'))
        assert str(label) == str(image.with_suffix('.png')).replace('images', 'labels')


def test_lines_of_one_group_are_one_class(folder, tmp_path):
    (folder / 'classes.csv').write_text(
        'name,red,green,blue,ids,group\nroad,9,9,9,7,\ncar 1,1,2,3,8,car\ncar 2,4,5,6,26,car\n'
    )
    dataset = _build(folder, tmp_path)
    assert dataset.classes == ('road', 'car')
    assert dataset.colors == ((9, 9, 9), (1, 2, 3))
    assert dataset.decoder.label_map[[7, 8, 26]].tolist() == [0, 1, 1]
    assert dataset.decoder.label_colors == {(9, 9, 9): 0, (1, 2, 3): 1, (4, 5, 6): 1}


def test_a_text_file_of_names_numbers_the_classes(folder, tmp_path):
    (folder / 'names.txt').write_text('\n'.join(f'class {i}' for i in range(30)))
    dataset = _build(folder, tmp_path, classes='names.txt')
    assert dataset.classes[26] == 'class 26'
    assert len(set(dataset.colors)) == 30
    assert dataset.decoder.label_map[[26, 255]].tolist() == [26, IGNORE]


def test_changed_files_change_the_identity(folder, tmp_path):
    before = _build(folder, tmp_path).identity
    assert _build(folder, tmp_path).identity == before
    label = folder / 'train/labels/a/0.png'
    stat = label.stat()
    cv2.imwrite(str(label), np.full((20, 30), 7, np.uint8))
    label.write_bytes(label.read_bytes().ljust(stat.st_size, b'\0'))
    os.utime(label, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = _build(folder, tmp_path)
    assert label.stat().st_size == stat.st_size and label.stat().st_mtime_ns == stat.st_mtime_ns
    assert after.identity != before
    # The same data elsewhere are the same.
    shutil.copytree(folder, tmp_path / 'copy')
    assert _build(tmp_path / 'copy', tmp_path).identity == after.identity


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
        (lambda f: None, {'splits.train': 'a,b,c,d'}, "must be 'IMAGES,LABELS' or 'IMAGES,LABE"),
        (
            lambda f: None,
            {'splits.train': 'train/images/*/*.jpg,train/labels/a/*.png'},
            'the images have 2 wildcards and the labels 1; each wildcard',
        ),
        (lambda f: None, {'splits.train': 'no/*.jpg,no/*.png'}, 'no is not a directory'),
        (
            lambda f: None,
            {'splits.train': 'train/images/b/*.jpg,train/labels/b/*.png'},
            'train/images/b is not a directory',
        ),
        (
            lambda f: None,
            {'splits.train': 'train/images/*/*.png,train/labels/*/*.png'},
            'no images found; nothing in .*train/images matches the pattern',
        ),
        (
            lambda f: (f / 'train/labels/a/1.png').unlink(),
            {'splits.train': 'train/images/*/?.jpg,train/labels/*/?.png'},
            '1 of 3 images have no label, .*images/a/1.jpg; its label would be .*labels/a/1.png',
        ),
        (
            lambda f: None,
            {'splits.train': 'train/images,train/labels,0 7 8'},
            '2 of 3 names are no image of .*train/images, the first is 7',
        ),
        (
            lambda f: None,
            {'splits.train': 'train/images,train/labels,names.txt'},
            '1 of 1 names are no image of .*the first is names.txt; there is no file of that',
        ),
        (
            lambda f: (f / 'n.txt').write_text('# none'),
            {'splits.train': 'train/images,train/labels,n.txt'},
            'no images found; .*n.txt names none',
        ),
        (
            lambda f: None,
            {'splits.train': 'train/images,train/labels,0 1 0'},
            ': 0 is named twice',
        ),
        (
            lambda f: [
                (f / 'train/images/b').mkdir(),
                (f / 'train/images/b/0.jpg').write_bytes((f / 'train/images/a/0.jpg').read_bytes()),
            ],
            {'splits.train': 'train/images,train/labels,0'},
            '0 names .*a/0.jpg and .*b/0.jpg; write the path',
        ),
        (
            lambda f: None,
            {'classes': 'published:voc'},
            "classes='published:voc': 'voc' is none of the published tables a2d2, bdd100k",
        ),
        (lambda f: None, {'ignore': (70000,)}, r'ignore=\(70000,\) must hold values in 0..65535'),
    ],
)
def test_bad_input(folder, tmp_path, damage, changes, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        _build(folder, tmp_path, **changes)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('road\ncar\n', {0: 0, 1: 1}),
        ('name\nroad\ncar\n', {0: 0, 1: 1}),
        ('\ufeffroad\r\n\r\ncar', {0: 0, 1: 1}),
        ('name,id\nroad,2\ncar,0\n', {2: 0, 0: 1}),
        (' Name , ID \nroad,2\ncar,0\n', {2: 0, 0: 1}),
        ('name;ids \nroad;2\ncar;0 300\n', {2: 0, 0: 1, 300: 1}),
        ('id\tclass\t#remark\n2\troad\tgrey, wet\n0\tcar\t\n', {2: 0, 0: 1}),
        ('name,r,g,b,ids\nroad,1,2,3,2\nvoid,0,0,0,ignore\ncar,4,5,6,0\n', {2: 0, 0: 1}),
    ],
)
@pytest.mark.parametrize('name', ['classes.csv', 'classes.txt'])
def test_class_files_by_content(tmp_path, text, expected, name):
    path = tmp_path / name
    for encoding in ('utf-8', 'utf-16'):
        path.write_text(text.removeprefix('\ufeff' if encoding == 'utf-16' else ''), encoding)
        classes = class_file.read(path, (255,))
        assert classes.names == ('road', 'car')
        found = np.flatnonzero(classes.label_map < 2)
        assert {int(v): int(classes.label_map[v]) for v in found} == expected
        if 'ignore' in text:
            assert classes.label_colors == {(1, 2, 3): 0, (0, 0, 0): IGNORE, (4, 5, 6): 1}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('name,value\nsky,2\n', "column 'value' is not one of name, red, green, blue, ids, gr"),
        ('name,ids,ids\nsky,2,3\n', "there are two columns 'ids'"),
        ('name,id,ids\nsky,2,3\n', "there are two columns 'ids'"),
        ('name,red\nsky,2\n', 'a colour has the three columns red, green and blue'),
        ('name,ids\nsky,2,3\n', "classes.csv:2: 'sky,2,3' has 3 cells for 2 columns; several ids"),
        ('name,ids\n\nsky\n', "classes.csv:3: 'sky' has 1 cells for 2 columns"),
        ('name,ids,\nsky,2,\n', "column '' is not one of"),
        ('sky,2\nroad,3\n', "the first line 'sky,2' names no column; begin with a line such as"),
        ('0 sky\n1 road\n', "every line begins with a number, as '0 sky'; write a table"),
        ('name,ids\nsky,-1\n', "ids '-1' of class 'sky' is not in 0..65535"),
        ('name,ids\nsky,255\n', r"value 255 of class 'sky' is ignored .*ignore='\(\)'"),
        ('name,ids\nsky,ignore\n', 'no classes'),
        (b'sky\xff\nroad', 'is no text in UTF-8 .*; save it as UTF-8'),
        (b's\0k\0y\0', 'is no text in UTF-8; save it as UTF-8'),
    ],
)
def test_class_files_that_could_be_misread(tmp_path, text, message):
    path = tmp_path / 'classes.csv'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        class_file.read(path, (255,))


def test_classes_begin_behind_what_is_ignored(tmp_path):
    """Zero is no class, as in ADE20K's own labels: 'reduce zero label' of other programs."""
    (tmp_path / 'names.txt').write_text('road\ncar\n')
    classes = class_file.read(tmp_path / 'names.txt', (0, 255))
    assert classes.label_map[:4].tolist() == [IGNORE, 0, 1, NOT_ALLOWED]


def _write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')


@pytest.mark.parametrize(
    ('image', 'label', 'split'),
    [
        ('i/a.jpg', 'l/a.png', 'i,l'),
        ('i/a.JPG', 'l/a.PNG', 'i,l'),
        ('i/a.jpg', 'l/a_mask.png', 'i,l'),
        ('i/a.jpg', 'l/a_gt.tif', 'i,l'),
        ('i/a_rgb.png', 'l/a_LABEL.gif', 'i,l'),
        ('i/a.png', 'l/a_L.png', 'i,l'),
        ('i/b/a_leftImg8bit.png', 'l/b/a_gtFine_labelIds.png', 'i,l'),
        ('i/b/c/a.jpg', 'l/a.npy', 'i,l'),
        ('i/a.jpg', 'l/b/a_mask.png', 'i,l'),
        ('i/ä ö/a b.jpg', 'l/ä ö/a b.png', 'i,l'),
        (f'i/{unicodedata.normalize("NFD", "äé")}.jpg', 'l/äé.png', 'i,l'),
        ('i/a.jpg', 'i/a_mask.png', 'i'),
        ('i/a.jpg', 'i/a_mask.png', 'i,i'),
        ('i/a.png', 'i/a_mask.png', 'i'),
        ('i/a.jpg', 'i/a.png', 'i'),
        ('i/1.2.jpg', 'l/1.2.png', 'i,l'),
        (os.fsdecode(b'i/b\xe4r.jpg'), os.fsdecode(b'l/b\xe4r.png'), 'i,l'),
    ],
)
def test_pairing(tmp_path, image, label, split):
    _write(tmp_path, image, label, 'i/Thumbs.db', 'i/.DS_Store', 'i/._a.jpg', 'i/.x/a.jpg')
    found = pairing.find(tmp_path, split, 'f', ENDINGS)
    assert found.pairs == [(tmp_path / image, tmp_path / label)]
    assert any('3 hidden (' in note for note in found.notes)
    assert any('1 leftovers of systems (Thumbs.db)' in note for note in found.notes)


def test_unmatched_files_are_listed_on_both_sides(tmp_path):
    _write(tmp_path, 'i/a.jpg', 'i/b.jpg', 'l/a.png', 'l/c.png', 'l/d.jpg')
    with pytest.raises(InputError, match=r'1 of 2 images have no .*1 labels without image \(c.png'):
        pairing.find(tmp_path, 'i,l', 'f', ENDINGS)
    _write(tmp_path, 'l/b.png')
    notes = pairing.find(tmp_path, 'i,l', 'f', ENDINGS).notes
    assert notes == (
        '1 other than .png .tif .tiff .gif .bmp .npy (d.jpg)',
        '1 labels without image (c.png)',
    )


def test_two_labels_of_an_image_are_refused(tmp_path):
    _write(tmp_path, 'i/a.jpg', 'l/a_mask.png', 'l/a_gt.png')
    with pytest.raises(InputError, match=r'a_gt.png and .*a_mask.png are both labels of .*a.jpg'):
        pairing.find(tmp_path, 'i,l', 'f', ENDINGS)
    _write(tmp_path, 'l/a.png')  # an equal name comes first
    assert pairing.find(tmp_path, 'i,l', 'f', ENDINGS).pairs[0][1].name == 'a.png'


def test_names_that_fit_several_folders_are_not_guessed(tmp_path):
    _write(tmp_path, 'i/x/a.jpg', 'i/y/a.jpg', 'l/a.png')
    with pytest.raises(InputError, match='2 of 2 images have no label'):
        pairing.find(tmp_path, 'i,l', 'f', ENDINGS)


def test_linked_folders_are_read_once(tmp_path):
    """Through links, but neither twice nor in circles; dangling ones are named."""
    _write(tmp_path, 'i/a.jpg', 'l/a.png', 'other/i/b.jpg', 'other/l/b.png')
    for side in 'il':
        (tmp_path / side / 'more').symlink_to(tmp_path / 'other' / side)
        (tmp_path / 'other' / side / 'circle').symlink_to(tmp_path / side)
        (tmp_path / side / 'again').symlink_to(tmp_path / 'other' / side)
    (tmp_path / 'i' / 'nowhere.jpg').symlink_to(tmp_path / 'gone.jpg')
    found = pairing.find(tmp_path, 'i,l', 'f', ENDINGS)
    assert len(found.pairs) == 2
    assert '1 links that lead nowhere (nowhere.jpg)' in found.notes
    assert any('2 links to folders that are read already (' in note for note in found.notes)


def test_lists_with_names_of_any_bytes(tmp_path):
    """In UTF-16, with a mark, with accents of macOS, and with bytes of Latin-1."""
    plain, latin = 'i/äé.jpg', os.fsdecode(b'i/b\xe4r.jpg')
    _write(tmp_path, plain, latin, 'l/a.png')
    decomposed = unicodedata.normalize('NFD', plain)
    for content, image in (
        (f'{plain} l/a.png\n'.encode('utf-16'), plain),
        (f'{plain} l/a.png\n'.encode('utf-8-sig'), plain),
        (f'{decomposed} l/a.png\n'.encode(), plain),
        (b'i/b\xe4r.jpg l/a.png\n', latin),
    ):
        (tmp_path / 'list.txt').write_bytes(content)
        pairs = pairing.find(tmp_path, 'list.txt', 'f', ENDINGS).pairs
        assert pairs == [(tmp_path / image, tmp_path / 'l/a.png')]


def test_names_are_one_printable_line(tmp_path):
    latin = pathlib.Path(os.fsdecode(b'b\xe4r\n.jpg'))
    assert finder.printable(latin) == r'b\xe4r\n.jpg'
    assert finder.name_of(latin) == 'b%E4r\n' and finder.printable('ä b') == 'ä b'


def test_files_that_cannot_be_read_are_named(folder, tmp_path):
    dataset = _build(folder, tmp_path)
    label = folder / 'train' / 'labels' / 'a' / '0.png'
    label.unlink()
    label.mkdir()  # tests may run as root, who may read everything
    with pytest.raises(InputError, match=rf'{label}: the file cannot be read: Is a directory'):
        dataset.source('train')[0]
    label.rmdir()
    cv2.imwrite(str(label), np.full((20, 30), 99, np.uint8))
    message = r'train/labels/a/0.png: label values 99 \(600 pixels\) are outside the allowed 7-8, '
    with pytest.raises(InputError, match=message):
        dataset.decode(dataset.source('train')[0])
    cv2.imwrite(str(label), np.full((20, 31), 8, np.uint8))
    with pytest.raises(InputError, match=r'train/images/a/0.jpg: the image is 20 x 30 but its'):
        dataset.decode(dataset.source('train')[0])


@pytest.mark.parametrize('label_form', ['auto', 'colors'])
def test_labels_in_colours(folder, tmp_path, label_form):
    colors = np.array([(128, 64, 128), (0, 0, 142), (0, 0, 0)], np.uint8)
    (folder / 'classes.csv').write_text(f'{CLASSES}void, 0, 0, 0, ignore\n')
    ids = np.arange(600).reshape(20, 30) % 3
    cv2.imwrite(str(folder / 'train/labels/a/0.png'), colors[ids][..., ::-1])
    dataset = _build(folder, tmp_path, label_form=label_form)
    label = dataset.decode(dataset.source('train')[0])['label']
    np.testing.assert_array_equal(label, np.array([0, 1, IGNORE])[ids])


def test_colours_that_are_missing_or_not_unique(folder, tmp_path):
    (folder / 'classes.csv').write_text('name\nroad\ncar\n')
    with pytest.raises(InputError, match='must give every class a colour of its own'):
        _build(folder, tmp_path, label_form='colors')


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match=r'there is no file .*classes.csv'):
        _build(tmp_path, tmp_path)
    with pytest.raises(InputError, match='is not a directory'):
        _build(tmp_path / 'nowhere', tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('train_values', 'validation_values', 'classes', 'miou'),
    [
        ([(0, 1)], [(0, 1)], 'a\nb\n', (0, 1)),  # one image, fewer than a batch
        ([(0, 0)] * 2, [(0, 0)], 'a\n', (1, 1)),  # one class
        ([(0, 1)] * 2, [(0, 0)], 'a\nb\n', (0, 1)),  # a class that validation has not
        ([(0, 1)] * 2, [(255, 255)], 'a\nb\n', None),  # nothing to count
    ],
)
def test_small_data_sets_train_to_the_end(
    tmp_path, rng, train_values, validation_values, classes, miou
):
    for split, values in (('train', train_values), ('validation', validation_values)):
        for i, (upper, lower) in enumerate(values):
            for side in ('images', 'labels'):
                (tmp_path / split / side).mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / split / 'images' / f'{i}.png'), image)
            label = np.repeat(np.array([upper, lower], np.uint8), 20)[:, None].repeat(56, 1)
            cv2.imwrite(str(tmp_path / split / 'labels' / f'{i}.png'), label)
    (tmp_path / 'classes.csv').write_text(classes)
    config = load_config('folder')
    config.update_from_flattened_dict(
        {
            'data.manual_dir': str(tmp_path),
            'data.data_dir': str(tmp_path / 'derived'),
            'data.crop_size': (24, 24),
            'data.threads': 1,
            **TINY_MODEL,
            'model.context': 'none',
            'train.steps': 2,
            'train.batch_size': 8,
            'train.eval_every': 2,
            'train.checkpoint_every': 2,
            'eval.panels': 1,
        }
    )
    train.train_and_evaluate(config, tmp_path / 'run')
    found = read_rows(tmp_path / 'run')[-1]['val/miou']
    assert found is None if miou is None else miou[0] <= found <= miou[1]
