"""Tries the installed wheel: python -I tests/wheel.py in an empty folder, as .ci/run does.

The environment has the wheel and its dependencies, and nothing of the checkout is on the path.
"""

import importlib.metadata
import importlib.util
import pathlib
import sys

import cv2
import jax
import numpy as np

import ggcf_jax
from ggcf_jax import attend, train
from ggcf_jax import config as config_lib
from ggcf_jax.attention.graphs import Local
from ggcf_jax.workdir.model import load


def check_files() -> None:
    """The package and its data are there, and nothing else of the checkout."""
    assert pathlib.Path(ggcf_jax.__file__).is_relative_to(sys.prefix), ggcf_jax.__file__
    files = {str(file) for file in importlib.metadata.files('ggcf_jax')}
    assert {name.partition('/')[0] for name in files if '.dist-info/' not in name} == {'ggcf_jax'}
    data = {n for n in files if n.startswith('ggcf_jax/') and not n.endswith(('.py', '.pyc'))}
    tables = pathlib.Path(__file__).parent.parent.glob('ggcf_jax/data/datasets/class_files/*.csv')
    assert data == {
        *(f'ggcf_jax/data/datasets/class_files/{table.name}' for table in tables),
        'ggcf_jax/data/datasets/ade20k_classes.csv',
        'ggcf_jax/py.typed',
        'ggcf_jax/serving/page.html',
    }, data
    for name in ('configs', 'experiments', 'main', 'tests'):
        assert importlib.util.find_spec(name) is None, name


def check_attention() -> None:
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 9, 11, 1, 4))
    found = jax.jit(lambda *x: attend(*x, Local(2)))(q, k, v)
    expected = attend(q, k, v, Local(2), implementation='reference')
    np.testing.assert_allclose(found, expected, atol=1e-5)


def write_images(folder: pathlib.Path) -> None:
    """Two classes, the upper and the lower half of each image, in the layout of configs/folder."""
    rng = np.random.default_rng(0)
    (folder / 'classes.csv').parent.mkdir()
    (folder / 'classes.csv').write_text('name\nsky\nground\n')
    label = np.repeat(np.uint8([0, 1]), 16)[:, None].repeat(48, axis=1)
    for split in ('train', 'validation'):
        (folder / split / 'images').mkdir(parents=True)
        (folder / split / 'labels').mkdir()
        for i in range(2):
            image = np.uint8([[200, 180, 90], [40, 90, 60]])[label] + rng.integers(
                0, 40, (*label.shape, 3), dtype=np.uint8
            )
            cv2.imwrite(str(folder / split / 'images' / f'{i}.png'), image)
            cv2.imwrite(str(folder / split / 'labels' / f'{i}.png'), label)


def check_training() -> None:
    write_images(pathlib.Path('images'))
    config = config_lib.default()
    config.update_from_flattened_dict(
        {
            'data.manual_dir': 'images',
            'data.crop_size': (24, 24),
            'data.threads': 1,
            'model.backbone.name': 'resnet10',
            'model.backbone.width': 4,
            'model.heads': 'local:1,grid:2',
            'model.ggcf.channels': 8,
            'model.ggcf.key_channels': 4,
            'model.ggcf.value_channels': 4,
            'model.aux_channels': 4,
            'train.steps': 3,
            'train.batch_size': 2,
            'train.dtype': 'float32',
            'eval.batch_size': 1,
        }
    )
    evaluation = train.train_and_evaluate(config, 'run')
    assert evaluation.classes == ('sky', 'ground') and evaluation.matrix.sum() == 2 * 32 * 48
    assert pathlib.Path('run', 'report.html').stat().st_size > 10_000


def check_model() -> None:
    model = load('run')
    assert model.classes == ('sky', 'ground')
    labels = model.predict(np.zeros((30, 50, 3), np.uint8))
    assert labels.shape == (30, 50) and labels.max() <= 1


if __name__ == '__main__':
    check_files()
    check_attention()
    check_training()
    check_model()
    print(f'the wheel works: {ggcf_jax.__file__}')
