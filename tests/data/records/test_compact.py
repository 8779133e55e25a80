import pickle

import cv2
import imagecodecs
import numpy as np
import pytest

from ggcf_jax import data
from ggcf_jax.data import class_uniform, mixture, pipeline, transforms
from ggcf_jax.data.records import compact
from ggcf_jax.data.records.codec import IGNORE, FileDecoder
from ggcf_jax.data.records.dataset import Dataset, identity_label_map
from ggcf_jax.errors import InputError


class _Pngs:
    """PNG records of images and labels that are given."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, label = (cv2.imencode('.png', array)[1].tobytes() for array in self.pairs[index])
        return {'name': f'image_{index}', 'image': image, 'label': label}


def _pngs(pairs):
    """A data set of pairs (image [h, w, 3] RGB, label [h, w])."""
    source = _Pngs([(image[..., ::-1], label) for image, label in pairs])
    names = tuple(map(str, range(9)))
    colors = ((0, 0, 0),) * 9
    return Dataset(
        name='pngs',
        classes=names,
        colors=colors,
        sources={'train': source},
        decoder=FileDecoder(identity_label_map(9, IGNORE)),
        identity='pngs',
    )


@pytest.fixture
def streets(rng):
    """Four images of different sizes, some of several tiles."""
    pairs = []
    for size in ((300, 600), (40, 30), (256, 512), (270, 200)):
        noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        label = rng.choice([0, 3, 3, 3, 8, IGNORE], (-(-size[0] // 32), -(-size[1] // 32)))
        label = label.astype(np.uint8).repeat(32, 0).repeat(32, 1)[: size[0], : size[1]]
        pairs.append((cv2.GaussianBlur(noise, (0, 0), 2), label))
    return _pngs(pairs)


def _examples(dataset):
    source = dataset.source('train')
    return {e['name']: e for e in (dataset.decode(source[i]) for i in range(len(source)))}


def test_labels_are_exact_and_images_close(camvid_folder, tiny_config, tmp_path):
    original = data.build(tiny_config.data)
    made = compact.dataset(original, ['train'], directory=tmp_path / 'compact', threads=2)
    assert set(made.sources) == {'train'}
    pairs = _examples(original), _examples(made)
    assert pairs[0].keys() == pairs[1].keys() and len(pairs[0]) == 6
    for name, example in pairs[0].items():
        np.testing.assert_array_equal(pairs[1][name]['label'], example['label'])
        assert IGNORE in example['label']
        error = pairs[1][name]['image'].astype(float) - example['image']
        assert np.sqrt((error**2).mean()) < 4  # the fields have sharp edges, the worst for JPEG


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'class_uniform': 0.7},
        {'max_class_share': 0.4},
        {'class_uniform': 0.5, 'max_class_share': 0.4, 'aspect_jitter': 0.2, 'photometric': 1.0},
    ],
)
def test_samples_are_those_of_the_decoded_whole(streets, tmp_path, options):
    """Windows of tiles against PNG files of the same pixels, through the whole pipeline."""
    made = compact.dataset(streets, ['train'], directory=tmp_path, threads=2)
    source = made.source('train')
    decoded = [made.decode(source[i]) for i in range(len(source))]
    wholes = _pngs([(e['image'], e['label']) for e in decoded])
    uniform = {'class_uniform': options.get('class_uniform', 0.0)}
    changes = {name: value for name, value in options.items() if name not in uniform}

    def stream(dataset):
        parts = mixture.records(dataset, mixture.parse('train'))
        batches = pipeline.train_batches(
            parts,
            (1.0,),
            transforms.TrainTransform((96, 128), (0.5, 1.5), **changes),
            seed=5,
            batch_size=4,
            indices=tuple(class_uniform.build(part, 2) for part in parts),
            **uniform,
        )
        found = [next(batches) for _ in range(8)]
        batches.close()
        return found

    for ours, expected in zip(stream(made), stream(wholes), strict=True):
        for name in expected:
            np.testing.assert_array_equal(ours[name], expected[name])


def test_labels_that_are_damaged_are_refused(rng):
    label = rng.integers(0, 20, (37, 53), dtype=np.uint8)
    encoded = compact.encode_label(label)
    np.testing.assert_array_equal(compact.decode_label(encoded, 'street'), label)
    png = cv2.imencode('.png', label)[1].tobytes()
    of_less = imagecodecs.zstd_encode(imagecodecs.zstd_decode(encoded)[:-1])
    zeros = encoded[:20] + bytes(20) + encoded[40:]
    for damaged in (b'', encoded[:-9], zeros, png, of_less, imagecodecs.zstd_encode(b'?')):
        with pytest.raises(InputError, match='street: the label cannot be decoded'):
            compact.decode_label(damaged, 'street')


def test_labels_of_another_size_are_refused(streets, tmp_path):
    made = compact.dataset(streets, ['train'], directory=tmp_path, threads=2)
    records = {record['name']: record for record in map(made.source('train').__getitem__, range(4))}
    mixed = records['image_0'] | {'label': records['image_1']['label']}
    with pytest.raises(
        InputError, match='image_0: the image is 300 x 600 but its label is 40 x 30'
    ):
        made.open(mixed)


def test_records_of_another_version_are_made_again(streets, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(compact.Builder, 'VERSION', '1.1.0')  # whole JPEG files
        compact.dataset(streets, ['train'], directory=tmp_path, threads=2)
    (old,) = (path for path in tmp_path.rglob('*array_record-*') if '1.1.0' in path.parts)
    old.write_bytes(b'')
    assert _examples(compact.dataset(streets, ['train'], directory=tmp_path, threads=2)).keys() == {
        f'image_{i}' for i in range(4)
    }


def test_worker_processes_can_have_it(streets, tmp_path):
    made = compact.dataset(streets, ['train'], directory=tmp_path, threads=2)
    copy = pickle.loads(pickle.dumps(made))
    for name, example in _examples(made).items():
        np.testing.assert_array_equal(_examples(copy)[name]['image'], example['image'])


def test_it_is_made_once_and_trained_on(tiny_config, tmp_path):
    tiny_config.data.storage = 'compact'
    dataset = data.build(tiny_config.data)

    def batch():
        batches = data.training_batches(tiny_config, dataset, 0, pipeline.Shard())
        first = next(batches)
        batches.close()
        return first

    first = batch()
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / 'prepared').rglob('*') if p.is_file()}
    assert any('ggcf_jax_compact' in str(p) for p in files)
    second = batch()
    assert {p: p.stat().st_mtime_ns for p in files} == files
    np.testing.assert_array_equal(first['image'], second['image'])
    assert first['image'].shape == (8, 24, 24, 3)
