"""Trains in a bucket on two machines that share no disk, one of which is replaced.

    python -m experiments.cloud.hosts --out=runs/hosts

Two processes of one device each, with a folder of temporary files and a cache of their own, train
and save. Both are killed, the folders of process 0 are removed, and a process 0 that takes itself
to be on another machine goes on with the old process 1. Parameters, statistics and metrics must
equal those of an undisturbed run of two processes on one disk bit by bit, and those of one process
of two devices up to rounding.
"""

import argparse
import pathlib
import shutil
import socket
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import soak
from experiments.cloud import attempts
from ggcf_jax import models, places
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.distributed import processes
from ggcf_jax.workdir import checkpoints, metrics_log
from ggcf_jax.workdir import config as workdir_config


def main(options: argparse.Namespace) -> None:
    """Runs the comparison and prints a line for each service."""
    services = attempts.start_services(options)
    config = attempts.tiny_config(options.out, options.steps)
    # Masks belong to places of the batch, and which image has which depends on the processes.
    config.model.dropout = 0.0
    # Every start compiles, and every collective waits for the other process: one image on each.
    config.train.batch_size = config.eval.batch_size = 2
    config.train.eval_every = options.steps // 2
    one, two = options.out / 'one', options.out / 'two'
    _finish([attempts.Attempt(_work(config, str(one), options.out / 'undisturbed', devices=2))])
    _finish(_started(config, str(two), options.out / 'undisturbed', ('first', 'second')))
    for scheme in services:
        config.data.data_dir = f'{scheme}://bucket/prepared'
        workdir, folder = f'{scheme}://bucket/run', options.out / scheme
        saved = _interrupted(config, workdir, folder)
        shutil.rmtree(folder / 'first')
        _finish(_started(config, workdir, folder, ('replaced', 'second')))
        equal = soak.compare(config, two, places.expand(workdir))
        farthest = difference(config, one, places.expand(workdir))
        print(
            f'{scheme}: killed after step {saved}, process 0 replaced: {equal}; the largest '
            f'difference of a parameter from one process is {farthest:.2g}',
            flush=True,
        )


def _work(
    config: ConfigDict,
    workdir: str,
    folder: pathlib.Path,
    *,
    host: str = '',
    devices: int = 1,
    launch: processes.Launch | None = None,
) -> attempts.Work:
    """What a process does whose disk and log are in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return attempts.Work(
        workdir_config.to_text(config),
        workdir,
        folder / f'{host or "one"}.log',
        folder / (host or 'one'),
        host=host,
        devices=devices,
        launch=launch,
    )


def _started(
    config: ConfigDict, workdir: str, folder: pathlib.Path, hosts: Sequence[str]
) -> list[attempts.Attempt]:
    """Starts a process on each of the hosts, the first of which is process 0."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    launches = [
        processes.Launch(f'127.0.0.1:{port}', len(hosts), index) for index in range(len(hosts))
    ]
    return [
        attempts.Attempt(_work(config, workdir, folder, host=host, launch=launch))
        for host, launch in zip(hosts, launches)
    ]


def _finish(started: Sequence[attempts.Attempt]) -> None:
    codes = [attempt.wait() for attempt in started]
    if any(codes):
        raise SystemExit(f'the processes ended with {codes}; see {started[0].work.log}')


def _interrupted(config: ConfigDict, workdir: str, folder: pathlib.Path) -> int:
    """Kills both processes a save after the evaluation; returns the last step that was saved."""
    both = _started(config, workdir, folder, ('first', 'second'))
    # By then the evaluation has waited for the checkpoint of its step.
    late = config.train.eval_every + config.train.checkpoint_every
    if not both[0].wait_for(f'\nstep {late:>{len(str(config.train.steps))}}/'):
        raise SystemExit(f'process 0 ended; see {both[0].work.log}')
    for attempt in both:
        attempt.kill()
    for attempt in both:
        attempt.wait()
    return max(checkpoints.steps(places.expand(workdir)))


def difference(config: ConfigDict, a: pathlib.Path, b: pathlib.Path) -> float:
    """The largest difference of a parameter of two runs.

    Args:
        config: configuration of both.
        a: workdir of one run.
        b: workdir of the other.

    Raises:
        AssertionError: the runs differ in steps, or by more than rounding explains.
    """
    _, params, stats = models.abstract(config, 19)
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    found = [checkpoints.restore(path, params, stats, sharding, 'latest') for path in (a, b)]
    leaves = [jax.device_get(jax.tree.leaves((x.params, x.stats))) for x in found]
    for x, y in zip(*leaves, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-4)
    rows = [[row['step'] for row in metrics_log.read_rows(path)] for path in (a, b)]
    assert rows[0] == rows[1]
    return max(float(np.max(np.abs(x - y))) for x, y in zip(*leaves))


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = attempts.make_parser(__doc__)
    parser.add_argument('--steps', default=40, type=int, help='steps of the run [40]')
    return parser


if __name__ == '__main__':
    main(make_parser().parse_args())
