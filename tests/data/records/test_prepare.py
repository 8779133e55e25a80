import contextlib
import errno
import fcntl
import functools
import multiprocessing
import os
import pathlib
import pickle
import shutil
import signal
import threading

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from ggcf_jax.data.records import builder as builder_lib
from ggcf_jax.data.records import prepare
from ggcf_jax.data.records.builder import OWNER_FILE, Record, RecordBuilder
from ggcf_jax.errors import InputError

COUNTS = {'train': 20, 'validation': 3}
FEATURES = tfds.features.FeaturesDict(
    {
        'name': tfds.features.Text(),
        'image': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
        'label': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
    }
)


def example(split: str, index: int) -> dict:
    pixels = np.full((8, 8), index, np.uint8)
    encoded = cv2.imencode('.png', pixels)[1].tobytes()
    return {'name': f'{split}_{index}', 'image': encoded, 'label': encoded}


class Builder(RecordBuilder):
    name = 'numbers'
    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, data_dir, read=example):
        self._read_one = read
        super().__init__(data_dir=str(data_dir))

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=FEATURES)

    def records(self):
        return contextlib.nullcontext(
            {
                split: [
                    Record(f'{split}_{i}', 200, functools.partial(self._read_one, split, i))
                    for i in range(count)
                ]
                for split, count in COUNTS.items()
            }
        )


class Generator(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The same data set the way that TFDS prepares it."""

    name = 'numbers'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=FEATURES)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, n) for split, n in COUNTS.items()}

    def _generate_examples(self, split, count):
        for i in range(count):
            yield f'{split}_{i}', example(split, i)


def content(sources) -> dict[str, list[dict]]:
    return {split: [source[i] for i in range(len(source))] for split, source in sources.items()}


def complete(sources) -> bool:
    return all(
        sorted(record['name'] for record in content(sources)[split])
        == sorted(f'{split}_{i}' for i in range(count))
        for split, count in COUNTS.items()
    )


def left(data_dir: pathlib.Path) -> list[pathlib.Path]:
    """Everything below but lock files and directories."""
    return [p for p in data_dir.rglob('*') if p.is_file() and p.suffix != '.lock']


def test_order_and_content_are_those_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setattr(builder_lib, '_SHARD_BYTES', 1000)
    ours = prepare.prepared_sources(Builder(tmp_path / 'ours'))
    theirs = prepare.prepared_sources(Generator(data_dir=str(tmp_path / 'theirs')))
    assert content(ours) == content(theirs)
    assert complete(ours)
    shards = [path.name for path in left(tmp_path / 'ours') if 'train.array_record' in path.name]
    assert sorted(shards) == [f'numbers-train.array_record-{i:05d}-of-00004' for i in range(4)]
    names = [record['name'] for record in content(ours)['train']]
    assert names != sorted(names)


def test_records_are_read_once_and_sources_pickle(tmp_path):
    read = []

    def counting(split, index):
        read.append((split, index))
        return example(split, index)

    sources = prepare.prepared_sources(Builder(tmp_path, counting))
    assert sorted(read) == [(split, i) for split, n in COUNTS.items() for i in range(n)]
    prepare.prepared_sources(Builder(tmp_path, counting))
    assert len(read) == sum(COUNTS.values())
    again = prepare.prepared_sources(Builder(tmp_path))
    assert content(pickle.loads(pickle.dumps(again))) == content(sources)
    assert not list(tmp_path.rglob(OWNER_FILE))


def test_progress_is_two_plain_lines_where_there_is_no_terminal(tmp_path, capfd):
    prepare.prepared_sources(Builder(tmp_path))
    out, err = capfd.readouterr()
    first, last = out.splitlines()
    assert first == 'preparing numbers/1.0.0: 23 images'
    assert last.startswith('prepared 23 images of numbers/1.0.0 in ')
    assert err == ''


def _prepare_and_die(data_dir):
    def dying(split, index):
        if split == 'validation':
            os.kill(os.getpid(), signal.SIGKILL)
        return example(split, index)

    prepare.prepared_sources(Builder(data_dir, dying))


@pytest.mark.slow
def test_killed_preparation_is_cleared_away_and_done_again(tmp_path):
    spawn = multiprocessing.get_context('spawn')
    process = spawn.Process(target=_prepare_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not Builder(tmp_path).data_path.exists()
    [killed] = tmp_path.glob('numbers/incomplete.*')
    assert any('train.array_record' in path.name for path in killed.iterdir())
    foreign = tmp_path / 'numbers' / 'incomplete.ABCDEF_1.0.0'  # of a program that is not ours
    foreign.mkdir()
    (foreign / 'data').touch()
    assert complete(prepare.prepared_sources(Builder(tmp_path)))
    assert [path.name for path in tmp_path.glob('numbers/incomplete.*')] == [foreign.name]


def test_second_process_waits_and_then_reads(tmp_path, capsys):
    started, go, results = threading.Event(), threading.Event(), {}

    def slow(split, index):
        started.set()
        assert go.wait(60)
        return example(split, index)

    def never(split, index):
        raise AssertionError('prepared twice')

    def run(name, read):
        results[name] = content(prepare.prepared_sources(Builder(tmp_path, read)))

    first = threading.Thread(target=run, args=('first', slow))
    first.start()
    assert started.wait(60)
    waiter = Builder(tmp_path, never)  # made before there is anything to read
    lock_taken = fcntl.flock

    def flock(file, operation):
        if not operation & fcntl.LOCK_NB:
            go.set()  # the second is about to wait
        lock_taken(file, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, 'flock', flock)
        results['second'] = content(prepare.prepared_sources(waiter))
    first.join()
    assert results['first'] == results['second']
    assert 'waiting for another process' in capsys.readouterr().out


def test_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', flock)
    assert complete(prepare.prepared_sources(Builder(tmp_path)))
    assert 'has no file locks' in capsys.readouterr().err


def _full_device(monkeypatch):
    """Every shard is written to a device that is really full."""
    writer = array_record_module.ArrayRecordWriter

    def on_full_device(path, options):
        pathlib.Path(path).symlink_to('/dev/full')
        return writer(path, options)

    monkeypatch.setattr(array_record_module, 'ArrayRecordWriter', on_full_device)


def _full_while_writing_text(monkeypatch):
    def write_text(*unused, **unused_too):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, 'write_text', write_text)


def _quota(monkeypatch):
    class Writer:
        def __init__(self, path, options):
            pathlib.Path(path).write_bytes(b'half a shard')

        def write(self, record):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(array_record_module, 'ArrayRecordWriter', Writer)


def _little_room(monkeypatch):
    usage = shutil.disk_usage('/')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=4599))


@pytest.mark.parametrize(
    ('fill', 'message'),
    [
        (_full_device, 'the disk of .*numbers is full .*No space left on device.*data_dir'),
        (_full_while_writing_text, 'the disk of .*numbers is full'),
        (_quota, 'the disk of .*numbers is full .*quota.*data_dir'),
        (_little_room, 'it needs 4.6e-06 GB in .*numbers, where 4.6e-06 GB are free; make room'),
    ],
)
def test_full_disk_leaves_nothing(tmp_path, monkeypatch, fill, message):
    with monkeypatch.context() as patch:
        fill(patch)
        with pytest.raises(InputError, match=message):
            prepare.prepared_sources(Builder(tmp_path))
    assert left(tmp_path) == []
    assert complete(prepare.prepared_sources(Builder(tmp_path)))


def test_directory_that_cannot_be_written(tmp_path, monkeypatch):
    def mkdir(*unused, **unused_too):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(pathlib.Path, 'mkdir', mkdir)
    with pytest.raises(InputError, match=r'Permission denied; set --config\.data\.data_dir'):
        prepare.prepared_sources(Builder(tmp_path))


def test_bad_record_leaves_nothing(tmp_path):
    def bad(split, index):
        if (split, index) == ('validation', 1):
            raise InputError('validation_1 is bad')
        return example(split, index)

    with pytest.raises(InputError, match='validation_1 is bad'):
        prepare.prepared_sources(Builder(tmp_path, bad))
    assert left(tmp_path) == []


def test_names_must_be_unique(tmp_path, monkeypatch):
    record = Record('same', 1, lambda: example('train', 0))
    monkeypatch.setattr(
        Builder, 'records', lambda self: contextlib.nullcontext({'train': [record, record]})
    )
    with pytest.raises(InputError, match="2 records of train are called 'same'"):
        prepare.prepared_sources(Builder(tmp_path))


def _shard(data_dir) -> pathlib.Path:
    return data_dir / 'numbers' / '1.0.0' / 'numbers-train.array_record-00000-of-00001'


def _edit(data_dir, name, before, after):
    path = _shard(data_dir).with_name(name)
    content = path.read_text()
    assert before in content
    path.write_text(content.replace(before, after))


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda d: _shard(d).unlink(), 'holds 0 of its 20 records: .*damaged; remove .*again'),
        (lambda d: os.truncate(_shard(d), 1000), 'holds 0 of its 20 records'),
        (
            lambda d: _shard(d).with_name('dataset_info.json').unlink(),
            'is not a prepared data set: dataset_info.json is missing',
        ),
        *(
            (
                lambda d, name=name, content=content: (
                    _shard(d).with_name(name).write_bytes(content)
                ),
                r'0: dataset_info\.json or features\.json cannot be read .*; remove .*again',
            )
            for name in ('dataset_info.json', 'features.json')
            for content in (b'', b'[]', b'null', b'\xff', b'[' * 10**5, b'{"a": 1}')
        ),
        (
            lambda d: _edit(d, 'dataset_info.json', '{SPLIT}', '{SQLIT}'),
            'cannot be read .*Could not format',
        ),
        (
            lambda d: _edit(d, 'features.json', '"label": {', '"mask": {'),
            "cannot be read .*it has no feature 'label'",
        ),
    ],
)
def test_damaged_prepared_set_is_refused(tmp_path, damage, message):
    prepare.prepared_sources(Builder(tmp_path))
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        prepare.prepared_sources(Builder(tmp_path))


def test_a_damaged_record_is_refused_when_it_is_read(tmp_path):
    prepare.prepared_sources(Builder(tmp_path))
    shard = _shard(tmp_path)
    content = bytearray(shard.read_bytes())
    content[150] ^= 1  # in the first record
    shard.write_bytes(bytes(content))
    source = prepare.prepared_sources(Builder(tmp_path))['train']
    message = (
        rf'record \d+ cannot be read .*damaged; remove {shard.parent} to have it prepared again'
    )
    with pytest.raises(InputError, match=message):
        for index in range(len(source)):
            source[index]


def test_counts(tmp_path, capsys):
    sources = prepare.prepared_sources(Builder(tmp_path))
    capsys.readouterr()
    prepare.warn_of_counts(
        'numbers', sources, {'train': (21, 20), 'validation': (3,), 'test': (1,)}
    )
    assert capsys.readouterr().err == ''
    prepare.warn_of_counts('numbers', sources, {'train': (21,)})
    assert 'numbers train has 20 images, the published data set has 21' in capsys.readouterr().err
