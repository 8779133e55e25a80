"""Eight virtual CPU devices for every test, and compiled programs kept between runs."""

import functools
import gc
import importlib.metadata
import os
import pathlib
import shutil
import signal

_ROOT = pathlib.Path(__file__).parent.parent
# Tests run tiny shapes once: most of their time is compilation, and these settings leave a quarter
# of it. jaxlib 0.11 no longer knows the last flag, and stops at a flag that it does not know.
_FLAGS = ['--xla_force_host_platform_device_count=8', '--xla_cpu_parallel_codegen_split_count=1']
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.05')

# A background job of a script ignores Ctrl-C, and so would the programs that tests send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np  # noqa: E402  (after the environment is set)
import pytest  # noqa: E402

from ggcf_jax import buckets, train  # noqa: E402
from ggcf_jax.data.datasets import camvid  # noqa: E402
from ggcf_jax.workdir import config as workdir_config  # noqa: E402
from tests import bucket_server  # noqa: E402
from tests.helpers import (  # noqa: E402
    ROOT,
    make_tiny_config,
    save_untrained,
    write_camvid,
)


def pytest_collection_finish() -> None:
    """Tracing makes many objects that live: looking through all of them often takes a tenth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def camvid_folder(tmp_path, rng) -> pathlib.Path:
    """A tiny CamVid in the true layout: 6 + 3 pairs of 40 x 56."""
    return write_camvid(tmp_path / 'camvid', rng)


@pytest.fixture
def real_camvid() -> pathlib.Path:
    folder = ROOT.parent / 'shared' / 'camvid'
    if not folder.is_dir():
        pytest.skip('the CamVid images are not at ../shared/camvid')
    return folder


@pytest.fixture
def tiny_config(camvid_folder, tmp_path):
    """configs/camvid.py on the tiny folder, with a network that compiles in seconds."""
    return make_tiny_config(camvid_folder, tmp_path)


@pytest.fixture(scope='session')
def bucket_services():
    """Function from a scheme to its service, which is started once for the session."""
    return functools.cache(bucket_server.start)


@pytest.fixture(params=bucket_server.SCHEMES)
def bucket(request, bucket_services):
    """A service with an empty bucket."""
    service = bucket_services(request.param)
    buckets.remove_tree(buckets.parse(f'{request.param}://{bucket_server.BUCKET}'), first='-')
    service.requests.clear()
    return service


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory):
    """Configuration, workdir and result of one uninterrupted run of 12 steps; not to be changed."""
    root = tmp_path_factory.mktemp('run')
    before = os.umask(0o002)  # not the usual one: what a run writes has to follow it
    config = make_tiny_config(write_camvid(root / 'camvid', np.random.default_rng(0)), root)
    evaluation = train.train_and_evaluate(config, root / 'whole')
    os.umask(before)
    return config, root / 'whole', evaluation


@pytest.fixture(scope='session')
def untrained_run(tmp_path_factory) -> pathlib.Path:
    """The workdir of a tiny network of three kinds of heads; tests only read it."""
    root = tmp_path_factory.mktemp('untrained')
    config = make_tiny_config(write_camvid(root / 'camvid', np.random.default_rng(0)), root)
    config.model.heads = 'local:1,grid:2,learned'
    save_untrained(config, 11, root / 'run', spread=0)
    return root / 'run'


@pytest.fixture(scope='session')
def workdirs(tmp_path_factory):
    """Untrained runs on the tiny CamVid: none/, full/ and, of two seeds, grid/{seed_0,seed_1}/.

    The parameters of the last three are equal; tests only read them.
    """
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
        workdir_config.save(config, root / 'grid' / f'seed_{seed}')
    return root
