import json
import os
import pathlib
import pickle
import shutil
import sys
import zipfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from cityscapesscripts.helpers import labels as cityscapes_labels
from cityscapesscripts.preparation import json2labelImg
from ml_collections import ConfigDict
from tensorflow_datasets.datasets.cityscapes import cityscapes_dataset_builder as official

from ggcf_jax import data
from ggcf_jax.data.datasets import cityscapes
from ggcf_jax.data.records import codec
from ggcf_jax.data.records.codec import IGNORE, NOT_ALLOWED
from ggcf_jax.errors import InputError
from tests.helpers import train_with_main

SKIP = tfds.decode.SkipDecoding()
DECODERS = {'image_left': SKIP, 'segmentation_label': SKIP}
FINE = {
    'train': ['aachen_000000_000019', 'aachen_000001_000019', 'bochum_000000_000313'],
    'val': ['frankfurt_000000_000294', 'munster_000000_000019'],
    'test': ['berlin_000000_000019'],
}
EXTRA = {'train_extra': ['augsburg_000000_000000', cityscapes.BROKEN, 'troisdorf_000000_000074']}
FULL_SIZE = ('aachen_000000_000019', 'frankfurt_000000_000294')
IMAGES, LABELS = 'leftImg8bit_trainvaltest.zip', 'gtFine_trainvaltest.zip'
MEMBER = 'leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png'
LABEL_MEMBER = 'gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png'


@pytest.fixture
def folder(tmp_path, rng):
    """The two fine zips in their true layout."""
    root = tmp_path / 'zips'
    root.mkdir()
    write_zip(root / IMAGES, images(FINE, rng))
    write_zip(root / LABELS, labels(FINE, 'gtFine', rng))
    return root


@pytest.fixture
def coarse_folder(folder, rng):
    write_zip(folder / 'leftImg8bit_trainextra.zip', images(EXTRA, rng))
    coarse = {'train': FINE['train'], 'val': FINE['val'], **EXTRA}
    write_zip(folder / 'gtCoarse.zip', labels(coarse, 'gtCoarse', rng))
    return folder


def write_zip(path: pathlib.Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('README', 'as published')
        for name, content in members.items():
            file.writestr(name, content)


def members(path: pathlib.Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist() if name != 'README'}


def images(splits, rng) -> dict[str, bytes]:
    return {
        f'leftImg8bit/{split}/{name.split("_")[0]}/{name}_leftImg8bit.png': png(
            rng.integers(0, 255, (4, 8, 3), dtype=np.uint8), name
        )
        for split, names in splits.items()
        for name in names
    }


def labels(splits, root, rng) -> dict[str, bytes]:
    content = {}
    for split, names in splits.items():
        for name in names:
            stem = f'{root}/{split}/{name.split("_")[0]}/{name}_{root}'
            ids = rng.integers(0, 4 if split == 'test' else 34, (4, 8), dtype=np.uint8)
            content[f'{stem}_labelIds.png'] = png(ids, name)
            content[f'{stem}_instanceIds.png'] = b'not read'
    return content


def png(pixels: np.ndarray, name: str) -> bytes:
    repeat = 256 if name in FULL_SIZE else 4
    pixels = pixels.repeat(repeat, 0).repeat(repeat, 1)
    return cv2.imencode('.png', pixels)[1].tobytes()


def config(folder, tmp_path) -> ConfigDict:
    return ConfigDict(
        {
            'name': 'cityscapes',
            'manual_dir': None if folder is None else str(folder),
            'data_dir': str(tmp_path / 'prepared'),
        }
    )


def by_name(source) -> dict[str, dict]:
    records = [source[i] for i in range(len(source))]
    assert len({record['name'] for record in records}) == len(records)
    return {record['name']: record for record in records}


def shards(tmp_path) -> list[pathlib.Path]:
    return list((tmp_path / 'prepared').rglob('*array_record*'))


def test_fine_round_trip(folder, tmp_path):
    dataset = data.build(config(folder, tmp_path))
    assert dataset.num_classes == 19 and dataset.unlabeled == ('test',)
    assert list(dataset.sources) == ['train', 'validation', 'test', 'train_extra']
    pixels, ids = members(folder / IMAGES), members(folder / LABELS)
    for split, names in zip(dataset.sources, FINE.values()):
        records = by_name(dataset.source(split))
        assert sorted(records) == names
        published = {'validation': 'val'}.get(split, split)
        for name, record in records.items():
            stem = f'{published}/{name.split("_")[0]}/{name}'
            assert record['image'] == pixels[f'leftImg8bit/{stem}_leftImg8bit.png']
            assert record['label'] == ids[f'gtFine/{stem}_gtFine_labelIds.png']
            example = dataset.decode(record)
            raw = cv2.imdecode(np.frombuffer(record['label'], np.uint8), cv2.IMREAD_UNCHANGED)
            table = np.array([cityscapes_labels.id2label[i].trainId for i in range(34)])
            np.testing.assert_array_equal(example['label'], table[raw])
            assert example['image'].shape == (*raw.shape, 3)
            assert raw.shape == ((1024, 2048) if name in FULL_SIZE else (16, 32))


def test_official_builder_reads_what_we_prepare(coarse_folder, tmp_path):
    dataset = data.build(config(coarse_folder, tmp_path))
    len(dataset.source('train_extra'))  # prepares it
    for name, splits in (
        ('semantic_segmentation', ('train', 'validation', 'test')),
        ('semantic_segmentation_extra', ('train', 'validation', 'train_extra')),
    ):
        builder = official.Builder(data_dir=str(tmp_path / 'prepared'), config=name)
        plain = tfds.builder_from_directory(builder.data_dir)
        assert set(builder.info.splits) == set(plain.info.splits) == set(splits)
        ours = cityscapes.Builder(name, None, str(tmp_path / 'prepared'))
        assert repr(builder.info.features) == repr(ours.info.features)
        assert plain.info.full_name == builder.info.full_name == f'cityscapes/{name}/1.0.0'
        for split in splits:
            encoded, again = (b.as_data_source(split, decoders=DECODERS) for b in (builder, plain))
            assert len(encoded) == len(again) == builder.info.splits[split].num_examples
            for one, two in zip(encoded, again):
                assert one == two
            if split in dataset.sources and (name.endswith('extra') == (split == 'train_extra')):
                source = dataset.source(split)
                for i, record in enumerate(encoded):
                    name = record['image_id'].decode()
                    assert source[i] == {
                        'name': name,
                        'image': record['image_left'],
                        'label': record['segmentation_label'],
                        'image_file': f'{split}/{name}',
                        'label_file': f'{split}/{name}',
                    }
                    decoded = builder.as_data_source(split)[i]
                    example = dataset.decode(source[i])
                    np.testing.assert_array_equal(decoded['image_left'], example['image'])
    assert 'tensorflow' not in sys.modules


class Elsewhere(official.Builder, skip_registration=True):
    """The official builder with the parts replaced that need TensorFlow."""

    name = 'cityscapes'

    def __init__(self, folder, data_dir):
        self._folder = folder
        super().__init__(data_dir=data_dir, config='semantic_segmentation')

    def _info(self):
        features = official.Builder(data_dir=self._data_dir_root, config=self.builder_config.name)
        return tfds.core.DatasetInfo(builder=self, features=features.info.features)

    def _split_generators(self, dl_manager):
        published = {'train': 'train', 'validation': 'val', 'test': 'test'}
        return {split: self._generate_examples(p) for split, p in published.items()}

    def _generate_examples(self, published):
        pixels, ids = members(self._folder / IMAGES), members(self._folder / LABELS)
        for name in FINE[published]:
            stem = f'{published}/{name.split("_")[0]}/{name}'
            yield (
                name,
                {
                    'image_id': name,
                    'image_left': pixels[f'leftImg8bit/{stem}_leftImg8bit.png'],
                    'segmentation_label': ids[f'gtFine/{stem}_gtFine_labelIds.png'],
                },
            )


def test_prepared_elsewhere_is_read_as_it_is(folder, tmp_path):
    builder = Elsewhere(folder, str(tmp_path / 'prepared'))
    builder.download_and_prepare(file_format='array_record')
    before = {path: path.stat().st_mtime_ns for path in shards(tmp_path)}
    elsewhere = data.build(config(None, tmp_path))
    assert {path: path.stat().st_mtime_ns for path in shards(tmp_path)} == before
    (tmp_path / 'prepared').rename(tmp_path / 'elsewhere')
    ours = data.build(config(folder, tmp_path))
    for split in ('train', 'validation', 'test'):
        one, two = elsewhere_records(tmp_path, split), ours.source(split)
        assert [two[i] for i in range(len(two))] == one  # in the same order, too
    assert list(elsewhere.sources) == list(ours.sources)


def elsewhere_records(tmp_path, split):
    moved = ConfigDict(config(None, tmp_path).to_dict() | {'data_dir': str(tmp_path / 'elsewhere')})
    source = data.build(moved).source(split)
    return [source[i] for i in range(len(source))]


def test_tfrecord_is_refused_with_the_cure(folder, tmp_path):
    data.build(config(folder, tmp_path))
    directory = tmp_path / 'prepared' / 'cityscapes' / 'semantic_segmentation' / '1.0.0'
    info = directory / 'dataset_info.json'
    content = json.loads(info.read_text())
    info.write_text(json.dumps(content | {'fileFormat': 'tfrecord'}))
    for path in directory.glob('*array_record*'):
        path.rename(path.with_name(path.name.replace('array_record', 'tfrecord')))
    with pytest.raises(InputError, match=r'prepared as tfrecord.*data_dir .*convert_format'):
        data.build(config(folder, tmp_path))


def test_coarse_images_are_prepared_when_asked_for(coarse_folder, tmp_path, capsys):
    dataset = data.build(config(coarse_folder, tmp_path))
    assert list(dataset.sources) == ['train', 'validation', 'test', 'train_extra']
    assert not (tmp_path / 'prepared' / 'cityscapes' / 'semantic_segmentation_extra').exists()
    records = by_name(dataset.source('train_extra'))
    assert sorted(records) == ['augsburg_000000_000000', 'troisdorf_000000_000074']
    assert f'left {cityscapes.BROKEN} out' in capsys.readouterr().out
    ids = members(coarse_folder / 'gtCoarse.zip')
    member = 'gtCoarse/train_extra/augsburg/augsburg_000000_000000_gtCoarse_labelIds.png'
    assert records['augsburg_000000_000000']['label'] == ids[member]
    again = data.build(config(None, tmp_path))  # the zips are not needed any more
    assert list(again.sources) == ['train', 'validation', 'test', 'train_extra']
    assert by_name(again.source('train_extra')) == records


@pytest.mark.slow
def test_main_trains_on_the_zips(coarse_folder, tmp_path):
    fields = {'data.train_split': 'train:0.5,train_extra:0.5', 'data.storage': 'compact'}
    train_with_main('cityscapes', coarse_folder, tmp_path, fields)


def test_coarse_zips_are_named_only_when_missed(folder, tmp_path):
    dataset = data.build(config(folder, tmp_path))
    with pytest.raises(
        InputError, match=r'has no gtCoarse\.zip, leftImg8bit_trainextra\.zip; it must hold'
    ):
        len(dataset.source('train_extra'))
    with pytest.raises(InputError, match="no split 'train_ekstra'"):
        dataset.source('train_ekstra')


def replace(path, member, content):
    """Rewrites a zip with another content for one member; None leaves it out."""
    kept = members(path) | {member: content}
    write_zip(path, {name: value for name, value in kept.items() if value is not None})


def flip_byte(path, member):
    """Damages a member's stored bytes behind the zip's back."""
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(member)
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(member) + info.file_size // 2] ^= 1
    path.write_bytes(content)


def small_png(value, shape=(16, 32), dtype=np.uint8):
    return cv2.imencode('.png', np.full(shape, value, dtype))[1].tobytes()


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (
            lambda f: replace(f / LABELS, LABEL_MEMBER, None),
            f'no labels for 1 of the 3 images .*missing is {LABEL_MEMBER}',
        ),
        (
            lambda f: os.truncate(f / IMAGES, (f / IMAGES).stat().st_size // 2),
            f'{IMAGES} cannot be read .*download it again',
        ),
        (
            lambda f: (f / LABELS).rename(f / 'gtFine_trainvaltest (1).zip'),
            rf'has no {LABELS}; .*the zips there are gtFine_trainvaltest \(1\)\.zip, {IMAGES}',
        ),
        (
            lambda f: (f / IMAGES).write_bytes((f / LABELS).read_bytes()),
            f'{IMAGES} holds no leftImg8bit/train/<city>',
        ),
        (lambda f: flip_byte(f / IMAGES, MEMBER), f'{MEMBER} cannot be read .*CRC'),
        (
            lambda f: replace(f / IMAGES, MEMBER, b'no PNG'),
            f'{IMAGES}: {MEMBER}: the image cannot be decoded',
        ),
        (
            lambda f: replace(f / LABELS, LABEL_MEMBER, small_png(0)[:60]),
            f'{LABELS}: {LABEL_MEMBER}: the label cannot be decoded',
        ),
        (
            lambda f: replace(f / LABELS, LABEL_MEMBER, small_png(34)),
            rf'{LABELS}: {LABEL_MEMBER}: label values 34 \(512 pixels\) are outside',
        ),
        (
            lambda f: replace(f / LABELS, LABEL_MEMBER, small_png(7, (16, 31))),
            f'{MEMBER}: the image is 16 x 32 but its label is 16 x 31',
        ),
        (
            lambda f: replace(f / LABELS, LABEL_MEMBER, small_png(7, dtype=np.uint16)),
            f'{LABEL_MEMBER}: the label (has shape|is a 16-bit)',
        ),
    ],
)
def test_bad_zips_leave_nothing_that_loads(folder, tmp_path, damage, message):
    damage(folder)
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            data.build(config(folder, tmp_path))
        assert not shards(tmp_path)


def test_replaced_zips_are_noticed(coarse_folder, tmp_path):
    """By their checksums: names, numbers and sizes may all be the same."""
    first = data.build(config(coarse_folder, tmp_path))
    identities = [first.identity_of(split) for split in ('train', 'train_extra')]
    assert [data.build(config(coarse_folder, tmp_path)).identity_of('train')] == identities[:1]
    write_zip(coarse_folder / LABELS, {**members(coarse_folder / LABELS), 'more': b'is not read'})
    data.build(config(coarse_folder, tmp_path))
    replace(coarse_folder / LABELS, LABEL_MEMBER, small_png(7, (4 * 4, 8 * 4)))
    message = (
        r'segmentation/1\.0\.0 was prepared from other files than config\.data\.manual_dir '
        r'has now: their checksums differ; remove .* or pass --config\.data\.manual_dir= to use it'
    )
    with pytest.raises(InputError, match=message):
        data.build(config(coarse_folder, tmp_path))
    # What is prepared may be used without the zips, whether the field is empty or they are gone.
    assert data.build(config('', tmp_path)).identity_of('train') == identities[0]
    (coarse_folder / LABELS).rename(tmp_path / LABELS)
    assert data.build(config(coarse_folder, tmp_path)).identity_of('train') == identities[0]
    (tmp_path / LABELS).rename(coarse_folder / LABELS)
    shutil.rmtree(tmp_path / 'prepared' / 'cityscapes' / 'semantic_segmentation')
    again = data.build(config(coarse_folder, tmp_path))
    assert again.identity_of('train') != identities[0]
    assert again.identity_of('train_extra') == identities[1]


def test_a_damaged_note_of_the_origin_is_refused(folder, tmp_path):
    data.build(config(folder, tmp_path))
    (note,) = (tmp_path / 'prepared').rglob('ggcf_jax_origin.json')
    for damage in ('', '[]', '{"sizes": "a"}', '{"sizes": "a", "checksums": 1}'):
        note.write_text(damage)
        with pytest.raises(InputError, match=r'origin\.json is damaged.*not known; remove '):
            data.build(config(folder, tmp_path))
    note.unlink()  # as where another program prepared it
    assert data.build(config(folder, tmp_path)).identity_of('train') == 'cityscapes 1.0.0'


def unpack(folder, *zips, into='') -> None:
    for name in zips:
        with zipfile.ZipFile(folder / name) as file:
            file.extractall(folder / into.format(pathlib.Path(name).stem))
        (folder / name).unlink()


@pytest.mark.parametrize('into', ['', '{}'], ids=['together', 'apart'])
def test_unpacked_zips_give_the_same_records(folder, tmp_path, into):
    """And so does one zip beside the folder of another, or a folder behind a link."""
    expected = {
        split: by_name(source)
        for split, source in data.build(config(folder, tmp_path)).sources.items()
        if split != 'train_extra'
    }
    for number, zips in enumerate(([LABELS], [IMAGES])):
        unpack(folder, *zips, into=into)
        if number:
            place = folder / into.format(pathlib.Path(IMAGES).stem) / 'leftImg8bit'
            place.rename(tmp_path / 'elsewhere')
            place.symlink_to(tmp_path / 'elsewhere')
            (tmp_path / 'elsewhere/train/aachen/._aachen_x_leftImg8bit.png').write_bytes(b'x')
        sources = data.build(config(folder, tmp_path / str(number))).sources
        assert {split: by_name(sources[split]) for split in expected} == expected


def test_an_unpacked_test_split_may_be_missing(folder, tmp_path, capsys):
    unpack(folder, IMAGES, LABELS)
    shutil.rmtree(folder / 'gtFine' / 'test')
    dataset = data.build(config(folder, tmp_path))
    assert list(dataset.sources) == ['train', 'validation', 'train_extra']
    assert 'has no test images with labels; that split is left out' in capsys.readouterr().out


POLYGONS = {
    'imgHeight': 16,
    'imgWidth': 32,
    'objects': [
        {'label': 'road', 'polygon': [[0, 8], [31, 8], [31, 15], [0, 15]]},
        {'label': 'cargroup', 'polygon': [[4, 6], [9, 6], [9, 12]]},
        {'label': 'license plate', 'polygon': [[5, 7], [6, 7], [6, 8]]},
    ],
}


def test_missing_label_images_are_drawn_from_the_polygons(folder, tmp_path, capsys):
    """By the code that drew the published ones."""
    polygons = LABEL_MEMBER.replace('_labelIds.png', '_polygons.json')
    replace(folder / LABELS, LABEL_MEMBER, None)
    replace(folder / LABELS, polygons, json.dumps(POLYGONS).encode())
    dataset = data.build(config(folder, tmp_path))
    assert '1 of 3 label images of gtFine/train are missing; they are drawn' in (
        capsys.readouterr().out
    )
    name = MEMBER.split('/')[-1].removesuffix('_leftImg8bit.png')
    (tmp_path / 'polygons.json').write_text(json.dumps(POLYGONS))
    json2labelImg.json2labelImg(str(tmp_path / 'polygons.json'), str(tmp_path / 'label.png'))
    drawn = cv2.imread(str(tmp_path / 'label.png'), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(drawn)) == {0, 7, 26}
    record = by_name(dataset.source('train'))[name]
    np.testing.assert_array_equal(codec.decode_label(record['label'], 'a'), drawn)


@pytest.mark.parametrize(
    'content',
    [b'{}', b'[', b'[]', json.dumps(POLYGONS | {'imgWidth': 10**6, 'imgHeight': 10**6}).encode(),
     json.dumps(POLYGONS | {'objects': [{'label': 'moon', 'polygon': [[0, 0]]}]}).encode()],
    ids=['empty', 'no JSON', 'list', 'huge', 'unknown label'],
)  # fmt: skip
def test_polygons_that_cannot_be_drawn(folder, tmp_path, content):
    replace(folder / LABELS, LABEL_MEMBER, None)
    polygons = LABEL_MEMBER.replace('_labelIds.png', '_polygons.json')
    replace(folder / LABELS, polygons, content)
    with pytest.raises(InputError, match=f'{LABELS}: {polygons}: the polygons cannot be drawn'):
        data.build(config(folder, tmp_path))


def test_missing_manual_dir(tmp_path):
    with pytest.raises(InputError, match=rf'pass --config\.data\.manual_dir=DIR: .*{IMAGES}'):
        data.build(config(None, tmp_path))
    with pytest.raises(InputError, match="nowhere' is not a directory"):
        data.build(config(tmp_path / 'nowhere', tmp_path))
    assert not (tmp_path / 'prepared').exists()


def test_counts_are_compared_with_the_published_ones(folder, tmp_path, capsys):
    data.build(config(folder, tmp_path))
    assert 'cityscapes train has 3 images, the published data set has 2975' in (
        capsys.readouterr().err
    )


def test_every_label_id_is_mapped():
    for label in cityscapes_labels.labels:
        train_id = cityscapes.LABEL_MAP[label.id % 256]
        if label.ignoreInEval:
            assert train_id == IGNORE
        else:
            assert cityscapes.CLASSES[train_id] == label.name
            assert cityscapes.COLORS[train_id] == label.color
    assert (cityscapes.LABEL_MAP[34:255] == NOT_ALLOWED).all()
    assert cityscapes.CLASSES[0] == 'road' and cityscapes.CLASSES[18] == 'bicycle'


def test_sources_pickle(folder, tmp_path):
    sources = data.build(config(folder, tmp_path)).sources
    copy = pickle.loads(pickle.dumps(sources))
    assert list(copy) == list(sources)
    assert by_name(copy['train']) == by_name(sources['train'])
