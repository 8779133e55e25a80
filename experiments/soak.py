"""Kills one training run at random, again and again, and compares it with an undisturbed one.

    python experiments/soak.py --workdir=runs/soak --kills=200

trains configs/street_scenes.py at a tiny size. Each life of the run is a process of its own that
resumes from what the one before left; it is killed with SIGKILL at a random moment (while starting,
between steps, or during a save) or stopped with SIGTERM, and now and then the newest checkpoint is
damaged before the next life. At the end parameters, batch statistics and metrics must be, bit by
bit, those of a run that nothing happened to. What was injected is kept in `soak.json`: killed
itself, the soak goes on where it was. Lives are forked from a process that has the package
imported, since importing takes longer than they last.
"""

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

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
from absl import app, flags, logging

from ggcf_jax import models, train
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.workdir import checkpoints as checkpoint
from ggcf_jax.workdir.metrics_log import read_rows

ROOT = pathlib.Path(__file__).parent.parent

_WORKDIR = flags.DEFINE_string('workdir', 'runs/soak', 'Directory of the soak.')
_KILLS = flags.DEFINE_integer('kills', 200, 'Signals to be sent.')
_STEPS = flags.DEFINE_integer('steps', 1000, 'Steps of the run.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the faults.')

# Of each kind this share; the rest is killed between steps.
KINDS = {'SIGKILL while starting': 0.15, 'SIGKILL during a save': 0.4, 'SIGTERM': 0.1}
STEPPING = 'SIGKILL between steps'
DAMAGED = 0.12  # share of the lives before which the newest checkpoint is damaged
SECONDS = 3600  # that a life may take
_PR_SET_PDEATHSIG = 1


def tiny_config(data_dir: pathlib.Path, steps: int):
    """configs/street_scenes.py with a network and images of which 10 steps take a second."""
    path = ROOT / 'configs' / 'street_scenes.py'
    spec = importlib.util.spec_from_file_location('street_scenes', path)
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
            'train.log_every': 2,
            'train.checkpoint_every': 4,
            'train.eval_every': steps // 4,
            'eval.panels': 0,
        }
    )
    return config


def flip_byte(path: pathlib.Path) -> None:
    content = bytearray(_largest(path).read_bytes())
    content[len(content) // 2] ^= 0x10
    _largest(path).write_bytes(bytes(content))


def truncate_file(path: pathlib.Path) -> None:
    os.truncate(_largest(path), _largest(path).stat().st_size // 2)


def delete_file(path: pathlib.Path) -> None:
    _largest(path).unlink()


def empty_directory(path: pathlib.Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def delete_commit_marker(path: pathlib.Path) -> None:
    (path / 'commit_success.txt').unlink()


def break_metadata(path: pathlib.Path) -> None:
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


class Life:
    """A process that trains until it is done or hit."""

    def __init__(self, config, workdir: pathlib.Path, log: pathlib.Path):
        self.checkpoints = workdir / 'checkpoints'
        self._log = log
        self._heard = log.stat().st_size if log.exists() else 0
        self._deadline = time.monotonic() + SECONDS
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _live(config, workdir, log)

    def running(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > self._deadline:
                self.hit(signal.SIGKILL)
                raise RuntimeError(f'a life took more than {SECONDS} s; see {self._log}')
        return self.code is None

    def wait(self) -> int:
        while self.running():
            time.sleep(0.02)
        return self.code

    def hit(self, number: int) -> None:
        os.kill(self.pid, number)

    def stepping(self) -> bool:
        """Whether it has printed the progress of a step."""
        with self._log.open('rb') as file:
            file.seek(self._heard)
            return b'\nstep ' in file.read()

    def saving(self) -> bool:
        try:
            return any('tmp' in path.name for path in self.checkpoints.iterdir())
        except FileNotFoundError:
            return False


def _live(config, workdir: pathlib.Path, log: pathlib.Path) -> None:
    """The forked process: never returns, and does not outlive the soak."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    code = 1
    try:
        with log.open('ab') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        print('\n--- life', flush=True)
        train.train_and_evaluate(config, workdir)
        code = 0
    except BaseException as error:
        print(f'{type(error).__name__}: {error}', flush=True)
    finally:
        sys.stdout.flush()
        os._exit(code)


def strike(life: Life, kind: str, rng: random.Random) -> bool:
    """Waits for the moment that `kind` means and sends its signal; False if the run ended first."""
    if kind == 'SIGKILL while starting':
        moment = time.monotonic() + rng.uniform(0, 5)
        while life.running() and time.monotonic() < moment:
            time.sleep(0.01)
    else:
        while life.running() and not life.stepping():
            time.sleep(0.01)
        saves = rng.randint(1, 3) if kind == 'SIGKILL during a save' else 0
        for i in range(saves):
            while life.running() and not life.saving():
                time.sleep(0.001)
            while i < saves - 1 and life.running() and life.saving():
                time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05 if saves else 1.5))
    if not life.running():
        return False
    number = signal.SIGTERM if kind == 'SIGTERM' else signal.SIGKILL
    life.hit(number)
    code = life.wait()
    if code != (0 if number == signal.SIGTERM else -signal.SIGKILL):
        raise RuntimeError(f'{kind}: exit code {code}')
    return True


def keep_cores(path: pathlib.Path) -> None:
    """Refuses to go on with another number of cores: XLA:CPU then sums in another order."""
    cores = len(os.sched_getaffinity(0))
    if path.exists() and int(path.read_text()) != cores:
        raise SystemExit(
            f'this soak was begun with {path.read_text()} cores and would go on with {cores}, '
            'which rounds differently; choose as many with taskset -c'
        )
    path.write_text(str(cores))


def newest(checkpoints: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints, the newest last."""
    if not checkpoints.is_dir():
        return []
    return sorted((p for p in checkpoints.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)
    root = pathlib.Path(_WORKDIR.value).absolute()
    root.mkdir(parents=True, exist_ok=True)
    keep_cores(root / 'cores.txt')
    jax.config.update('jax_compilation_cache_dir', str(root / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    config = tiny_config(root / 'data', _STEPS.value)
    if Life(config, root / 'undisturbed', root / 'undisturbed.log').wait():
        raise SystemExit(f'the undisturbed run failed; see {root / "undisturbed.log"}')

    (root / 'disturbed.log').touch()
    record_path, workdir, log = root / 'soak.json', root / 'disturbed', root / 'disturbed.log'
    record = json.loads(record_path.read_text()) if record_path.exists() else []
    while sum(entry['kind'] != 'damage' for entry in record) < _KILLS.value:
        rng = random.Random(f'{_SEED.value}/{len(record)}')
        done = newest(workdir / 'checkpoints')
        last = record[-1]['kind'] if record else ''
        if len(done) > 1 and last != 'damage' and rng.random() < DAMAGED:
            damage = rng.choice(DAMAGES)
            damage(done[-1])
            entry = {'kind': 'damage', 'what': damage.__name__, 'step': int(done[-1].name)}
        else:
            kinds = [*KINDS, STEPPING]
            kind = rng.choices(kinds, [*KINDS.values(), 1 - sum(KINDS.values())])[0]
            # No faster than the steps last for all kills.
            share = len(record) / (_KILLS.value * 1.1)
            if done and int(done[-1].name) > 0.9 * share * _STEPS.value + 20:
                kind = 'SIGKILL while starting'
            if not strike(Life(config, workdir, log), kind, rng):
                raise SystemExit(f'the run ended after {len(record)} faults; raise --steps')
            done = newest(workdir / 'checkpoints')
            entry = {'kind': kind, 'step': int(done[-1].name) if done else 0}
        record.append(entry)
        temporary = record_path.with_suffix('.tmp')
        temporary.write_text(json.dumps(record))
        os.replace(temporary, record_path)
        print(f'{len(record):4d}  {entry}', flush=True)
    if Life(config, workdir, log).wait():
        raise SystemExit(f'the last life failed; see {log}')
    counts = collections.Counter(entry.get('what', entry['kind']) for entry in record)
    equal = compare(config, root / 'undisturbed', workdir)
    print('\n| fault | injected | survived |\n|---|---|---|')
    for name, count in sorted(counts.items()):
        print(f'| {name.replace("_", " ")} | {count} | {count} |')
    print(f'| all | {len(record)} | {len(record)} |\n')
    set_aside = log.read_text(errors='replace').count('it was renamed to damaged-')
    print(f'{set_aside} damaged checkpoints were named and set aside; {equal}')


def compare(config, a: pathlib.Path, b: pathlib.Path) -> str:
    """Says how many arrays and rows were compared.

    Raises:
        AssertionError: a bit differs.
    """
    _, params, stats = models.abstract(config, 19)
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    found = [checkpoint.restore(path, params, stats, sharding, 'latest') for path in (a, b)]
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


if __name__ == '__main__':
    app.run(main)
