"""The Python API of a trained model against what the modes write of the same checkpoint."""

import cv2
import numpy as np
import pytest
from PIL import Image

from ggcf_jax import data, evaluate, models, predict
from ggcf_jax.data.datasets import camvid
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import metrics
from ggcf_jax.models.contexts.pruning_rules import pruned
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import model as model_lib
from tests.helpers import make_tiny_config, save_untrained, write_camvid

SIZES = {'a': (40, 56), 'b': (31, 50), 'c': (40, 56), 'large': (150, 100), 'pixel': (1, 1)}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The workdir of a run with a checkpoint, and the configuration of the tests."""
    root = tmp_path_factory.mktemp('model')
    config = make_tiny_config(write_camvid(root / 'camvid', np.random.default_rng(0)), root)
    config.update_from_flattened_dict(
        {
            'eval.max_sizes': 2,
            'eval.pruning': 'local:keep=4',
            'eval.metrics': 'mean_accuracy',
            'predict.max_side': 64,
            'predict.probabilities': True,
        }
    )
    save_untrained(config, 11, root / 'run')
    return root / 'run', config


@pytest.fixture(scope='module')
def model(run):
    return model_lib.load(run[0], 'latest')


@pytest.fixture(scope='module')
def predicted(run, tmp_path_factory):
    """Image files by name, and the folder into which --mode=predict wrote their results."""
    workdir, config = run
    root = tmp_path_factory.mktemp('predicted')
    (root / 'in').mkdir()
    rng = np.random.default_rng(5)
    paths = {name: root / 'in' / f'{name}.png' for name in SIZES}
    for name, (height, width) in SIZES.items():
        coarse = rng.integers(0, 255, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
        cv2.imwrite(str(paths[name]), cv2.resize(coarse, (width, height)))
    turned = Image.open(paths['b'])
    exif = turned.getexif()
    exif[0x112] = 6  # to be turned by a quarter when it is shown
    paths['turned'] = root / 'in' / 'turned.jpg'
    turned.save(paths['turned'], exif=exif)
    assert predict.predict(config, workdir, 'latest', str(root / 'in'), str(root / 'out'))
    return paths, root / 'out'


def _image(path):
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def test_what_a_model_tells_of_itself(model):
    assert model.classes == camvid.CLASSES and model.colors == camvid.COLORS
    assert model.step == 0 and str(model.plan) == 'whole image, pruning local:keep=4'
    assert model.config.predict.max_side == 64
    assert len(repr(model)) < 10_000  # not the parameters


@pytest.mark.slow
def test_labels_are_those_of_the_files(model, predicted):
    paths, out = predicted
    images = [paths[name] if name != 'c' else _image(paths[name]) for name in sorted(paths)]
    for name, labels in zip(sorted(paths), model.predict(images), strict=True):
        written = np.asarray(Image.open(out / 'labels' / f'{name}.png'))
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, written, err_msg=name)


@pytest.mark.slow
def test_one_image_is_a_list_of_one(model, predicted):
    paths, _ = predicted
    (expected,) = model.predict((str(paths['a']),))
    np.testing.assert_array_equal(model.predict(_image(paths['a'])), expected)
    assert model.predict([]) == []


@pytest.mark.slow
@pytest.mark.parametrize('name', ['a', 'large'])
def test_probabilities(model, predicted, name):
    paths, _ = predicted
    found = model.probabilities(paths[name])
    assert found.dtype == np.float32 and found.shape == (*SIZES[name], 11)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(-1), model.predict(paths[name]))


@pytest.mark.slow
def test_sizes_that_were_seen_are_not_compiled_again(model, predicted, monkeypatch):
    paths, _ = predicted
    image = _image(paths['a'])
    before = model.predict(image), model.attention(image, (3, 4))
    monkeypatch.setattr(models, 'merge', None)  # tracing would call it
    np.testing.assert_array_equal(model.predict(image[:, :50]).shape, (40, 50))  # padded alike
    np.testing.assert_array_equal(model.predict(image), before[0])
    np.testing.assert_array_equal(model.attention(image, (3, 4)), before[1])


@pytest.mark.slow
def test_attention(model, predicted):
    paths, _ = predicted
    found = model.attention(paths['a'], (20, 31))
    network = pruned(model.network, model.plan.pruning)
    image, at = _image(paths['a']), np.array([[3, 4]])  # (20, 31) / 8, rounded half up
    assert found.dtype == np.float32 and found.shape == (2, 5, 7)
    np.testing.assert_allclose(found.sum((1, 2)), 1, atol=1e-5)
    assert 1 <= (found[0] > 0).sum() <= 4  # of nine neighbours
    np.testing.assert_allclose(found, network.attention(image[None], at)[0, 0], atol=1e-3)
    for position in ((40, 0), (0, -1)):
        with pytest.raises(InputError, match=r'lies outside of the image of 40 x 56'):
            model.attention(image, position)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('context', 'rules', 'kept'),
    [
        ('nonlocal', 'full:keep=5', [5]),
        ('ccnet', 'cross:drop=0.5', [6, 6]),  # of 5 + 7 - 1
        ('isa', 'grid:keep=2,block:keep=3', [2, 3]),
    ],
)
def test_other_context_modules_show_and_prune_their_attention(
    context, rules, kept, tiny_config, tmp_path, rng
):
    tiny_config.model.context = context
    save_untrained(tiny_config, 11, tmp_path / 'run', spread=0.1)
    model = model_lib.load(tmp_path / 'run')
    tiny_config.eval.pruning = rules
    pruned_model = model_lib.load(tmp_path / 'run', config=tiny_config)
    image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    for each, counts in ((model, None), (pruned_model, kept)):
        maps = each.attention(image, (16, 24))
        assert maps.shape == (len(kept), 5, 7)
        np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-5)
        assert counts is None or [(m > 0).sum() for m in maps] == counts
    difference = model.probabilities(image) - pruned_model.probabilities(image)
    assert np.abs(difference).max() > 1e-4


def test_a_model_without_heads_has_no_attention(workdirs):
    model = model_lib.load(workdirs / 'none')
    with pytest.raises(InputError, match="context='none' has no attention heads"):
        model.attention(np.zeros((8, 8, 3), np.uint8), (0, 0))


@pytest.mark.slow
def test_evaluates_as_the_mode_does(run, model, tmp_path):
    workdir, config = run
    expected = evaluate.evaluate_workdir(config, workdir, 'validation', 'latest')
    dataset = data.build(config.data)
    source = dataset.source('validation')
    examples = [dataset.decode(source[i]) for i in range(len(source))]
    images, labels = ([each[name] for each in examples] for name in ('image', 'label'))
    cv2.imwrite(str(tmp_path / 'label.png'), labels[1])
    labels[1] = tmp_path / 'label.png'
    found = model.evaluate(images, labels)
    np.testing.assert_array_equal(found.matrix, expected.matrix)
    assert found.miou == expected.miou and found.iou == expected.iou
    assert (
        found.scores
        == expected.scores
        == {
            'miou': expected.miou,
            'mean_accuracy': metrics.mean_accuracy(expected.matrix),
        }
    )


def test_images_and_labels_that_do_not_fit(model, tmp_path):
    image, label = np.zeros((9, 7, 3), np.uint8), np.zeros((9, 7), np.uint8)
    with pytest.raises(InputError, match='there are 2 images, but 1 labels'):
        model.evaluate([image, image], [label])
    with pytest.raises(InputError, match=r'label 0 is uint8 \[7, 9\]; its image needs .*\[9, 7\]'):
        model.evaluate([image], [label.T])
    with pytest.raises(InputError, match='label 0'):
        model.evaluate([image], [label + 11])
    for bad in (image[..., 0], image.astype(np.float32), image[..., :2], image[:0]):
        with pytest.raises(InputError, match=r'give RGB as uint8 \[height, width, 3\]'):
            model.predict(bad)
    (tmp_path / 'text.png').write_text('not an image')
    with pytest.raises(InputError, match=r'text\.png: the image cannot be decoded'):
        model.predict([image, tmp_path / 'text.png'])
    with pytest.raises(InputError, match='No such file'):
        model.predict(tmp_path / 'nothing.png')


@pytest.mark.slow
def test_another_way_of_inference(run, model, predicted):
    workdir, _ = run
    config = workdir_config.load(workdir)
    config.eval.flip = True
    flipped = model_lib.load(workdir, 'latest', config=config)
    assert 'flip' in str(flipped.plan)
    assert (flipped.predict(predicted[0]['a']) != model.predict(predicted[0]['a'])).any()
    config.model.heads = 'local:2,grid:2'
    with pytest.raises(InputError, match=r"model\.heads: 'local:1,grid:2' there, 'local:2,grid:2'"):
        model_lib.load(workdir, config=config)


def test_what_cannot_be_loaded(run, tmp_path):
    with pytest.raises(InputError, match='is not the workdir of a run'):
        model_lib.load(tmp_path)
    with pytest.raises(InputError, match='checkpoint 7 is not in'):
        model_lib.load(run[0], 7)
