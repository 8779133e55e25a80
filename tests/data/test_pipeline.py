import cv2
import numpy as np
import pytest

from ggcf_jax.data import pipeline, transforms
from ggcf_jax.data.dataset import IGNORE, Dataset, identity_label_map
from ggcf_jax.errors import InputError

SIZE = (12, 16)


class _Source:
    """Record i is an image of colour i with label i."""

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        image = np.full((*SIZE, 3), index, np.uint8)
        image[:, : SIZE[1] // 2] += 100  # so that flips show
        return {
            'name': f'image_{index}',
            'image': cv2.imencode('.png', image)[1].tobytes(),
            'label': cv2.imencode('.png', np.full(SIZE, index, np.uint8))[1].tobytes(),
        }


def _dataset(count):
    colors = ((0, 0, 0),) * 50
    names = tuple(map(str, range(50)))
    source = {'train': _Source(count), 'validation': _Source(count)}
    return Dataset('fake', names, colors, source, identity_label_map(50, 255))


def _stream(steps, count=13, start=0, shard=pipeline.Shard(), batch_size=4, seed=3):
    batches = pipeline.train_batches(
        _dataset(count),
        'train',
        transforms.TrainTransform((8, 8), (0.5, 1.5)),
        seed=seed,
        batch_size=batch_size,
        start_step=start,
        shard=shard,
    )
    return [next(batches) for _ in range(steps)]


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


@pytest.mark.parametrize('count', [1, 7, 8, 9])
@pytest.mark.parametrize(('batch_size', 'processes'), [(1, 1), (4, 1), (4, 2), (8, 4)])
def test_evaluation_sees_every_image_once(count, batch_size, processes):
    dataset = _dataset(count)
    seen, lengths = [], set()
    for i in range(processes):
        shard = pipeline.Shard(i, processes)
        batches = list(
            pipeline.evaluation_batches(
                dataset, 'validation', SIZE, batch_size=batch_size, shard=shard
            )
        )
        lengths.add(len(batches))
        for batch in batches:
            assert batch['image'].shape == (batch_size // processes, *SIZE, 3)
            seen += batch['index'][batch['valid']].tolist()
            assert (batch['label'][~batch['valid']] == IGNORE).all()
            for index, label in zip(batch['index'][batch['valid']], batch['label'][batch['valid']]):
                assert (label == index).all()
    assert sorted(seen) == list(range(count))
    assert lengths == {pipeline.num_evaluation_batches(dataset, 'validation', batch_size)}


def test_evaluation_pads_small_images():
    (batch,) = pipeline.evaluation_batches(_dataset(1), 'validation', (15, 20), batch_size=1)
    assert batch['image'].shape == (1, 15, 20, 3)
    assert (batch['label'][0, 12:] == IGNORE).all() and (batch['label'][0, :, 16:] == IGNORE).all()


def test_evaluation_refuses_larger_images():
    with pytest.raises(InputError, match=r'image_0: the image is 12 x 16.*config.eval.image_size'):
        list(pipeline.evaluation_batches(_dataset(1), 'validation', (12, 15), batch_size=1))


def test_batch_that_processes_cannot_share():
    with pytest.raises(InputError, match='batch size 5 is not divisible by the 2 processes'):
        _stream(1, batch_size=5, shard=pipeline.Shard(0, 2))


def test_unknown_split():
    with pytest.raises(InputError, match="no split 'val'; it has train, validation"):
        _dataset(2).source('val')
