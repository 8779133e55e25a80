"""The processes of one run: they start together, communicate, and end together.

With a single process everything here works too, and does nothing.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import os
import socket
import sys
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from ggcf_jax.distributed import platforms
from ggcf_jax.distributed.liveness import LivenessMonitor, Verdict
from ggcf_jax.distributed.preemption import Interrupted
from ggcf_jax.errors import InputError

_DAY_MS = 24 * 3600 * 1000  # barriers wait for slow processes; the liveness monitor ends dead ones

# Launchers that JAX recognises by this variable -> the variable with their number of processes.
_SIZES = {'SLURM_STEP_NODELIST': 'SLURM_NTASKS', 'OMPI_MCA_orte_hnp_uri': 'OMPI_COMM_WORLD_SIZE'}

_NAME = 64  # bytes of the name of a machine

_monitor: LivenessMonitor | None = None
_barriers = itertools.count()
_texts = itertools.count()


@dataclasses.dataclass(frozen=True)
class Launch:
    """How the processes of a run find each other, and when one counts as lost.

    Attributes:
        coordinator: host:port of process 0, or None to ask the launcher (TPU, SLURM, Open MPI).
        count: number of processes, or None to ask the launcher.
        index: index of this process, or None to ask the launcher.
        start_timeout: seconds within which all processes have to join.
        peer_timeout: seconds without a heartbeat after which a process counts as dead.
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

    If one process raises, it notifies the others and all exit with its exit code (2 for an
    InputError, else 1). If one is dead or stuck, the others name it and exit with `liveness.LOST`.
    Without other processes exceptions propagate.

    Args:
        launch: how to find the others; without a coordinator and outside of a cluster there are
            none.

    Raises:
        InputError: only some of coordinator, count and index are given, or they make no sense; or
            there are no devices but the CPU, see `platforms.check`.
    """
    _initialize(launch)
    platforms.check()
    if jax.process_count() == 1:
        yield
        return
    global _monitor
    _monitor = LivenessMonitor(
        _KeyValueStore(),
        jax.process_index(),
        jax.process_count(),
        peer_timeout=launch.peer_timeout,
        stall_timeout=launch.stall_timeout,
        end=_end,
    )
    _monitor.start()
    try:
        yield
        _barrier()
    except BaseException as error:
        _fail(error, launch, _monitor)
    _monitor.stop()
    jax.distributed.shutdown()


def launched(launch: Launch) -> bool:
    """Whether there is something to join: a coordinator, a launcher's processes or a TPU.

    Args:
        launch: how to find the other processes.
    """
    if launch.coordinator is not None:
        return True
    sizes = [os.environ.get(size, '1') for n, size in _SIZES.items() if n in os.environ]
    if sizes:  # with one, an interactive step, JAX would use the first accelerator only
        return max(map(int, sizes)) > 1
    tpus = 'tpu' in os.environ.get('JAX_PLATFORMS', 'tpu')
    return tpus and importlib.util.find_spec('libtpu') is not None


def is_process_zero() -> bool:
    """Whether this is process 0, the only one that prints and writes shared files."""
    return jax.process_index() == 0


def log_once(text: str) -> None:
    """Prints a line on process 0 only."""
    if is_process_zero():
        print(text, flush=True)


def console() -> Console:
    """Returns the console for progress bars, quiet on all processes but process 0."""
    return Console(quiet=not is_process_zero())


def report_progress(activity: str) -> None:
    """Tells the other processes that this one made progress.

    Args:
        activity: what it does now, such as 'step 7'; every process reports the same sequence.
    """
    if _monitor is not None:
        _monitor.report_progress(activity)


def compile_together(f: Any, *arguments: Any) -> jax.stages.Compiled:
    """Compiles a jitted function and returns once every process has compiled it.

    Compilation times differ, and JAX bounds how long the first process waits for the last one in
    the first collective: on CPUs 30 seconds. Calls of `f` with such arguments find the program.

    Args:
        f: function made by `jax.jit`.
        *arguments: arguments of the shapes and shardings that it will be called with.
    """
    compiled = f.lower(*arguments).compile()
    _barrier()
    return compiled


def broadcast_from_process_zero(tree: Any) -> Any:
    """Returns process 0's arrays on every process, bit for bit.

    Args:
        tree: pytree of NumPy arrays or scalars of up to 32 bits, with the same shapes and dtypes on
            every process.
    """
    if jax.process_count() == 1:
        return tree
    # As integers: the broadcast adds the other processes' zeros, which turns -0.0 into 0.0.
    tree = jax.tree.map(np.asarray, tree)
    bits = jax.tree.map(lambda x: x.view(f'uint{8 * x.dtype.itemsize}'), tree)
    _barrier()  # process 0 may have read a file for longer than a collective waits
    bits = multihost_utils.broadcast_one_to_all(bits)
    return jax.tree.map(lambda b, x: np.asarray(b).view(x.dtype), bits, tree)


def gathered(value: np.number | np.ndarray) -> np.ndarray:
    """Collects a number or array of every process, by its index; all call it together.

    Args:
        value: of this process; of one shape and type in all of them.
    """
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    return np.asarray(multihost_utils.process_allgather(value))


def host_names() -> tuple[str, ...]:
    """The name of the machine of every process; all call it together."""
    name = socket.gethostname().encode()[:_NAME]
    names = gathered(np.frombuffer(name.ljust(_NAME), np.uint8))
    return tuple(each.tobytes().decode(errors='replace').strip() for each in names)


def on_this_machine() -> int:
    """Number of the run's processes that run on this machine; all processes must call it."""
    if jax.process_count() == 1:
        return 1
    own = np.uint32(zlib.crc32(socket.gethostname().encode()))
    _barrier()  # a collective waits for a short time only
    return int((multihost_utils.process_allgather(own) == own).sum())


def text_from_process_zero(text: str) -> str:
    """Returns process 0's text on every process.

    Args:
        text: text of this process, which is used on process 0 only.
    """
    if jax.process_count() == 1:
        return text
    key = f'ggcf_jax/text/{next(_texts)}'
    if is_process_zero():
        _client().key_value_set(key, text)
        return text
    return _client().blocking_key_value_get(key, _DAY_MS)


def agree(values: Mapping[str, str]) -> None:
    """Makes sure that all processes were started alike, before they wait for each other.

    Args:
        values: name -> value of everything that has to be equal.

    Raises:
        InputError: this process has other values than process 0; the message names them.
    """
    if jax.process_count() == 1:
        return
    first = json.loads(text_from_process_zero(json.dumps(dict(values))))
    different = [
        f'\n  {name}: {first.get(name)} there, {values.get(name)} here'
        for name in sorted({*first, *values})
        if first.get(name) != values.get(name)
    ]
    if different:
        raise InputError(
            f'process {jax.process_index()} was started with other values than process 0:'
            f'{"".join(different[:12])}\nstart all processes with the same command'
        )
    _barrier()  # process 0 goes on once all have compared


@contextlib.contextmanager
def process_zero_first() -> Iterator[None]:
    """Lets process 0 run the body before the others do.

    For files that are created on first use: on a shared file system the others find them, on local
    disks they create their own.
    """
    if not is_process_zero():
        _barrier()
    yield
    if is_process_zero():
        _barrier()


def _initialize(launch: Launch) -> None:
    given = (launch.coordinator, launch.count, launch.index)
    if any(x is not None for x in given) and None in given:
        raise InputError(
            'give all of --coordinator, --num_processes and --process_id, or none of them if a '
            'launcher provides them (TPU pod, SLURM, Open MPI)'
        )
    if not launched(launch):
        return
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=launch.start_timeout,
            # Longer than the liveness monitor's timeout, whose message is more specific.
            heartbeat_timeout_seconds=2 * launch.peer_timeout + 10,
            shutdown_timeout_seconds=launch.peer_timeout,
        )
    except ValueError as error:
        if launch.coordinator is not None:
            raise InputError(f'cannot join the other processes: {error}') from error


def _barrier() -> None:
    if jax.process_count() > 1:
        _client().wait_at_barrier(f'ggcf_jax/{next(_barriers)}', _DAY_MS)


def _client() -> Any:
    """JAX's key-value store and barriers, which have no public name (Orbax uses them too)."""
    from jax._src import distributed

    return distributed.global_state.client


class _KeyValueStore:
    """A `liveness.Store` in JAX's key-value store, which process 0 hosts."""

    def write(self, key: str, value: str) -> None:
        _client().key_value_set(f'ggcf_jax/liveness/{key}', value, allow_overwrite=True)

    def read(self) -> dict[str, str]:
        entries = _client().key_value_dir_get('ggcf_jax/liveness/')
        return {key.rsplit('/', 1)[-1]: value for key, value in entries}


def _fail(error: BaseException, launch: Launch, monitor: LivenessMonitor) -> None:
    """Ends this process because of an exception, and the others by notifying them."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        # Perhaps only because another process is gone: give the monitor the time to find out.
        time.sleep(launch.peer_timeout + 3 * monitor.interval)
    code, line = 1, f'{type(error).__name__}: {error}'
    if isinstance(error, InputError):
        code, line = 2, str(error)
    elif isinstance(error, Interrupted):
        code, line = error.code, str(error)
    else:
        traceback.print_exception(error)
    monitor.stop()
    verdict = Verdict(code, f'process {jax.process_index()} ended: {line}')
    monitor.publish(verdict)
    _end(verdict)


def _end(verdict: Verdict) -> None:
    """Ends this process at once: a clean exit would wait for the other processes for ever."""
    print(f'error: {verdict.text}', file=sys.stderr)
    if is_process_zero() and _monitor is not None:
        time.sleep(3 * _monitor.interval)  # process 0 hosts the store, where the others read why
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(verdict.code)
