"""Kills a training run at random moments, again and again, and compares it with a quiet one.

    python -m experiments.soak --workdir=runs/soak --kills=200

Trains configs/street_scenes.py at a tiny size. Each attempt is a process of its own that resumes
from the last checkpoint. It is killed with SIGKILL at a random moment (while starting, between
steps, or during a save) or stopped with SIGTERM, and some attempts find the newest checkpoint
damaged. In the end parameters, batch statistics and metrics must equal those of an undisturbed run
bit by bit. The injected faults are recorded in `soak.json`, so that the soak itself can be
interrupted and resumed. Attempts are forked from a process that has imported the package, since
importing takes longer than an attempt lasts.
"""

import argparse
import collections
import ctypes
import importlib.util
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments.common import cli
from ggcf_jax import atomic, models, train
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir.metrics_log import read_rows

ROOT = pathlib.Path(__file__).parent.parent

# Shares of the kinds of signals.
KINDS = {
    'SIGKILL while starting': 0.15,
    'SIGKILL during a save': 0.4,
    'SIGTERM': 0.1,
    'SIGKILL between steps': 0.35,
}
DAMAGED = 0.12  # share of the attempts before which the newest checkpoint is damaged
TIMEOUT = 3600  # seconds that an attempt may take
_PR_SET_PDEATHSIG = 1


def tiny_config(data_dir: pathlib.Path, steps: int) -> ConfigDict:
    """Returns configs/street_scenes.py so small that 10 steps take a second.

    Args:
        data_dir: directory of the prepared data set.
        steps: number of training steps.
    """
    path = ROOT / 'configs' / 'street_scenes.py'
    spec = importlib.util.spec_from_file_location('street_scenes', path)
    assert spec is not None and spec.loader is not None  # it is a .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict(
        {
            'data.data_dir': str(data_dir),
            'data.image_size': (64, 128),
            'data.num_images': (12, 4, 1),
            'data.crop_size': (32, 64),
            'data.threads': 1,
            'model.backbone.width': 4,
            'model.heads': 'local:1,grid:2',
            'model.ggcf.channels': 8,
            'model.ggcf.key_channels': 4,
            'model.ggcf.value_channels': 4,
            'model.aux_channels': 4,
            'model.dropout': 0.1,
            'train.steps': steps,
            'train.warmup_steps': 0,
            'train.log_every': 2,
            'train.checkpoint_every': 4,
            'train.eval_every': steps // 4,
            'eval.panels': 0,
        }
    )
    return config


def flip_byte(path: pathlib.Path) -> None:
    """Flips a bit of the largest file."""
    content = bytearray(_largest(path).read_bytes())
    content[len(content) // 2] ^= 0x10
    _largest(path).write_bytes(bytes(content))


def truncate_file(path: pathlib.Path) -> None:
    """Cuts the largest file in half."""
    os.truncate(_largest(path), _largest(path).stat().st_size // 2)


def delete_file(path: pathlib.Path) -> None:
    """Deletes the largest file."""
    _largest(path).unlink()


def empty_directory(path: pathlib.Path) -> None:
    """Deletes all files of the checkpoint."""
    shutil.rmtree(path)
    path.mkdir()


def delete_commit_marker(path: pathlib.Path) -> None:
    """Deletes the file that marks the checkpoint as complete."""
    (path / 'commit_success.txt').unlink()


def break_metadata(path: pathlib.Path) -> None:
    """Cuts off the metadata of the checkpoint."""
    os.truncate(path / '_CHECKPOINT_METADATA', 40)


DAMAGES = (
    flip_byte,
    truncate_file,
    delete_file,
    empty_directory,
    delete_commit_marker,
    break_metadata,
)


def _largest(path: pathlib.Path) -> pathlib.Path:
    files = [file for file in path.glob('*/d/*') if file.is_file()]
    return max(files, key=lambda file: (file.stat().st_size, file.name))


class Attempt:
    """A process that trains until it is done or gets a signal.

    Attributes:
        checkpoints: directory of the run's checkpoints.
        code: exit code of the process, None while it runs.
        pid: id of the process.
    """

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, log: pathlib.Path) -> None:
        """Starts the process.

        Args:
            config: configuration of the run.
            workdir: workdir that the process resumes from.
            log: file that its output is appended to.
        """
        self.checkpoints = workdir / 'checkpoints'
        self.code: int | None = None
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._deadline = time.monotonic() + TIMEOUT
        self.pid = os.fork()
        if self.pid == 0:
            _train_and_exit(config, workdir, log)

    def running(self) -> bool:
        """Whether the process runs.

        Raises:
            RuntimeError: it has exceeded `TIMEOUT`.
        """
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > self._deadline:
                self.send(signal.SIGKILL)
                raise RuntimeError(f'an attempt took more than {TIMEOUT} s; see {self._log}')
        return self.code is None

    def wait(self) -> int:
        """Waits for the end of the process and returns its exit code."""
        while self.running():
            time.sleep(0.02)
        assert self.code is not None
        return self.code

    def send(self, number: int) -> None:
        """Sends a signal to the process."""
        os.kill(self.pid, number)

    def stepping(self) -> bool:
        """Whether the process has printed the progress of a step."""
        with self._log.open('rb') as file:
            file.seek(self._log_start)
            return b'\nstep ' in file.read()

    def saving(self) -> bool:
        """Whether the process writes a checkpoint."""
        try:
            return any('tmp' in path.name for path in self.checkpoints.iterdir())
        except FileNotFoundError:
            return False


def _train_and_exit(config: ConfigDict, workdir: pathlib.Path, log: pathlib.Path) -> NoReturn:
    """Trains in the forked process, which does not outlive the soak."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    code = 1
    try:
        with log.open('ab') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        print('\n--- attempt', flush=True)
        train.train_and_evaluate(config, workdir)
        code = 0
    except BaseException as error:
        print(f'{type(error).__name__}: {error}', flush=True)
    finally:
        sys.stdout.flush()
        os._exit(code)


def interrupt(attempt: Attempt, kind: str, rng: random.Random) -> bool:
    """Waits for the moment of a kind of fault and sends its signal.

    Args:
        attempt: process to interrupt.
        kind: key of `KINDS`.
        rng: generator of the moment.

    Returns:
        Whether the signal was sent; False if the run ended before.

    Raises:
        RuntimeError: the process ends with an unexpected exit code.
    """
    if kind == 'SIGKILL while starting':
        moment = time.monotonic() + rng.uniform(0, 5)
        while attempt.running() and time.monotonic() < moment:
            time.sleep(0.01)
    else:
        while attempt.running() and not attempt.stepping():
            time.sleep(0.01)
        saves = rng.randint(1, 3) if kind == 'SIGKILL during a save' else 0
        for i in range(saves):
            while attempt.running() and not attempt.saving():
                time.sleep(0.001)
            while i < saves - 1 and attempt.running() and attempt.saving():
                time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05 if saves else 1.5))
    if not attempt.running():
        return False
    number = signal.SIGTERM if kind == 'SIGTERM' else signal.SIGKILL
    attempt.send(number)
    code = attempt.wait()
    if code != (0 if number == signal.SIGTERM else -signal.SIGKILL):
        raise RuntimeError(f'{kind}: exit code {code}')
    return True


def check_cores(path: pathlib.Path) -> None:
    """Records the number of cores, which must not change: XLA:CPU would sum in another order.

    Args:
        path: file that holds the number.

    Raises:
        SystemExit: the soak was started with another number of cores.
    """
    cores = len(os.sched_getaffinity(0))
    if path.exists() and int(path.read_text()) != cores:
        raise SystemExit(
            f'this soak was started with {path.read_text()} cores and would be resumed with '
            f'{cores}, which rounds differently; choose as many with taskset -c'
        )
    path.write_text(str(cores))


def newest_last(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints of a directory, the newest last."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def main(options: argparse.Namespace) -> None:
    """Runs the soak and prints the faults that were survived."""
    if 'JAX_PLATFORMS' not in os.environ:
        jax.config.update('jax_platforms', 'cpu')
    logging.set_verbosity(logging.ERROR)
    root = options.workdir.absolute()
    root.mkdir(parents=True, exist_ok=True)
    check_cores(root / 'cores.txt')
    jax.config.update('jax_compilation_cache_dir', str(root / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    config = tiny_config(root / 'data', options.steps)
    if Attempt(config, root / 'undisturbed', root / 'undisturbed.log').wait():
        raise SystemExit(f'the undisturbed run failed; see {root / "undisturbed.log"}')

    workdir, log = root / 'disturbed', root / 'disturbed.log'
    log.touch()
    record_path = root / 'soak.json'
    record = json.loads(record_path.read_text()) if record_path.exists() else []
    while sum(entry['kind'] != 'damage' for entry in record) < options.kills:
        record.append(inject_fault(config, workdir, log, record, options))
        atomic.write(record_path, json.dumps(record).encode())
        print(f'{len(record):4d}  {record[-1]}', flush=True)
    if Attempt(config, workdir, log).wait():
        raise SystemExit(f'the last attempt failed; see {log}')
    counts = collections.Counter(entry.get('what', entry['kind']) for entry in record)
    equal = compare(config, root / 'undisturbed', workdir)
    print('\n| fault | injected | survived |\n|---|---|---|')
    for name, count in sorted(counts.items()):
        print(f'| {name.replace("_", " ")} | {count} | {count} |')
    print(f'| all | {len(record)} | {len(record)} |\n')
    set_aside = log.read_text(errors='replace').count('it was renamed to damaged-')
    print(f'{set_aside} damaged checkpoints were named and set aside; {equal}')


def inject_fault(
    config: ConfigDict,
    workdir: pathlib.Path,
    log: pathlib.Path,
    record: Sequence[dict[str, Any]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Damages the newest checkpoint, or resumes the run and interrupts it.

    Args:
        config: configuration of the run.
        workdir: workdir of the disturbed run.
        log: log of the disturbed run.
        record: earlier faults, which together with the seed determine this one.
        options: command line.

    Returns:
        Entry of the record.

    Raises:
        SystemExit: the run ended before all signals were sent.
    """
    rng = random.Random(f'{options.seed}/{len(record)}')
    saved = newest_last(workdir / 'checkpoints')
    last = record[-1]['kind'] if record else ''
    if len(saved) > 1 and last != 'damage' and rng.random() < DAMAGED:
        damage = rng.choice(DAMAGES)
        damage(saved[-1])
        return {'kind': 'damage', 'what': damage.__name__, 'step': int(saved[-1].name)}
    kind = rng.choices([*KINDS], [*KINDS.values()])[0]
    # Only as fast as the steps last for all signals.
    share = len(record) / (options.kills * 1.1)
    if saved and int(saved[-1].name) > 0.9 * share * options.steps + 20:
        kind = 'SIGKILL while starting'
    if not interrupt(Attempt(config, workdir, log), kind, rng):
        raise SystemExit(f'the run ended after {len(record)} faults; raise --steps')
    saved = newest_last(workdir / 'checkpoints')
    return {'kind': kind, 'step': int(saved[-1].name) if saved else 0}


def compare(config: ConfigDict, a: pathlib.Path, b: pathlib.Path) -> str:
    """Compares parameters, batch statistics and metrics of two runs bit by bit.

    Args:
        config: configuration of both runs.
        a: workdir of one run.
        b: workdir of the other run.

    Returns:
        A sentence with the numbers of arrays and rows that were compared.

    Raises:
        AssertionError: a bit differs.
    """
    _, params, stats = models.abstract(config, 19)
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    found = [checkpoints.restore(path, params, stats, sharding, 'latest') for path in (a, b)]
    assert found[0].step == found[1].step == config.train.steps
    leaves = [jax.tree.leaves((x.params, x.stats)) for x in found]
    for x, y in zip(*leaves, strict=True):
        np.testing.assert_array_equal(np.asarray(x).view(np.uint32), np.asarray(y).view(np.uint32))
    rows = [
        [{k: v for k, v in row.items() if not k.endswith(('_sec', 'per_sec'))} for row in rows]
        for rows in (read_rows(a), read_rows(b))
    ]
    assert rows[0] == rows[1]
    return f'{len(leaves[0])} arrays and {len(rows[0])} rows of metrics are bit-equal'


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--workdir',
        default='runs/soak',
        type=cli.path,
        help='directory of the soak [runs/soak]',
    )
    parser.add_argument('--kills', default=200, type=int, help='number of signals to send [200]')
    parser.add_argument('--steps', default=1000, type=int, help='steps of the run [1000]')
    parser.add_argument('--seed', default=0, type=int, help='seed of the faults [0]')
    return parser


if __name__ == '__main__':
    main(make_parser().parse_args())
