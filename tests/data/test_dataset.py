"""The contract of a data set, written against from outside the repository."""

import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest

from ggcf_jax import config as config_lib
from ggcf_jax import data
from ggcf_jax.data import pipeline
from ggcf_jax.data.records import dataset as contract
from ggcf_jax.data.records.codec import IGNORE, FileDecoder
from ggcf_jax.data.records.dataset import Dataset, identity_label_map
from ggcf_jax.data.scan import scan
from ggcf_jax.errors import InputError
from tests.helpers import ROOT

IMPORTS = """
import pathlib

from ggcf_jax.data.records.codec import FileDecoder
from ggcf_jax.data.records.dataset import Dataset, FileSource, identity_label_map

"""
# A format of its own: arrays in memory whose bytes are stored with their size.
ARRAYS = """
import numpy as np

from ggcf_jax.data.records.dataset import Dataset


class Source:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        label = (np.arange(30 * 40) % 3).astype(np.uint8).reshape(30, 40)
        image = np.repeat(label[..., None] * 80, 3, axis=2)
        return {'name': str(index), 'image': image.tobytes(), 'label': label.tobytes()}


class Decoder:
    def image(self, data, name):
        return np.frombuffer(data, np.uint8).reshape(30, 40, 3)

    def label(self, data, name):
        return np.frombuffer(data, np.uint8).reshape(30, 40)

    def label_size(self, data, name):
        return 30, 40


def build(data):
    return Dataset(
        name='arrays',
        classes=('a', 'b', 'c'),
        colors=((0, 0, 0), (80, 80, 80), (160, 160, 160)),
        sources={'train': Source(data.own.count), 'validation': Source(2)},
        decoder=Decoder(),
        identity=f'arrays {data.own.count}',
    )


def wrong(data):
    return {'train': Source(1)}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `fields` of two modules: the example of the contract, and a format of its own."""
    example = contract.__doc__.split('`:\n\n')[1].split('\n\nImages that')[0]
    (tmp_path / 'fields').mkdir()
    (tmp_path / 'fields' / '__init__.py').write_text('')
    (tmp_path / 'fields' / 'leaves.py').write_text(IMPORTS + textwrap.dedent(example))
    (tmp_path / 'fields' / 'arrays.py').write_text(ARRAYS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split('.')[0] == 'fields']:
        del sys.modules[name]


def _config(tmp_path, name):
    config = config_lib.default()
    config.data.name = name
    config.data.manual_dir = str(tmp_path / 'leaves')
    config.data.data_dir = str(tmp_path / 'prepared')
    config.data.crop_size = (16, 16)
    config.data.threads = 2
    config.train.batch_size = 2
    config.eval.batch_size = 2
    with config.unlocked():
        config.data.own = {'count': 5}
    return config


def _training_batch(config, dataset):
    batches = data.training_batches(config, dataset, 0, pipeline.Shard())
    first = next(batches)
    batches.close()
    return first


def test_the_example_of_the_contract(package, tmp_path, rng):
    for split, count in (('train', 3), ('validation', 2)):
        for kind in ('images', 'labels'):
            (tmp_path / 'leaves' / split / kind).mkdir(parents=True)
        for i in range(count):
            folder = tmp_path / 'leaves' / split
            label = rng.choice(np.array([0, 1, 255], np.uint8), (30, 40))
            cv2.imwrite(str(folder / 'images' / f'{i}.jpg'), np.full((30, 40, 3), 80, np.uint8))
            cv2.imwrite(str(folder / 'labels' / f'{i}.png'), label)
    config = _config(tmp_path, 'fields.leaves:build')
    dataset = data.build(config.data)
    assert dataset.classes == ('soil', 'leaf')
    found = scan(dataset, 'train', threads=2)
    assert found.count == 3 and not found.problems and found.pixels.all() and found.ignored
    assert set(np.unique(_training_batch(config, dataset)['label'])) <= {0, 1, IGNORE}
    (batch,) = data.evaluation_batches(config, dataset, 'validation').load()
    np.testing.assert_array_equal(batch['label'][1][:30, :40], label)


@pytest.mark.parametrize('storage', ['original', 'compact'])
def test_a_format_of_its_own(package, tmp_path, storage):
    config = _config(tmp_path, 'fields.arrays:build')
    config.data.storage = storage
    config.data.class_uniform = 0.5
    config.train.class_weights = 'data'
    dataset = data.build(config.data)
    assert len(dataset.source('train')) == 5
    assert _training_batch(config, dataset)['image'].shape == (2, 16, 16, 3)
    np.testing.assert_allclose(data.class_weights_of(config, dataset), 1 / np.log(1.1 + 1 / 3))
    evaluation = data.evaluation_batches(config, dataset, 'validation')
    (batch,) = evaluation.load()
    example = dataset.decode(dataset.source('validation')[0])
    np.testing.assert_array_equal(batch['image'][0][:30, :40], example['image'])


def test_the_page_shows_the_example_of_the_contract():
    example = textwrap.dedent(contract.__doc__.split('`:\n\n')[1].split('\n\nImages that')[0])
    page = (ROOT / 'docs' / 'data.md').read_text()
    assert example.split('\n', 1)[1] in page  # without the comment on its first line


def test_a_function_that_returns_something_else(package, tmp_path):
    with pytest.raises(InputError, match=r"name='fields.arrays:wrong' returns dict; it must"):
        data.build(_config(tmp_path, 'fields.arrays:wrong').data)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'classes': ()}, "'x' has 0 classes; 1 to 254 fit 8-bit labels"),
        ({'colors': ((0, 0, 0),)}, 'colors must have one entry per class, 2 instead of 1'),
        ({'server_ids': (7,)}, 'server_ids must have one entry per class, 2 instead of 1'),
        (
            {'categories': ('a', 'b', 'c')},
            'categories must have one entry per class, 2 instead of 3',
        ),
    ],
)
def test_lists_of_another_length_than_the_classes(changes, message):
    fields = {
        'name': 'x',
        'classes': ('a', 'b'),
        'colors': ((0, 0, 0), (9, 9, 9)),
        'sources': {},
        'decoder': FileDecoder(identity_label_map(2, 255)),
        'identity': 'x',
    }
    with pytest.raises(InputError, match=message):
        Dataset(**(fields | changes))


WITHOUT_JAX = """
import importlib, pathlib, pkgutil, sys
for library in ('jax', 'jaxlib', 'flax'):
    sys.modules[library] = None  # importing it fails
import ggcf_jax.data
for module in pkgutil.walk_packages(ggcf_jax.data.__path__, 'ggcf_jax.data.'):
    importlib.import_module(module.name)
from ggcf_jax.data import pipeline
from fields import arrays
from ggcf_jax.data.records.dataset import Records
from ggcf_jax.data.transforms import TrainTransform
from types import SimpleNamespace
dataset = arrays.build(SimpleNamespace(own=SimpleNamespace(count=3)))
parts, transform = (Records(dataset, ('train',)),), TrainTransform((8, 8), (0.5, 1.5))
batches = pipeline.train_batches(parts, (1.0,), transform, seed=0, batch_size=2)
print(next(batches)['image'].shape)
"""


def test_batches_are_made_without_jax(package, tmp_path):
    """grain imports jax where it is installed; nothing of ours does, and grain need not."""
    process = subprocess.run(
        [sys.executable, '-c', WITHOUT_JAX],
        cwd=ROOT,
        env={'PYTHONPATH': f'{ROOT}:{tmp_path}', 'PATH': '', 'HOME': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert process.stdout == '(2, 8, 8, 3)\n', process.stderr
