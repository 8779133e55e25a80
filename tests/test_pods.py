"""One run on several processes: what is lost on the way, and that the numbers stay the same.

The stages share one run, since starting processes takes most of the time: two processes of four
devices until one of them gets a SIGTERM; the same until one of them is killed; then one process of
eight devices to the end.
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_train import _final, _rows, _steps

from ggcf_jax import config as config_lib
from ggcf_jax import train, watch

ROOT = pathlib.Path(__file__).parent.parent
PEER_TIMEOUT = 5

pytestmark = pytest.mark.soak


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


class Processes:
    """main.py as it is started on two hosts."""

    def __init__(self, launcher, config_dir, workdir, logs):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        environment = dict(
            os.environ,
            XLA_FLAGS='--xla_force_host_platform_device_count=4',
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
                str(ROOT / 'main.py'),
                f'--config={ROOT / "configs" / "saved.py"}:{config_dir}',
                f'--workdir={workdir}',
                *own_flags,
                f'--peer_timeout={PEER_TIMEOUT}',
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
        end = time.monotonic() + 240
        while time.monotonic() < end and self.all[0].poll() is None:
            if found := re.search(pattern, self.text(0)):
                return found
            time.sleep(0.05)
        raise AssertionError(f'no {pattern!r} in:\n{self.text(0)}\n--- 1:\n{self.text(1)}')

    def codes(self) -> list[int]:
        return [process.wait(timeout=120) for process in self.all]

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
    config = config_lib.load(tiny_run[1])
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
            'train.eval_every': 20,
        }
    )
    return config


@pytest.fixture(scope='module')
def stages(config, tmp_path_factory):
    """Workdir of the run and what its processes left, stage by stage."""
    root = tmp_path_factory.mktemp('pods')
    workdir = root / 'run'
    config_lib.save(config, root)
    with Processes(by_flags, root, workdir, root / 'terminated') as terminated:
        terminated.wait_for(r'\nstep +5/')
        terminated.all[1].send_signal(signal.SIGTERM)
        terminated_codes, saved = terminated.codes(), max(_steps(workdir))
    with Processes(by_slurm, root, workdir, root / 'killed') as killed:
        killed.wait_for(r'\nstep +\d+/')
        killed.all[1].kill()
        began = time.monotonic()
        killed_codes, seconds = killed.codes(), time.monotonic() - began
    return workdir, (terminated, terminated_codes, saved), (killed, killed_codes, seconds)


def test_sigterm_of_one_process_stops_all_at_one_step(stages):
    _, (processes, codes, saved), _ = stages
    assert codes == [0, 0], processes.text(0) + processes.text(1)
    assert f'stopped by SIGTERM after step {saved}, which is saved' in processes.text(0)
    # Process 0 alone speaks.
    assert 'step' not in processes.text(1).replace('checkpoint', '')


def test_dead_process_ends_the_other_one_in_time(stages):
    _, (_, _, saved), (processes, codes, seconds) = stages
    assert f'resuming at step {saved} of' in processes.text(0)
    assert codes == [watch.LOST, -signal.SIGKILL], processes.text(0)
    assert f'no sign of life for {PEER_TIMEOUT} s from process 1 (host ' in processes.text(0)
    assert seconds < 12 * PEER_TIMEOUT


def test_any_number_of_processes_and_devices_ends_in_the_same_numbers(stages, config, tmp_path):
    workdir, (_, _, saved), _ = stages
    train.train_and_evaluate(config, tmp_path / 'whole')
    train.train_and_evaluate(config, workdir)
    found, expected = _rows(workdir), _rows(tmp_path / 'whole')
    assert [row['step'] for row in found] == [row['step'] for row in expected]
    assert saved >= 5
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for name in a:
            if name.startswith('train/'):
                np.testing.assert_allclose(a[name], b[name], rtol=1e-3, err_msg=name)
    ours, whole = (_final(path, config) for path in (workdir, tmp_path / 'whole'))
    assert ours[0] == whole[0] == config.train.steps
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4)
    panels = [
        sorted(p.name for p in (path / 'panels' / '00000060').iterdir())
        for path in (workdir, tmp_path / 'whole')
    ]
    assert panels[0] == panels[1]
