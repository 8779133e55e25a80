r"""Runs the sweep of a configuration and makes its table.

    python -m experiments.tables.sweep list  --config=configs/camvid.py --out=runs/table1 --seeds=3
    python -m experiments.tables.sweep run   --config=... --out=... --seeds=3 --jobs=2
    python -m experiments.tables.sweep run   --config=... --out=... --index=$SLURM_ARRAY_TASK_ID
    python -m experiments.tables.sweep table --config=... --out=... --seeds=3
    python -m experiments.tables.sweep slurm --config=... --out=... | sbatch
    python -m experiments.tables.sweep gke   --config=... --out=/runs/table1 --image=... \
        --claim=... | kubectl apply -f -
    python -m experiments.tables.sweep gke   --config=... --out=gs://BUCKET/table1 --image=... \
        --account=... | kubectl apply -f -

`--sweep=peers` takes the rows of another function of the configuration than `sweep()`: those of
configs/table1.py `peers()` are context modules of other papers beside the paper's own.

Arguments of the form --config.field=value apply to every run. `run` starts main.py for the runs
that are not finished, so that the same command resumes after an interruption; Ctrl-C and SIGTERM
let the runs save first. Compiled programs are cached in <out>/compiled (or in
JAX_COMPILATION_CACHE_DIR), so that only the first seed of a row compiles. `table` reads the final
evaluations and writes <out>/table.csv and <out>/table.md beside the paper's values; it can be
called at any time. `slurm` and `gke` print an array job with an element for each run that is not
finished. --out may be in a bucket; runs then print their logs. Run it from the root of the
repository.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO

from experiments.common import cli
from experiments.tables import sweep_arrays, sweep_runs, table1
from ggcf_jax import buckets
from ggcf_jax.distributed import platforms
from ggcf_jax.distributed.preemption import stop_requests
from ggcf_jax.errors import InputError

_MAIN = pathlib.Path(__file__).parents[2] / 'main.py'


@dataclasses.dataclass(frozen=True)
class _Job:
    """A process that trains or evaluates a run.

    Attributes:
        run: run that the process works on.
        row: row that it finishes.
        process: the process.
        share: part of the machine that it runs on.
        began: `time.perf_counter()` at its start.
    """

    run: sweep_runs.Run
    row: sweep_runs.Row
    process: subprocess.Popen
    share: '_Share'
    began: float


@dataclasses.dataclass(frozen=True)
class _Share:
    """What one of the processes at a time may use of this machine.

    Attributes:
        cores: CPU cores.
        gpus: value of CUDA_VISIBLE_DEVICES; None to leave it as it is.
    """

    cores: set[int]
    gpus: str | None


def run(path: str, todo: Sequence[sweep_runs.Run], jobs: int, compiled: pathlib.Path) -> list[str]:
    """Trains and evaluates runs in processes of their own, each with a log beside its workdir.

    Args:
        path: configuration file, with its variant.
        todo: runs to finish.
        jobs: maximum number of processes at a time.
        compiled: directory of the compilation cache that the runs share.

    Returns:
        One line for each run that did not finish.

    Raises:
        InputError: more jobs than GPUs, before anything starts.
    """
    waiting, failed, terminated = list(todo), [], False
    active: list[_Job] = []
    # Every job has cores and GPUs of its own: runs side by side would otherwise wait for each
    # other, and with a changing number of cores XLA rounds differently.
    free = _shares(jobs)
    with stop_requests() as stop_requested:
        while active or (waiting and not stop_requested()):
            while waiting and free and not stop_requested():
                following = waiting.pop(0)
                if following.finished:  # meanwhile, by another sweep of the same folder
                    name = f'{following.row}, seed {following.seed}'
                    print(f'{following.index:3d} {name}: was done', flush=True)
                    continue
                job = _start(path, following, compiled, free.pop(0))
                active.append(job)
                name = f'{job.row.name}, seed {job.run.seed}'
                print(f'{job.run.index:3d} {name}: started', flush=True)
            if stop_requested() and not terminated:
                for job in active:
                    job.process.terminate()  # main.py saves; a second signal would kill it
                terminated = True
            for job in list(active):
                if job.process.poll() is None:
                    continue
                active.remove(job)
                free.append(job.share)
                if not _report(job):
                    failed.append(f'{_outcome(job)}; see {_log(job.run) or "above"}')
                elif not job.run.finished:
                    waiting.insert(0, job.run)  # its evaluations come next
            time.sleep(0.2)
    left = [each for each in waiting if not each.finished]
    return failed + [f'{each.next_row.name}, seed {each.seed}: not started' for each in left]


def _outcome(job: _Job) -> str:
    state = 'finished' if job.row.finished else f'ended with code {job.process.returncode}'
    return f'{job.row.name}, seed {job.run.seed}: {state}'


def _report(job: _Job) -> bool:
    """Prints how a process ended; returns whether its row is finished."""
    seconds = time.perf_counter() - job.began
    print(f'{job.run.index:3d} {_outcome(job)} after {seconds:.0f} s', flush=True)
    return job.row.finished


def _shares(jobs: int) -> list[_Share]:
    """Splits cores and NVIDIA GPUs among the jobs; more jobs than cores share all of them.

    Raises:
        InputError: more jobs than GPUs, which a run takes the memory of as a whole.
    """
    cores = sorted(os.sched_getaffinity(0))
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    number = platforms.gpus_of_machine()
    gpus = list(map(str, range(number))) if visible is None else visible.split(',')
    if number > 0 and len(gpus) < jobs:
        raise InputError(f'--jobs={jobs}: there are {len(gpus)} GPUs, and each run needs its own')
    each = len(gpus) // jobs
    return [
        _Share(
            set(cores[job::jobs] if jobs <= len(cores) else cores),
            ','.join(gpus[job * each : (job + 1) * each]) if number and jobs > 1 else None,
        )
        for job in range(jobs)
    ]


def _log(run: sweep_runs.Run) -> pathlib.Path | None:
    """The file of what a run prints; None beside a workdir in a bucket, where nothing grows."""
    return None if buckets.is_bucket(run.workdir) else run.workdir.with_suffix('.log')


@contextlib.contextmanager
def _opened(log: pathlib.Path | None) -> Iterator[IO[bytes] | None]:
    """A log to append to; None for the output of this process."""
    if log is None:
        yield None
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('ab') as file:
        yield file


def _start(path: str, run: sweep_runs.Run, compiled: pathlib.Path, share: _Share) -> _Job:
    """Starts the process that finishes the next row of a run."""
    environment = {'JAX_COMPILATION_CACHE_DIR': str(compiled.absolute())} | os.environ
    if share.gpus is not None:
        environment['CUDA_VISIBLE_DEVICES'] = share.gpus
    row = run.next_row
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(
        0, share.cores
    )  # inherited, so that it holds from the child's first moment
    try:
        with _opened(_log(run)) as log:
            # In a session of its own, so that Ctrl-C reaches only us and is passed on once.
            process = subprocess.Popen(
                [sys.executable, str(_MAIN), *run.flags(path)],
                stdout=log,
                stderr=None if log is None else subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
    finally:
        os.sched_setaffinity(0, ours)
    return _Job(run, row, process, share, time.perf_counter())


def _select_rows(
    todo: Sequence[sweep_runs.Run], rows: Sequence[str] | None
) -> list[sweep_runs.Run]:
    """Returns the runs whose training is one of `rows`, or all of them for None."""
    known = dict.fromkeys(each.row for each in todo)
    for row in rows or ():
        if row not in known:
            raise InputError(f'--row={row!r} is not one of {", ".join(map(repr, known))}')
    return [each for each in todo if rows is None or each.row in rows]


def main(options: argparse.Namespace) -> int:
    """Lists or finishes the runs of a sweep, or writes their table; returns the exit code."""
    if options.jobs < 1 or options.seeds < 1:
        raise InputError('--jobs and --seeds must be at least 1')
    todo = sweep_runs.runs(
        options.config, options.out, options.seeds, options.config_overrides, options.sweep
    )
    todo = _select_rows(todo, options.row)
    if options.action == 'table':
        table1.write(todo, options.out)
        return 0
    if options.index is not None:
        known = [each.index for each in todo]
        if options.index not in known:
            raise InputError(f'--index={options.index} is not one of {known}')
        todo = [each for each in todo if each.index == options.index]
    if options.action == 'list':
        for each in todo:
            state = 'finished' if each.finished else 'to do'
            print(f'{each.index:3d} {state:8} {each.row}, seed {each.seed}: {each.workdir}')
        return 0
    todo = [each for each in todo if not each.finished]
    if options.action in ('slurm', 'gke'):
        print(_array(options, [each.index for each in todo]), end='')
        return 0
    failed = run(options.config, todo, options.jobs, options.out / 'compiled')
    for line in failed:
        print(f'not finished: {line}', file=sys.stderr)
    return 1 if failed else 0


def _array(options: argparse.Namespace, indices: list[int]) -> str:
    """The array job that finishes runs by their numbers."""
    if not indices:
        raise InputError('every run of the sweep is finished: there is nothing to submit')
    own = {options.action, '--image', '--claim', '--account'}
    own |= {options.image, options.claim, options.account}
    rest = [each for each in sys.argv[1:] if each.partition('=')[0] not in own]
    command = ['python', '-m', 'experiments.tables.sweep', 'run', *rest]
    if options.action == 'slurm':
        return sweep_arrays.slurm(command, indices)
    if not options.image:
        raise InputError('--image=IMAGE is missing')
    if not (options.claim or buckets.is_bucket(options.out)):
        raise InputError(
            f'--out={options.out} is a folder of a disk that pods share: --claim='
            'PERSISTENT_VOLUME_CLAIM is missing; or give a bucket, --out=gs://BUCKET/FOLDER'
        )
    return sweep_arrays.gke(
        command, indices, image=options.image, claim=options.claim, account=options.account
    )


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        'action',
        choices=('list', 'run', 'table', 'slurm', 'gke'),
        help='list the runs, finish them, write the table of the finished ones, or print an array '
        'job that finishes them',
    )
    cli.add_config(parser)
    parser.add_argument('--seeds', default=3, type=int, help='number of runs of a row [3]')
    parser.add_argument(
        '--jobs',
        default=1,
        type=int,
        help='number of runs at a time, among which the GPUs are divided [1]',
    )
    parser.add_argument(
        '--sweep',
        default='sweep',
        help='function of the configuration that yields the rows, such as peers [sweep]',
    )
    parser.add_argument('--row', action='append', help='take only this row; may be repeated')
    parser.add_argument('--index', type=int, help='take only the run with this number of the list')
    parser.add_argument('--image', help='gke: image of this repository')
    parser.add_argument(
        '--claim', help='gke: persistent volume claim that is mounted at /runs, where --out is'
    )
    parser.add_argument(
        '--account', help='gke: service account of the pods, for --out in a bucket [default]'
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser(), writes=lambda options: options.action in ('run', 'table'))
