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
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.05')

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
def tiny_run(tmp_path_factory):
    """Configuration, workdir and result of one uninterrupted run of 12 steps; not to be changed."""
    from ggcf_jax import train

    root = tmp_path_factory.mktemp('run')
    config = make_tiny_config(write_camvid(root / 'camvid', np.random.default_rng(0)), root)
    evaluation = train.train_and_evaluate(config, root / 'whole')
    return config, root / 'whole', evaluation


TINY_MODEL = {
    'model.backbone.name': 'resnet10',
    'model.backbone.width': 4,
    'model.heads': 'local:1,grid:2',
    'model.ggcf.channels': 8,
    'model.ggcf.key_channels': 4,
    'model.ggcf.value_channels': 4,
    'model.aux_channels': 4,
    'model.dropout': 0.1,
}


@pytest.fixture(scope='session')
def untrained_run(tmp_path_factory) -> pathlib.Path:
    """The workdir of a tiny network of three kinds of heads; tests only read it."""
    root = tmp_path_factory.mktemp('untrained')
    config = make_tiny_config(write_camvid(root / 'camvid', np.random.default_rng(0)), root)
    config.model.heads = 'local:1,grid:2,learned'
    save_untrained(config, 11, root / 'run', spread=0)
    return root / 'run'


def make_tiny_config(camvid_folder: pathlib.Path, tmp_path: pathlib.Path):
    config = load_config('camvid')
    config.update_from_flattened_dict(
        {
            'data.manual_dir': str(camvid_folder),
            'data.data_dir': str(tmp_path / 'prepared'),
            'data.crop_size': (24, 24),
            'data.threads': 1,
            **TINY_MODEL,
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


def train_with_main(name: str, manual_dir: pathlib.Path, root: pathlib.Path, fields: dict) -> None:
    """main.py trains a tiny network for three steps of configs/<name>.py and evaluates it."""
    import subprocess
    import sys

    from ggcf_jax.writer import read_rows

    fields = {
        'data.manual_dir': manual_dir,
        'data.data_dir': root / 'prepared',
        'data.crop_size': '24,24',
        'data.threads': 1,
        **TINY_MODEL,
        'model.heads': 'local:1,grid:16',  # whole images of 1024 x 2048 are evaluated
        'train.steps': 3,
        'train.batch_size': 2,
        'train.log_every': 1,
        'eval.batch_size': 1,
        'eval.panels': 1,
        **fields,
    }
    process = subprocess.run(
        [
            sys.executable,
            str(_ROOT / 'main.py'),
            f'--config={_ROOT / "configs" / name}.py',
            f'--workdir={root / "run"}',
            *(f'--config.{field}={value}' for field, value in fields.items()),
        ],
        env=dict(os.environ, XLA_FLAGS='', PYTHONPATH=str(_ROOT)),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    rows = read_rows(root / 'run')
    assert [row['step'] for row in rows] == [1, 2, 3, 3]
    assert all(0 < row['train/loss'] < 10 for row in rows[:3])
    assert 0 <= rows[3]['val/miou'] <= 1


def save_untrained(config, num_classes: int, workdir: pathlib.Path, spread: float = 0.3) -> None:
    """Makes the workdir of a run that was stopped before its first step, statistics included.

    Normal noise of this spread on all parameters makes predictions differ from place to place;
    with 0 probabilities and attention are close to uniform.
    """
    import jax

    from ggcf_jax import checkpoint, state
    from ggcf_jax import config as config_lib
    from ggcf_jax import mesh as mesh_lib

    config_lib.claim_workdir(config, workdir)
    start = state.creator(config, num_classes, mesh_lib.make_mesh())()
    rng = np.random.default_rng(7)
    params = jax.tree.map(
        lambda x: (x + spread * rng.normal(size=x.shape)).astype(x.dtype), start.params
    )
    checkpointer = checkpoint.Checkpointer(workdir)
    checkpointer.save(start.replace(params=params), None)
    checkpointer.close()


@pytest.fixture(scope='session')
def workdirs(tmp_path_factory):
    """Untrained runs on the tiny CamVid: none/, full/ and, of two seeds, grid/{seed_0,seed_1}/.

    The parameters of the last three are equal; tests only read them.
    """
    import shutil

    from ggcf_jax import config as config_lib
    from ggcf_jax.data import camvid

    root = tmp_path_factory.mktemp('runs')
    folder = write_camvid(root / 'camvid', np.random.default_rng(0))
    for name, fields in {
        'none': {'model.context': 'none'},
        'full': {'model.heads': 'full'},
    }.items():
        config = make_tiny_config(folder, root)
        config.update_from_flattened_dict({'eval.batch_size': 2, **fields})
        save_untrained(config, len(camvid.CLASSES), root / name)
    for seed in range(2):
        config.update({'seed': seed})
        config.model.heads = 'grid:2'
        shutil.copytree(root / 'full', root / 'grid' / f'seed_{seed}')
        config_lib.save(config, root / 'grid' / f'seed_{seed}')
    return root
