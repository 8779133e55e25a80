"""How long the runs of a sweep take, from a short run of each row that is measured first."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.tables import sweep, sweep_runs
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.workdir import metrics_log, provenance

# Steps of a short run, and those between two rows of its metrics. The last row counts.
_STEPS, _LOG_EVERY = 40, 10


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a short run of a row has measured.

    Attributes:
        images_per_sec: throughput of training, all devices together.
        evaluation_sec: seconds of an evaluation of the validation split, one view of each image.
        devices: number and kind of the devices, such as '8 x NVIDIA H100 80GB HBM3'.
    """

    images_per_sec: float
    evaluation_sec: float
    devices: str


def measure(
    path: str, out: pathlib.Path, overrides: Sequence[str], *, sweep_name: str = 'sweep'
) -> dict[str, Speed]:
    """Measures each row of a sweep with a run of some steps and one evaluation.

    One run has all devices. What was measured before is taken again where configuration, versions,
    source and devices are the same, so that an interrupted call goes on.

    Args:
        path: configuration file, with its variant where there is one: configs/x.py:variant.
        out: folder of the short runs.
        overrides: 'field=value' overrides of every run.
        sweep_name: name of the configuration's function that yields the rows.

    Returns:
        Row that trains -> what was measured.

    Raises:
        InputError: a short run failed.
    """
    here = _computes_with()
    config = cli.load_config(path, overrides).config
    rows = json.dumps([config.to_json_best_effort(), sweep_runs.rows_of(path, sweep_name), here])
    folder = out / hashlib.sha256(rows.encode()).hexdigest()[:16]
    if (here['git'] or '').endswith('-dirty'):  # what the source was cannot be told apart
        shutil.rmtree(folder, ignore_errors=True)
    short = (
        f'train.steps={_STEPS}',
        f'train.eval_every={_STEPS}',
        f'train.checkpoint_every={_STEPS}',
        f'train.log_every={_LOG_EVERY}',
    )
    runs = [
        dataclasses.replace(run, evaluated=())
        for run in sweep_runs.runs(path, folder, 1, (*overrides, *short), sweep_name)
    ]
    todo = [run for run in runs if not run.finished]
    if todo:
        print(f'{path}: measuring {len(todo)} rows with {_STEPS} steps each on {here["devices"]}')
        failed = sweep.run(path, todo, 1, out / 'compiled')
        if failed:
            raise InputError('; '.join(failed))
    for run in runs:
        shutil.rmtree(run.workdir / 'checkpoints', ignore_errors=True)  # large, and not needed
    return {run.row: _read(run) for run in runs}


def _read(run: sweep_runs.Run) -> Speed:
    rows = metrics_log.read_rows(run.workdir)
    return Speed(
        images_per_sec=_last(rows, 'train/images_per_sec'),
        evaluation_sec=_last(rows, 'val/evaluation_sec'),
        devices=provenance.read(run.workdir)['devices'],
    )


def _last(rows: Sequence[dict[str, Any]], name: str) -> float:
    return next(row[name] for row in reversed(rows) if row.get(name) is not None)


def _computes_with() -> dict[str, Any]:
    """`provenance.current()` of a process of its own: JAX here would keep the devices."""
    program = (
        'import json; from ggcf_jax.workdir import provenance; '
        'print(json.dumps(provenance.current()))'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f'JAX does not start:\n{done.stderr.strip()}')
    return json.loads(done.stdout.splitlines()[-1])


def seconds(run: sweep_runs.Run, speed: Speed) -> float:
    """Returns the seconds that a run still needs, without compilation.

    Args:
        run: run of a sweep, begun or not.
        speed: what its row has measured.
    """
    config = run.trained.config
    left = 0.0
    if not run.trained.finished:
        train = config.train
        done = max((row['step'] for row in metrics_log.read_rows(run.workdir)), default=0)
        evaluations = -(-train.steps // train.eval_every) - done // train.eval_every
        left = (train.steps - done) * train.batch_size / speed.images_per_sec
        left += evaluations * speed.evaluation_sec
    return left + sum(
        _views(row.config) * speed.evaluation_sec for row in run.evaluated if not row.finished
    )


def _views(config: ConfigDict) -> float:
    """Pixels that an inference plan looks at, in those of the image; windows count as one view."""
    plan = inference.build(config)
    return sum(scale**2 for scale in plan.scales) * (2 if plan.flip else 1)


def total_hours(runs: Sequence[sweep_runs.Run], speeds: dict[str, Speed]) -> float:
    """Hours that runs still need one after the other.

    Args:
        runs: runs of a sweep.
        speeds: what was measured for each of their rows.
    """
    return sum(seconds(run, speeds[run.row]) for run in runs) / 3600
