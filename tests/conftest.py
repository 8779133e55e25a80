"""Eight virtual CPU devices for every test, and compiled programs kept between runs."""

import os
import pathlib

_ROOT = pathlib.Path(__file__).parent.parent
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
# Tests run tiny shapes once: most of their time is compilation, and this halves it.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')

import numpy as np  # noqa: E402  (after the environment is set)
import pytest  # noqa: E402


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def camvid_folder(tmp_path, rng) -> pathlib.Path:
    """A tiny CamVid in the true layout: 6 + 3 pairs of 40 x 56."""
    return write_camvid(tmp_path / 'camvid', rng)


def write_camvid(root: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """Writes the folder: every image is two colour fields that its label tells apart."""
    import cv2

    for folder, count in (('train', 6), ('val', 3)):
        (root / folder).mkdir(parents=True)
        (root / f'{folder}annot').mkdir()
        for i in range(count):
            label = np.full((40, 56), i % 11, np.uint8)
            label[20:] = (i + 3) % 11
            label[:2] = 11
            colors = rng.integers(0, 255, (12, 3), dtype=np.uint8)
            cv2.imwrite(str(root / folder / f'{folder}_{i}.png'), colors[label])
            cv2.imwrite(str(root / f'{folder}annot' / f'{folder}_{i}.png'), label)
    return root


@pytest.fixture
def real_camvid() -> pathlib.Path:
    folder = _ROOT.parent / 'shared' / 'camvid'
    if not folder.is_dir():
        pytest.skip('the CamVid images are not at ../shared/camvid')
    return folder


@pytest.fixture
def tiny_config(camvid_folder, tmp_path):
    """configs/camvid.py on the tiny folder, with a network that compiles in seconds."""
    return make_tiny_config(camvid_folder, tmp_path)


@pytest.fixture(scope='session')
def setting(tmp_path_factory):
    """Configuration, workdir and result of one uninterrupted run of 12 steps."""
    from ggcf_jax import train

    root = tmp_path_factory.mktemp('run')
    folder = write_camvid(root / 'camvid', np.random.default_rng(0))
    config = make_tiny_config(folder, root)
    evaluation = train.train_and_evaluate(config, root / 'whole')
    return config, root / 'whole', evaluation


def make_tiny_config(camvid_folder: pathlib.Path, tmp_path: pathlib.Path):
    config = load_config('camvid')
    config.update_from_flattened_dict(
        {
            'data.manual_dir': str(camvid_folder),
            'data.data_dir': str(tmp_path / 'prepared'),
            'data.crop_size': (24, 24),
            'data.threads': 1,
            'model.backbone.name': 'resnet10',
            'model.backbone.width': 4,
            'model.heads': 'local:1,grid:2',
            'model.ggcf.channels': 8,
            'model.ggcf.key_channels': 4,
            'model.ggcf.value_channels': 4,
            'model.aux_channels': 4,
            'model.dropout': 0.1,
            'train.steps': 12,
            'train.batch_size': 8,
            'train.learning_rate': 0.05,
            'train.log_every': 2,
            'train.eval_every': 6,
            'train.checkpoint_every': 3,
            'eval.batch_size': 8,
            'eval.panels': 2,
        }
    )
    return config


def load_config(name: str, argument: str | None = None):
    """The configuration that --config=configs/<name>.py[:argument] gives."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, _ROOT / 'configs' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config() if argument is None else module.get_config(argument)
