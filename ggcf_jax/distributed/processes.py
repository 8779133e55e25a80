"""The processes of one run: they start together, agree, and end together.

Everything here works with one process too, and then does nothing.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from ggcf_jax.distributed.liveness import Verdict, Watch
from ggcf_jax.errors import InputError

_DAY_MS = 24 * 3600 * 1000  # barriers wait for slow processes; the watch ends dead ones

# The launchers whose variables JAX reads, with the one that says how many processes they started.
_SIZES = {'SLURM_STEP_NODELIST': 'SLURM_NTASKS', 'OMPI_MCA_orte_hnp_uri': 'OMPI_COMM_WORLD_SIZE'}

_watch: Watch | None = None
_barriers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Launch:
    """How the processes of a run find and lose each other.

    Attributes:
        coordinator: host:port of process 0, or None to ask the launcher (TPU, SLURM, Open MPI).
        count: number of processes, or None.
        index: of this process, or None.
        start_timeout: seconds that all processes have to appear in.
        peer_timeout: seconds without a sign of life after which a process counts as dead.
        stall_timeout: seconds without progress, once training has begun, after which one counts
            as stuck.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    start_timeout: int = 300
    peer_timeout: int = 60
    stall_timeout: int = 1800


@contextlib.contextmanager
def joined(launch: Launch) -> Iterator[None]:
    """Joins this process to the others of its run for the time of the context.

    A process that ends by an exception tells the others, and all end: with its exit code (2 for an
    InputError, else 1). When a process is dead or stuck, the others say which one and end with
    `watch.LOST`. Without other processes exceptions pass through.

    Args:
        launch: who they are; without a coordinator and outside of a cluster this process is alone.

    Raises:
        InputError: only some of coordinator, count and index are given, or they make no sense.
    """
    _initialize(launch)
    if jax.process_count() == 1:
        yield
        return
    global _watch
    _watch = Watch(
        _KeyValueBoard(),
        jax.process_index(),
        jax.process_count(),
        peer_timeout=launch.peer_timeout,
        stall_timeout=launch.stall_timeout,
        end=_end,
    )
    _watch.start()
    try:
        yield
        _barrier()
    except BaseException as error:
        _fail(error, launch)
    _watch.stop()
    jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this is process 0, which alone writes files that all share and prints."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if is_first():
        print(text, flush=True)


def console() -> Console:
    """Where process 0 shows its progress; the others show nothing."""
    return Console(quiet=not is_first())


def progress(what: str) -> None:
    """Notes for the others that this process has come to `what`; all note the same things."""
    if _watch is not None:
        _watch.progress(what)


def compile_together(f: Any, *arguments: Any) -> None:
    """Compiles a jitted function; returns when all processes have.

    They take different times, and JAX lets the first of them wait only so long in the first
    collective for the last: on CPUs 30 seconds.

    Args:
        f: made by `jax.jit`.
        arguments: such as it will be called with.
    """
    if jax.process_count() > 1:
        f.lower(*arguments).compile()
        _barrier()


def from_first(tree: Any) -> Any:
    """Process 0's arrays on every process, bit by bit.

    Args:
        tree: of NumPy arrays or scalars of up to 32 bits, of the same shapes and dtypes on every
            process.
    """
    if jax.process_count() == 1:
        return tree
    # As integers: adding zeros of the other processes would turn -0.0 into 0.0.
    tree = jax.tree.map(np.asarray, tree)
    bits = jax.tree.map(lambda x: x.view(f'uint{8 * x.dtype.itemsize}'), tree)
    _barrier()  # process 0 may have read a file for longer than a collective waits
    bits = multihost_utils.broadcast_one_to_all(bits)
    return jax.tree.map(lambda b, x: np.asarray(b).view(x.dtype), bits, tree)


@contextlib.contextmanager
def first_one_first() -> Iterator[None]:
    """Process 0 runs the body before the others do.

    For files that are made on first use: on a shared file system the others find them, on local
    disks they make their own.
    """
    if not is_first():
        _barrier()
    yield
    if is_first():
        _barrier()


def _initialize(launch: Launch) -> None:
    given = (launch.coordinator, launch.count, launch.index)
    if any(x is not None for x in given) and None in given:
        raise InputError(
            'give all of --coordinator, --num_processes and --process_id, or none of them if a '
            'launcher provides them (TPU pod, SLURM, Open MPI)'
        )
    if launch.coordinator is None:
        sizes = [os.environ.get(size, '1') for n, size in _SIZES.items() if n in os.environ]
        if sizes and max(map(int, sizes)) == 1:
            return  # an interactive step: JAX would give it the first accelerator only
        tpus = 'tpu' in os.environ.get('JAX_PLATFORMS', 'tpu')
        if not sizes and not (tpus and importlib.util.find_spec('libtpu')):
            return
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=launch.start_timeout,
            # Behind the watch, which knows more to say.
            heartbeat_timeout_seconds=2 * launch.peer_timeout + 10,
            shutdown_timeout_seconds=launch.peer_timeout,
        )
    except ValueError as error:
        if launch.coordinator is not None:
            raise InputError(f'cannot join the other processes: {error}') from error


def _barrier() -> None:
    if jax.process_count() > 1:
        _client().wait_at_barrier(f'ggcf_jax/{next(_barriers)}', _DAY_MS)


def _client():
    """JAX's key-value store and barriers, which it has no public name for (Orbax uses them too)."""
    from jax._src import distributed

    return distributed.global_state.client


class _KeyValueBoard:
    """A `watch.Board` in the store of process 0."""

    def write(self, key: str, value: str) -> None:
        _client().key_value_set(f'ggcf_jax/watch/{key}', value, allow_overwrite=True)

    def read(self) -> dict[str, str]:
        notes = _client().key_value_dir_get('ggcf_jax/watch/')
        return {key.rsplit('/', 1)[-1]: value for key, value in notes}


def _fail(error: BaseException, launch: Launch) -> None:
    """Ends this process because of an exception, and by telling them the others."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        # Perhaps only because another process is gone: leave it to the watch to find out.
        time.sleep(launch.peer_timeout + 3 * _watch.interval)
    code, line = 1, f'{type(error).__name__}: {error}'
    if isinstance(error, InputError):
        code, line = 2, str(error)
    else:
        traceback.print_exception(error)
    _watch.stop()
    verdict = Verdict(code, f'process {jax.process_index()} ended: {line}')
    _watch.publish(verdict)
    _end(verdict)


def _end(verdict: Verdict) -> None:
    """Ends this process at once: whatever waits for the others would wait for ever."""
    print(f'error: {verdict.text}', file=sys.stderr)
    if is_first():  # the others must be able to read why, and process 0 holds the board
        time.sleep(3 * _watch.interval)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(verdict.code)
