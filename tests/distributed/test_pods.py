"""One run on several processes: what is lost on the way, and that the numbers stay the same.

The stages share one run, since starting processes takes most of the time: two processes of four
devices until one of them gets a SIGTERM; the same, the newest checkpoint damaged, until one of them
is killed; the same until one of them is stuck; then one process of eight devices to the end.
Another run deals the rows of each image over two processes.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ggcf_jax import evaluate, train
from ggcf_jax.distributed import liveness
from ggcf_jax.workdir import config as workdir_config
from tests.helpers import ROOT
from tests.test_train import _final, _rows, _steps

PEER_TIMEOUT = 5
STALL_TIMEOUT = 60

# -m 'not slow' replaces the 'not soak' of pyproject.toml.
pytestmark = [pytest.mark.soak, pytest.mark.slow]


def by_flags(i: int, port: int) -> tuple[list[str], dict[str, str]]:
    """What a person gives process i: flags and environment."""
    flags = [f'--coordinator=127.0.0.1:{port}', '--num_processes=2', f'--process_id={i}']
    return flags, {}


def by_slurm(i: int, port: int) -> tuple[list[str], dict[str, str]]:
    """What srun gives it; JAX makes the port from the job's number."""
    return [], {
        'SLURM_JOB_ID': str(port),
        'SLURM_STEP_NODELIST': 'localhost',
        'SLURM_NTASKS': '2',
        'SLURM_PROCID': str(i),
        'SLURM_LOCALID': str(i),
    }


# main.py for a process that waits for ever for data of its fourth step, as on a dead file system.
STUCK = f"""
import runpy, sys, time
from ggcf_jax.distributed import mesh
global_batch, calls = mesh.global_batch, []
def hanging(*arguments):
    calls.append(arguments)
    if len(calls) == 4:
        time.sleep(3600)
    return global_batch(*arguments)
mesh.global_batch = hanging
runpy.run_path({str(ROOT / 'main.py')!r}, run_name='__main__')
"""


class Processes:
    """main.py as it is started on two hosts.

    Args:
        launcher: tells the processes who they are.
        config_dir: holds the configuration. workdir: of the run.
        logs: folder of what they print.
        devices: of each process.
        stuck: whether the second process gets stuck, which is soon noticed then.
    """

    def __init__(self, launcher, config_dir, workdir, logs, devices=4, stuck=False):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        environment = dict(
            os.environ,
            XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}',
            PYTHONPATH=str(ROOT),
            PYTHONUNBUFFERED='1',
        )
        self.logs = [logs / f'{i}.log' for i in range(2)]
        self.all = []
        logs.mkdir()
        for i, log in enumerate(self.logs):
            own_flags, own_environment = launcher(i, port)
            command = [
                sys.executable,
                *(('-c', STUCK) if stuck and i else (str(ROOT / 'main.py'),)),
                f'--config={ROOT / "configs" / "from_workdir.py"}:{config_dir}',
                f'--workdir={workdir}',
                *own_flags,
                f'--peer_timeout={PEER_TIMEOUT}',
                f'--stall_timeout={STALL_TIMEOUT if stuck else 1800}',
            ]
            with log.open('w') as file:
                self.all.append(
                    subprocess.Popen(
                        command,
                        env=environment | own_environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait_for(self, pattern: str) -> re.Match:
        """Waits until process 0 has printed it."""
        end = time.monotonic() + 600
        while time.monotonic() < end and self.all[0].poll() is None:
            if found := re.search(pattern, self.text(0)):
                return found
            time.sleep(0.05)
        raise AssertionError(f'no {pattern!r} in:\n{self.text(0)}\n--- 1:\n{self.text(1)}')

    def codes(self) -> list[int]:
        return [process.wait(timeout=600) for process in self.all]

    def text(self, i: int) -> str:
        return self.logs[i].read_text(errors='replace')

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for process in self.all:
            process.kill()
            process.wait()


@pytest.fixture(scope='module')
def config(tiny_run):
    config = workdir_config.load(tiny_run[1])
    config.update_from_flattened_dict(
        {
            'data.crop_size': (32, 24),
            'eval.size_multiple': 16,
            # Its masks belong to places of the batch, and which image has which place depends on
            # the number of processes.
            'model.dropout': 0.0,
            'train.loss': 'ohem',
            'train.ohem.min_kept': 1000,
            'train.steps': 60,
            'train.learning_rate': 0.005,
            'train.log_every': 5,
            'train.checkpoint_every': 5,
            'train.eval_every': 10,
        }
    )
    return config


@pytest.fixture(scope='module')
def stages(config, tmp_path_factory):
    """Workdir of the run, and what its processes left, stage by stage."""
    root = tmp_path_factory.mktemp('pods')
    workdir = root / 'run'
    workdir_config.save(config, root)
    with Processes(by_flags, root, workdir, root / 'terminated') as terminated:
        terminated.wait_for(r'\nstep +10/')
        terminated.all[1].send_signal(signal.SIGTERM)
        terminated_codes, saved = terminated.codes(), _steps(workdir)
    (workdir / 'checkpoints' / str(max(saved)) / 'commit_success.txt').unlink()
    with Processes(by_slurm, root, workdir, root / 'killed') as killed:
        killed.wait_for(r'\nstep +\d+/')
        killed.all[1].kill()
        began = time.monotonic()
        killed_codes, seconds = killed.codes(), time.monotonic() - began
    with Processes(by_flags, root, workdir, root / 'stuck', stuck=True) as stuck:
        stuck_codes = stuck.codes()
    return {
        'workdir': workdir,
        'terminated': (terminated, terminated_codes, sorted(saved)),
        'killed': (killed, killed_codes, seconds),
        'stuck': (stuck, stuck_codes),
    }


def test_sigterm_of_one_process_stops_all_at_one_step(stages):
    processes, codes, (*_, saved) = stages['terminated']
    assert codes == [0, 0], processes.text(0) + processes.text(1)
    assert f'stopped by SIGTERM after step {saved}, which is saved' in processes.text(0)
    # Process 0 alone speaks.
    assert 'step' not in processes.text(1).replace('checkpoint', '')


def test_damaged_checkpoint_is_set_aside_for_all_processes(stages):
    processes, _, _ = stages['killed']
    *_, before, saved = stages['terminated'][2]
    assert f'renamed to damaged-{saved}, trying the previous one' in processes.text(0)
    assert 'damaged' not in processes.text(1)
    assert f'resuming at step {before} of' in processes.text(0)


def test_dead_process_ends_the_other_one_in_time(stages):
    processes, codes, seconds = stages['killed']
    assert codes == [liveness.LOST, -signal.SIGKILL], processes.text(0)
    assert f'no heartbeat for {PEER_TIMEOUT} s from process 1 (host ' in processes.text(0)
    assert seconds < 12 * PEER_TIMEOUT


def test_stuck_process_ends_all_and_is_named(stages):
    processes, codes = stages['stuck']
    assert codes == [liveness.LOST, liveness.LOST], processes.text(0) + processes.text(1)
    verdict = rf"no progress for {STALL_TIMEOUT} s; stuck: process 1 \(host .*, at 'step \d+'\)"
    for i in range(2):
        assert re.search(verdict, processes.text(i)), processes.text(i)


@pytest.mark.parametrize('field', ['train.learning_rate=0.01', 'train.steps=61'])
def test_processes_that_were_started_differently_end_at_once(config, tmp_path, field):
    """Other rates would train on silently, another number of steps wait for ever at the end."""
    workdir_config.save(config, tmp_path)

    def launcher(i, port):
        flags, environment = by_flags(i, port)
        return flags + [f'--config.{field}'] * i, environment

    with Processes(launcher, tmp_path, tmp_path / 'run', tmp_path / 'logs') as processes:
        codes = processes.codes()
    assert codes == [2, 2], processes.text(0) + processes.text(1)
    name, _, value = field.partition('=')
    there = config[name.partition('.')[0]][name.partition('.')[2]]
    assert f'config.{name}: {there} there, {value} here' in processes.text(1)
    assert 'process 1' in processes.text(0)
    assert not (tmp_path / 'run').exists()


def assert_same_metrics(a, b, tolerance):
    """Not the IoU of each class, which one pixel of a rare class changes."""
    for name in ('val/miou', 'val/pixel_accuracy'):
        assert abs(a[name] - b[name]) <= tolerance, (name, a[name], b[name])


def assert_same_run(workdir, config, other, other_config):
    """Losses, gradient norms, metrics, final parameters and panels."""
    found, expected = _rows(workdir), _rows(other)
    assert [row['step'] for row in found] == [row['step'] for row in expected]
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for name in a:
            if name.startswith('train/'):
                # OHEM takes another pixel after a while, which the gradient shows first.
                rtol = 5e-3 if name == 'train/grad_norm' else 1e-3
                np.testing.assert_allclose(a[name], b[name], rtol, err_msg=name)
        if 'val/miou' in a:
            assert_same_metrics(a, b, 5e-3)
    ours, whole = _final(workdir, config), _final(other, other_config)
    assert ours[0] == whole[0] == config.train.steps
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4)
    panels = [
        sorted(p.name for p in (path / 'panels' / f'{config.train.steps:08d}').iterdir())
        for path in (workdir, other)
    ]
    assert panels[0] == panels[1]


def test_any_number_of_processes_and_devices_ends_in_the_same_numbers(stages, config, tmp_path):
    train.train_and_evaluate(config, tmp_path / 'whole')
    train.train_and_evaluate(config, stages['workdir'])
    assert_same_run(stages['workdir'], config, tmp_path / 'whole', config)


def test_rows_of_an_image_over_two_processes(config, tmp_path):
    """Two processes of two devices that share every image, saving after every step."""
    workdir_config.save(config, tmp_path)
    whole, rows = workdir_config.load(tmp_path), workdir_config.load(tmp_path)
    for changed in (whole, rows):
        changed.update_from_flattened_dict(
            {
                'data.crop_size': (32, 32),
                'eval.size_multiple': 32,
                'train.steps': 20,
                'train.checkpoint_every': 1,
            }
        )
    rows.mesh.space = 4
    workdir = tmp_path / 'run'
    workdir_config.save(rows, tmp_path)
    with Processes(by_flags, tmp_path, workdir, tmp_path / 'rows', devices=2) as processes:
        codes = processes.codes()
        assert codes == [0, 0], processes.text(0) + processes.text(1)
    train.train_and_evaluate(whole, tmp_path / 'whole')
    assert_same_run(workdir, rows, tmp_path / 'whole', whole)
    # The same parameters on another mesh.
    alone = evaluate.evaluate_workdir(whole, workdir, 'validation', 'latest').row()
    assert_same_metrics(_rows(workdir)[-1], alone, 1e-3)
