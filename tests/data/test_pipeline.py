import contextlib
import dataclasses
import io
import os
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest

from ggcf_jax.data import class_uniform as class_index
from ggcf_jax.data import mixture, pipeline, transforms
from ggcf_jax.data.records.codec import IGNORE, FileDecoder
from ggcf_jax.data.records.dataset import Dataset, identity_label_map
from ggcf_jax.errors import InputError
from tests.helpers import one_device

SIZE = (12, 16)


class _Source:
    """Record i is an image of colour i with label i."""

    def __init__(self, count, sizes=(SIZE,), first=0):
        self._count, self._sizes, self._first = count, sizes, first

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        if not 0 <= index < self._count:
            raise IndexError(index)
        size = self._sizes[index % len(self._sizes)]
        image = np.full((*size, 3), self._first + index, np.uint8)
        image[:, : size[1] // 2] += 100  # so that flips show
        label = np.full(size, self._first + index, np.uint8)
        return {
            'name': f'image_{index}',
            'image': cv2.imencode('.png', image)[1].tobytes(),
            'label': cv2.imencode('.png', label)[1].tobytes(),
        }


def _dataset(count, sizes=(SIZE,)):
    colors = ((0, 0, 0),) * 50
    names = tuple(map(str, range(50)))
    sources = {
        'train': _Source(count),
        'extra': _Source(3, first=40),
        'validation': _Source(count, sizes),
        'test': _Source(1),
    }
    return Dataset(
        name='fake',
        classes=names,
        colors=colors,
        sources=sources,
        decoder=FileDecoder(identity_label_map(50, 255)),
        identity='fake',
        unlabeled=('test',),
    )


def _stream(
    steps,
    count=13,
    start=0,
    shard=pipeline.Shard(),
    batch_size=4,
    seed=3,
    split='train',
    loader=pipeline.LoaderOptions(2),
    class_uniform=0.0,
    indices=None,
    cache=0,
):
    parts = mixture.parse(split)
    batches = pipeline.train_batches(
        mixture.records(_dataset(count), parts),
        tuple(part.weight for part in parts),
        transforms.TrainTransform((8, 8), (0.5, 1.5)),
        seed=seed,
        batch_size=batch_size,
        start_step=start,
        shard=shard,
        loader=loader,
        class_uniform=class_uniform,
        indices=indices,
        cache=cache,
    )
    found = [next(batches) for _ in range(steps)]
    batches.close()
    return found


def _labels(batches):
    """The label of each image of the batches; the images are flat."""
    labels = np.concatenate([batch['label'] for batch in batches])
    return labels.max((1, 2), where=labels != IGNORE, initial=0)


def _equal(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize('start', [1, 5, 9])
def test_any_start_step_gives_the_same_continuation(start):
    whole = _stream(12)
    resumed = _stream(12 - start, start=start)
    assert all(_equal(a, b) for a, b in zip(whole[start:], resumed, strict=True))


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_share_one_stream(processes):
    whole = _stream(8)
    parts = [_stream(8, shard=pipeline.Shard(i, processes)) for i in range(processes)]
    for step, batch in enumerate(whole):
        for name, expected in batch.items():
            joined = np.empty_like(expected)
            for i, part in enumerate(parts):
                joined[i::processes] = part[step][name]
            np.testing.assert_array_equal(joined, expected)


def test_every_epoch_sees_every_image_once_in_another_order_and_augmentation():
    batches = _stream(13, count=8, batch_size=8)
    orders = [
        batch['label'].max((1, 2), where=batch['label'] != 255, initial=0) for batch in batches
    ]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) > 10
    images = [
        {int(c): image.tobytes() for c, image in zip(order, batch['image'])}
        for order, batch in zip(orders, batches)
    ]
    repeats = sum(a[c] == b[c] for a, b in zip(images, images[1:]) for c in range(8))
    assert repeats < 8  # images are flat, so that few crops happen to be equal


def test_seeds_give_different_streams():
    assert not any(_equal(a, b) for a, b in zip(_stream(6, seed=3), _stream(6, seed=4)))


def test_neighbouring_seeds_and_epochs_share_no_augmentation(rng):
    """Crops of one image of noise, over 20 epochs of two seeds: none comes twice."""
    noise = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    record = _Source(1, sizes=((60, 80),))[0]
    record['image'] = cv2.imencode('.png', noise)[1].tobytes()
    dataset = dataclasses.replace(_dataset(1), sources={'train': [record]})
    crops = set()
    for seed in (3, 4):
        batches = pipeline.train_batches(
            mixture.records(dataset, mixture.parse('train')),
            (1.0,),
            transforms.TrainTransform((40, 40), (0.5, 1.5)),
            seed=seed,
            batch_size=1,
        )
        crops |= {next(batches)['image'].tobytes() for _ in range(20)}
        batches.close()
    assert len(crops) == 40


@pytest.mark.parametrize('split', ['train+extra', 'train:0.5,extra:0.5'])
def test_mixtures_are_a_function_of_seed_and_step(split):
    whole = _stream(10, split=split)
    assert all(_equal(a, b) for a, b in zip(whole[4:], _stream(6, start=4, split=split)))
    parts = [_stream(10, split=split, shard=pipeline.Shard(i, 2)) for i in range(2)]
    for step, batch in enumerate(whole):
        for i, part in enumerate(parts):
            np.testing.assert_array_equal(batch['image'][i::2], part[step]['image'])


def test_a_sum_of_splits_sees_every_image_once_an_epoch():
    labels = _labels(_stream(8, count=13, batch_size=2, split='train+extra'))
    assert sorted(labels) == [*range(13), 40, 41, 42]


def test_a_mixture_draws_by_weight():
    labels = _labels(_stream(50, count=13, batch_size=4, split='train:0.75,extra:0.25'))
    assert abs((labels >= 40).sum() - 50) <= 2
    assert set(labels) == {*range(13), 40, 41, 42}


@pytest.mark.parametrize(
    'text', ['', 'train+', 'train,extra', 'train:0,extra:1', 'train:x', 'train:nan', 'train:-1']
)
def test_malformed_training_split(text):
    with pytest.raises(InputError, match=r'config.data.train_split=.*write a split such as'):
        mixture.parse(text)


def test_training_on_withheld_labels():
    with pytest.raises(InputError, match=r"split 'test' .* cannot be trained on.*predict"):
        _stream(1, split='train+test')


def test_class_uniform_sampling_draws_classes_equally():
    records = mixture.records(_dataset(5), mixture.parse('train'))
    index = class_index.build(records[0], 2)
    kept = class_index.ClassIndex(index.points[index.points[:, 1] != 3])  # class 3 unknown to it
    plain, uniform = (
        _labels(_stream(30, 5, class_uniform=share, indices=(kept,))) for share in (0.0, 1.0)
    )
    assert (plain == 3).sum() == 24
    assert (uniform == 3).sum() == 0
    assert min((uniform == c).sum() for c in (0, 1, 2, 4)) > 15


def test_class_index_is_built_once(tmp_path):
    (records,) = mixture.records(_dataset(4), mixture.parse('train'))
    index = class_index.load_or_build(records, tmp_path, 2)
    (path,) = tmp_path.rglob('*.npy')
    before = path.stat().st_mtime_ns
    again = class_index.load_or_build(records, tmp_path, 2)
    np.testing.assert_array_equal(index.points, again.points)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    'damage',
    [
        lambda points: b'',
        lambda points: b'\x93NUMPY\x01\0\x10\0{"descr": [0)] \n',
        lambda points: _npy(points)[:-7],
        lambda points: _npy(points).replace(b', 4)', b'9, 4)', 1),
        lambda points: _npy(points.astype(object)),
        lambda points: _npy(points.astype(np.int64)),
        lambda points: _npy(points.ravel()),
        lambda points: _npy(points[:0]),
        lambda points: _npy(points[::-1]),
        lambda points: _npy(-points),
        lambda points: _npy(points + np.int32([0, 9, 0, 0])),
        lambda points: _npy(points + np.int32([99, 0, 0, 0])),
    ],
)
def test_a_damaged_class_index_is_built_again(tmp_path, damage):
    (records,) = mixture.records(_dataset(4), mixture.parse('train'))
    index = class_index.load_or_build(records, tmp_path, 2)
    (path,) = tmp_path.rglob('*.npy')
    whole = path.read_bytes()
    path.write_bytes(damage(index.points))
    assert path.read_bytes() != whole
    again = class_index.load_or_build(records, tmp_path, 2)
    np.testing.assert_array_equal(again.points, index.points)
    assert path.read_bytes() == whole


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_class_index_points_are_pixels_of_their_class(rng):
    label = rng.integers(0, 6, (37, 53), dtype=np.uint8)
    label[label == 5] = IGNORE
    label[20:, 30:] = 7
    found = class_index.points(label)
    assert all(label[y, x] == c for c, y, x in found)
    assert {c for c, _, _ in found} == {0, 1, 2, 3, 4, 7}
    assert len(set(found)) == len(found) > 100


@pytest.mark.parametrize('count', [1, 7, 8, 9])
@pytest.mark.parametrize(('batch_size', 'processes'), [(1, 1), (4, 1), (4, 2), (8, 4)])
@pytest.mark.parametrize('sizes', [(SIZE,), ((12, 16), (9, 30), (12, 17))])
def test_evaluation_sees_every_image_once_at_its_size(count, batch_size, processes, sizes):
    dataset = _dataset(count, sizes)
    evaluation = pipeline.evaluation_batches(
        dataset, 'validation', multiple=4, max_sizes=2, batch_size=batch_size
    )
    assert len(set(evaluation.sizes)) <= 2
    seen = []
    for i in range(processes):
        shard = pipeline.Shard(i, processes)
        batches = list(evaluation.load(shard=shard))
        assert len(batches) == len(evaluation)
        for batch, padded in zip(batches, evaluation.sizes):
            assert batch['image'].shape == (batch_size // processes, *padded, 3)
            for index, size, label in zip(batch['index'], batch['size'], batch['label']):
                height, width = size
                assert (label[height:] == IGNORE).all() and (label[:, width:] == IGNORE).all()
                if index >= 0:
                    assert tuple(size) == sizes[index % len(sizes)]
                    assert (label[:height, :width] == index).all()
                    seen.append(int(index))
    assert sorted(seen) == list(range(count))


def test_sizes_are_merged_where_least_is_added():
    sizes = np.array([(8, 8)] * 5 + [(8, 16)] * 5 + [(100, 100)])
    assert set(pipeline.merge_sizes(sizes, 3)) == {(8, 8), (8, 16), (100, 100)}
    assert set(pipeline.merge_sizes(sizes, 2)) == {(8, 16), (100, 100)}
    assert pipeline.merge_sizes(sizes, 1) == {(100, 100): list(range(11))}


@pytest.mark.slow
@pytest.mark.parametrize('cache', [0, 10_000])
def test_workers_give_the_stream_of_threads(cache):
    threads = _stream(5)
    workers = _stream(5, loader=pipeline.LoaderOptions(1, workers=2, buffer=1), cache=cache)
    assert all(_equal(a, b) for a, b in zip(threads, workers, strict=True))


@pytest.mark.parametrize('cache', [1_000, 2_000, 1_000_000])
def test_records_in_memory_give_the_stream_of_files(cache):
    """One of thirteen records of 768 bytes, two, and all of them, over several epochs."""
    files = _stream(12, split='train:2,extra:1')
    memory = _stream(12, split='train:2,extra:1', cache=cache)
    assert all(_equal(a, b) for a, b in zip(files, memory, strict=True))


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere priorities are those of processes')
def test_threads_that_load_images_give_way():
    """They alone, not the one that takes the batches."""
    seen = {}

    class Transform(transforms.TrainTransform):
        def __call__(self, *arguments):
            thread = threading.get_native_id()
            seen.setdefault(thread, []).append(os.getpriority(os.PRIO_PROCESS, thread))
            return super().__call__(*arguments)

    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    parts = mixture.records(_dataset(13), mixture.parse('train'))
    batches = pipeline.train_batches(
        parts,
        (1.0,),
        Transform((8, 8), (0.5, 1.5)),
        seed=3,
        batch_size=1,
        loader=pipeline.LoaderOptions(2, niceness=19),
    )
    with contextlib.closing(batches):
        taken = [next(batches) for _ in range(20)]
    assert all(_equal(a, b) for a, b in zip(taken, _stream(20, batch_size=1), strict=True))
    assert threading.get_native_id() not in seen
    assert all(priorities[1:] == [19] * (len(priorities) - 1) for priorities in seen.values())
    assert max(map(len, seen.values())) > 1
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine


@pytest.mark.slow
def test_workers_leave_no_shared_memory(tmp_path):
    """Even of batches that live as long as the process, and of those that nobody took."""
    script = tmp_path / 'script.py'
    script.write_text(
        'from tests.data.test_pipeline import _stream, pipeline\n'
        'if __name__ == "__main__":\n'
        '    batches = _stream(4, loader=pipeline.LoaderOptions(1, workers=1, buffer=2))\n'
        '    print(len(batches))\n'
    )
    process = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=one_device()
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, '4\n', '')


def test_batch_that_processes_cannot_share():
    with pytest.raises(InputError, match='batch size 5 is not divisible by the 2 processes'):
        _stream(1, batch_size=5, shard=pipeline.Shard(0, 2))


def test_a_split_without_images():
    with pytest.raises(InputError, match="split 'validation' of data set 'fake' has no images"):
        pipeline.evaluation_batches(
            _dataset(0), 'validation', multiple=4, max_sizes=2, batch_size=2
        )


def test_a_batch_may_be_larger_than_the_data_set():
    batches = _stream(3, count=1, batch_size=4)
    assert all((batch['label'] == 0).any() for batch in batches)


def test_unknown_split():
    with pytest.raises(InputError, match="no split 'val'; it has train, extra, validation, test"):
        _dataset(2).source('val')
