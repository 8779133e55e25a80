"""Processes of a run that can be killed, and the two bucket services that they work with.

A process is forked from a server that has imported the package once, since importing takes longer
than an attempt lasts. The services are those of the tests.
"""

import argparse
import dataclasses
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from typing import NoReturn

import jax
from absl import logging
from ml_collections import ConfigDict

from experiments import soak
from experiments.cloud import sketch
from experiments.common import cli
from ggcf_jax import buckets, train
from ggcf_jax.distributed import processes
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import lease
from tests import bucket_server

SCHEMES = bucket_server.SCHEMES

TIMEOUT = 1800  # seconds that an attempt may take
_SERVER = multiprocessing.get_context('forkserver')
_SERVER.set_forkserver_preload(['experiments.cloud.attempts'])


@dataclasses.dataclass(frozen=True)
class Work:
    """What a process does.

    Attributes:
        config: text of the configuration.
        workdir: workdir of the run, a text.
        log: file that its output is appended to.
        disk: folder that the process has for its own: temporary files and copies of data.
        host: name of the machine that it takes itself to be on; '' for this one.
        devices: number of its CPU devices.
        launch: how it finds the other processes of its run; None for a run of one process.
        sketched: number of steps of a run without a network, in the place of training; 0 trains.
        request_timeout: seconds until an unanswered request counts as failed.
    """

    config: str
    workdir: str
    log: pathlib.Path
    disk: pathlib.Path
    host: str = ''
    devices: int = 1
    launch: processes.Launch | None = None
    sketched: int = 0
    request_timeout: float = buckets.REQUEST_TIMEOUT


class Attempt:
    """A process at work."""

    def __init__(self, work: Work) -> None:
        """Starts the process.

        Args:
            work: what it does.
        """
        self.work = work
        self._start = work.log.stat().st_size if work.log.exists() else 0
        self._process = _SERVER.Process(target=_carry_out, args=(work,), daemon=True)
        self._process.start()

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()

    def running(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def wait(self) -> int:
        """Waits for the end of the process and returns its exit code, negative for a signal.

        Raises:
            RuntimeError: it has exceeded `TIMEOUT`.
        """
        self._process.join(TIMEOUT)
        code = self._process.exitcode
        if code is None:
            self.kill()
            raise RuntimeError(f'an attempt took more than {TIMEOUT} s; see {self.work.log}')
        return code

    def text(self) -> str:
        """What the process has printed so far."""
        if not self.work.log.exists():
            return ''
        with self.work.log.open('rb') as file:
            file.seek(self._start)
            return file.read().decode(errors='replace')

    def wait_for(self, text: str) -> bool:
        """Waits until the process has printed a text; returns False if it has ended before."""
        end = time.monotonic() + TIMEOUT
        while text not in self.text():
            if not self.running() or time.monotonic() > end:
                return text in self.text()
            time.sleep(0.05)
        return True


def _carry_out(work: Work) -> NoReturn:
    """Trains, or does what `Work` says, in the forked process."""
    code = 1
    work.disk.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(work.disk)
    os.environ['GGCF_JAX_CACHE'] = str(work.disk / 'cache')
    jax.config.update('jax_num_cpu_devices', work.devices)
    logging.set_verbosity(logging.ERROR)
    buckets.REQUEST_TIMEOUT = work.request_timeout
    if work.host:  # as if it were a machine of its own
        lease._machine = lambda: work.host
    try:
        with work.log.open('ab') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        print('\n--- attempt', flush=True)
        with processes.joined(work.launch or processes.Launch()):
            if work.sketched:
                sketch.run(work.workdir, work.sketched)
            else:
                config = workdir_config.from_text(work.config)
                train.train_and_evaluate(config, work.workdir)
        code = 0
    except (InputError, buckets.BucketError) as error:
        print(f'error: {error}', flush=True)
        code = 2
    except BaseException as error:
        print(f'{type(error).__name__}: {error}', flush=True)
    finally:
        sys.stdout.flush()
        os._exit(code)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Builds the command line: a folder, and the services.

    Args:
        description: docstring of the script.
    """
    parser = cli.make_parser(description)
    parser.add_argument(
        '--services',
        default=','.join(SCHEMES),
        help=f'comma-separated services [{",".join(SCHEMES)}]',
    )
    return parser


def start_services(options: argparse.Namespace) -> dict[str, bucket_server.Proxy]:
    """Starts the services of a command line, before the first process.

    Args:
        options: command line.
    """
    if 'JAX_PLATFORMS' not in os.environ:
        jax.config.update('jax_platforms', 'cpu')
        os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(options.out / 'compiled'))
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    options.out.mkdir(parents=True, exist_ok=True)
    return {scheme: bucket_server.start(scheme) for scheme in options.services.split(',')}


def tiny_config(root: pathlib.Path, steps: int) -> ConfigDict:
    """`soak.tiny_config` with panels, so that there is something of everything to upload.

    Args:
        root: folder of the prepared data.
        steps: number of training steps.
    """
    config = soak.tiny_config(root / 'data', steps)
    config.eval.panels = 1
    return config
