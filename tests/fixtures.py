"""Fixtures: the tiny data set, bucket services, and runs that tests share and only read."""

import functools
import os
import pathlib
import shutil

import numpy as np
import pytest

from ggcf_jax import buckets, train
from ggcf_jax.data.datasets import camvid
from ggcf_jax.workdir import config as workdir_config
from tests import bucket_server
from tests.helpers import (
    ROOT,
    make_tiny_config,
    save_untrained,
    write_camvid,
)


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
