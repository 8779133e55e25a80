"""Runs the sweep of a configuration and makes its table.

    python -m experiments.tables.sweep list  --config=configs/camvid.py --out=runs/table1 --seeds=3
    python -m experiments.tables.sweep run   --config=... --out=... --seeds=3 --jobs=2
    python -m experiments.tables.sweep run   --config=... --out=... --index=$SLURM_ARRAY_TASK_ID
    python -m experiments.tables.sweep table --config=... --out=... --seeds=3

Arguments of the form --config.field=value go to every run. `run` starts main.py for what is not
finished, so that the same command goes on after an interruption; Ctrl-C and SIGTERM let the runs
save first. Compiled programs are kept in <out>/compiled (or where JAX_COMPILATION_CACHE_DIR says):
only the first seed of a row compiles. `table` reads the last evaluations and writes <out>/table.csv
and <out>/table.md beside the paper's values; it can be called at any time. Run it from the root of
the repository.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from experiments.tables import sweep_runs, table1
from ggcf_jax.distributed.preemption import stop_requests
from ggcf_jax.errors import InputError

_MAIN = pathlib.Path(__file__).parents[2] / 'main.py'


def run(path: str, todo: Sequence[sweep_runs.Run], jobs: int, compiled: pathlib.Path) -> list[str]:
    """Trains and evaluates `todo`, at most `jobs` at a time, each with a log beside its workdir.

    Args:
        path: of the configuration.
        todo: what to run.
        jobs: so many processes.
        compiled: directory of the programs that the runs share.

    Returns:
        A line for each run that did not finish.
    """
    waiting, active, failed, told = list(todo), {}, [], False
    # Every job has cores of its own: runs side by side would otherwise wait for each other, and
    # with a changing number of cores XLA rounds differently.
    free = _shares(jobs)
    with stop_requests() as stop_requested:
        while active or (waiting and not stop_requested()):
            while waiting and free and not stop_requested():
                each, cores = waiting.pop(0), free.pop(0)
                row = each.next_row
                process = _start(path, each, compiled, cores)
                active[each] = row, process, cores, time.perf_counter()
                print(f'{each.index:3d} {row.name}, seed {each.seed}: started', flush=True)
            if stop_requested() and not told:
                for _, process, *_ in active.values():
                    process.terminate()  # main.py saves and ends; a second signal would kill it
                told = True
            for each, (row, process, cores, began) in list(active.items()):
                if process.poll() is None:
                    continue
                del active[each]
                free.append(cores)
                seconds = time.perf_counter() - began
                name = f'{row.name}, seed {each.seed}'
                state = 'finished' if row.finished else f'ended with code {process.returncode}'
                print(f'{each.index:3d} {name}: {state} after {seconds:.0f} s', flush=True)
                if not row.finished:
                    failed.append(f'{name}: {state}; see {_log(each)}')
                elif not each.finished:
                    waiting.insert(0, each)  # evaluations that start from it
            time.sleep(0.2)
    return failed + [f'{each.next_row.name}, seed {each.seed}: not started' for each in waiting]


def _shares(jobs: int) -> list[set[int]]:
    """This process' cores dealt out to the jobs; more jobs than cores share all of them."""
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[job::jobs] if jobs <= len(cores) else cores) for job in range(jobs)]


def _log(each: sweep_runs.Run) -> pathlib.Path:
    return each.workdir.with_suffix('.log')


def _start(
    path: str, each: sweep_runs.Run, compiled: pathlib.Path, cores: set[int]
) -> subprocess.Popen:
    shared = {'JAX_COMPILATION_CACHE_DIR': str(compiled.absolute())}
    _log(each).parent.mkdir(parents=True, exist_ok=True)
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # inherited, so that it holds from the child's first moment
    try:
        with _log(each).open('ab') as log:
            # In a session of its own, so that Ctrl-C reaches only us and is passed on once.
            return subprocess.Popen(
                [sys.executable, str(_MAIN), *each.flags(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=shared | os.environ,
            )
    finally:
        os.sched_setaffinity(0, ours)


def _of_rows(todo: Sequence[sweep_runs.Run], rows: Sequence[str] | None) -> list[sweep_runs.Run]:
    """The runs whose training is one of `rows`; all of them for None."""
    known = dict.fromkeys(each.row for each in todo)
    for row in rows or ():
        if row not in known:
            raise InputError(f'--row={row!r} is not one of {", ".join(map(repr, known))}')
    return [each for each in todo if rows is None or each.row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('action', choices=('list', 'run', 'table'))
    parser.add_argument('--config', required=True, help='with a sweep(): configs/x.py[:variant]')
    parser.add_argument('--out', required=True, type=pathlib.Path, help='directory of the sweep')
    parser.add_argument('--seeds', default=3, type=int, help='runs a row [3]')
    parser.add_argument('--jobs', default=1, type=int, help='runs at a time [1]')
    parser.add_argument('--row', action='append', help='only this row; may be repeated')
    parser.add_argument('--index', type=int, help='run only this one, as list numbers them')
    options, rest = parser.parse_known_args()
    strange = [each for each in rest if not each.startswith('--config.')]
    if strange:
        parser.error(f'unexpected {strange}; overrides are written --config.field=value')
    if options.jobs < 1 or options.seeds < 1:
        parser.error('--jobs and --seeds must be at least 1')
    try:
        common = [each.removeprefix('--config.') for each in rest]
        todo = sweep_runs.runs(options.config, options.out, options.seeds, common)
        todo = _of_rows(todo, options.row)
        if options.action == 'table':
            table1.write(todo, options.out)
            return 0
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    if options.index is not None:
        known = [each.index for each in todo]
        if options.index not in known:
            parser.error(f'--index={options.index} is not one of {known}')
        todo = [each for each in todo if each.index == options.index]
    if options.action == 'list':
        for each in todo:
            state = 'finished' if each.finished else 'to do'
            print(f'{each.index:3d} {state:8} {each.row}, seed {each.seed}: {each.workdir}')
        return 0
    todo = [each for each in todo if not each.finished]
    failed = run(options.config, todo, options.jobs, options.out / 'compiled')
    for line in failed:
        print(f'not finished: {line}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
