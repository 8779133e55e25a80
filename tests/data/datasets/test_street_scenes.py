import functools
import hashlib
import multiprocessing
import os
import signal
import types

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.labels import trainId2label

from ggcf_jax.data.datasets import street_scenes
from ggcf_jax.data.datasets.street_painter import classes, paint
from ggcf_jax.errors import InputError

SMALL = (128, 256)


@functools.cache
def scene(index, split='train', seed=0, size=SMALL):
    return paint.paint_scene(seed, split, index, size)


def data_config(tmp_path, image_size=(64, 128), num_images=(3, 2, 1)):
    return types.SimpleNamespace(
        data_dir=str(tmp_path), image_size=image_size, num_images=num_images
    )


def test_classes_are_those_of_cityscapes():
    assert len(classes.CLASSES) == len(classes.COLORS) == 19
    for train_id, (name, color) in enumerate(zip(classes.CLASSES, classes.COLORS)):
        assert trainId2label[train_id].name == name
        assert tuple(trainId2label[train_id].color) == color
    assert classes.CLASSES[classes.TRAFFIC_LIGHT] == 'traffic light'


def test_every_class_occurs_and_no_other_value():
    counts = sum(np.bincount(scene(i)[1].ravel(), minlength=256) for i in range(40))
    share = counts / counts.sum()
    assert set(np.flatnonzero(counts)) == {*range(19), 255}
    assert (share[:19] > 0.001).all(), dict(zip(classes.CLASSES, share))
    assert 0.001 < share[255] < 0.1


def _digest(index):
    example = street_scenes.encode_scene(street_scenes.SceneSet(SMALL), 'train', index)
    return hashlib.sha256(example['image'] + example['label']).hexdigest()


@pytest.mark.slow
def test_same_bytes_in_any_order_and_process():
    forward = [_digest(i) for i in range(4)]
    assert [_digest(i) for i in reversed(range(4))] == forward[::-1]
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        assert pool.map(_digest, [2, 0]) == [forward[2], forward[0]]
    assert len(set(forward)) == 4


def test_seed_split_and_index_each_change_the_scene():
    image = scene(0)[0]
    for other in (scene(1), scene(0, split='test'), scene(0, seed=1)):
        assert (other[0] != image).mean() > 0.5


@pytest.mark.parametrize('size', [(64, 128), (96, 160), (256, 256), (256, 512)])
def test_sizes(size):
    for index in range(3):
        image, label = scene(index, size=size)
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert label.shape == size and label.dtype == np.uint8
        assert image.std() > 10


def test_size_changes_the_resolution_and_not_the_scene():
    for index in range(3):
        small, large = scene(index)[1], scene(index, size=(256, 512))[1]
        reduced = cv2.resize(large, (256, 128), interpolation=cv2.INTER_NEAREST_EXACT)
        assert (reduced == small).mean() > 0.9


def _patches(index):
    """Mean and spread of the 5 x 5 pixels around each labelled pixel, and the labels."""
    image, label = scene(index)
    image = image.astype(np.float32)
    mean = cv2.blur(image, (5, 5))
    grey = image.mean(-1)
    spread = np.sqrt(np.maximum(cv2.blur(grey**2, (5, 5)) - cv2.blur(grey, (5, 5)) ** 2, 0))
    features = np.dstack([mean / 24, np.minimum(spread / 8, 5)]).astype(np.int64)
    codes = features @ np.array([11 * 11 * 6, 11 * 6, 6, 1])
    valid = label != 255
    return codes[valid], label[valid]


def test_local_patches_do_not_tell_the_members_of_a_family_apart():
    # A histogram classifier over colour and contrast of 5 x 5 patches, the best local one there
    # is for these features: P(class | patch) from 40 scenes, each class given the same weight.
    counts = np.zeros((11**3 * 6, 19))
    for index in range(40):
        np.add.at(counts, _patches(index), 1)
    likelihood = (counts + 0.05) / (counts + 0.05).sum(0)
    held_out = [_patches(index) for index in range(40, 70)]
    codes, labels = (np.concatenate(parts) for parts in zip(*held_out))

    def balanced_accuracy(*names):
        members = [classes.CLASSES.index(name) for name in names]
        chosen = np.asarray(members)[likelihood[:, members].argmax(1)][codes]
        return np.mean([(chosen[labels == m] == m).mean() for m in members])

    assert balanced_accuracy('road', 'sky') > 0.9
    assert balanced_accuracy('vegetation', 'sky') > 0.9
    # Chance is 1/3 for families of three and 1/2 for those of two.
    assert balanced_accuracy('building', 'wall', 'fence') < 0.6
    assert balanced_accuracy('truck', 'bus', 'train') < 0.6
    assert balanced_accuracy('vegetation', 'terrain') < 0.8


def test_prepared_set_reads_back_the_painted_bytes(tmp_path):
    dataset = street_scenes.build(data_config(tmp_path))
    assert {split: len(source) for split, source in dataset.sources.items()} == {
        'train': 3,
        'validation': 2,
        'test': 1,
    }
    scenes = street_scenes.SceneSet((64, 128), (3, 2, 1))
    for split, source in dataset.sources.items():
        records = {source[i]['name']: source[i] for i in range(len(source))}
        expected = [street_scenes.encode_scene(scenes, split, i) for i in range(len(source))]
        for example in expected:
            assert records.pop(example['name']).items() >= example.items()
        assert not records
    decoded = dataset.decode(dataset.sources['test'][0])
    image, label = paint.paint_scene(0, 'test', 0, (64, 128))
    np.testing.assert_array_equal(decoded['image'], image)
    np.testing.assert_array_equal(decoded['label'], label)


def test_other_settings_prepare_another_folder(tmp_path):
    names = {
        street_scenes.SceneSet(size, counts, seed).name
        for size in ((64, 128), (128, 128))
        for counts in ((3, 2, 1), (3, 1, 2))
        for seed in (0, 1)
    }
    assert len(names) == 8
    scenes = street_scenes.SceneSet((64, 128), (3, 2, 1))
    builder = street_scenes.Builder(scenes, data_dir=str(tmp_path))
    assert scenes.name in builder.data_dir


def _prepare_and_die(data_dir):
    encode = street_scenes.encode_scene

    def dying(scenes, split, index):
        if split == 'validation':
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(scenes, split, index)

    street_scenes.encode_scene = dying
    street_scenes.build(data_config(data_dir))


@pytest.mark.slow
def test_killed_preparation_is_done_again(tmp_path):
    process = multiprocessing.get_context('spawn').Process(
        target=_prepare_and_die, args=(tmp_path,)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = [path for path in tmp_path.rglob('*') if path.is_file()]
    assert left, 'the preparation was killed before it wrote anything'
    scenes = street_scenes.SceneSet((64, 128), (3, 2, 1))
    assert not street_scenes.Builder(scenes, data_dir=str(tmp_path)).data_path.exists()
    assert len(street_scenes.build(data_config(tmp_path)).sources['train']) == 3


@pytest.mark.parametrize('size', [(100, 256), (32, 128), (64, 64), (256,), (64.0, 128), '64x128'])
def test_bad_sizes_name_the_value_and_the_cure(tmp_path, size):
    with pytest.raises(InputError, match='multiples of 32') as error:
        street_scenes.build(data_config(tmp_path, image_size=size))
    assert repr(size) in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('counts', [(0, 1, 1), (1, 1), (1, 1, True)])
def test_bad_numbers_of_images(tmp_path, counts):
    with pytest.raises(InputError, match='three positive numbers'):
        street_scenes.build(data_config(tmp_path, num_images=counts))
