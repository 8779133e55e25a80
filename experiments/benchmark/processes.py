"""Programs that are timed in turn, each in a process of its own.

In one process they share an allocator: the arrays of one come to lie in what the other gave back,
and neither has the memory that it would have by itself.
"""

import contextlib
import functools
import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from experiments.benchmark.interleaved import Call, Times, Turn, turn

_SECONDS = 1.0  # that a turn takes, about
_CALLS = (4, 50)  # that are timed in a turn, at least and at most


@contextlib.contextmanager
def turns(build: Callable[..., Mapping[str, Call]], *arguments: Any) -> Iterator[dict[str, Turn]]:
    """Starts a process that builds some calls and then waits for its turns.

    Args:
        build: builds the calls, by name; a function of a module.
        *arguments: its arguments, which can be pickled.

    Yields:
        Turns by name: each is a call that is not timed and 4 to 50 that are, about a second of
        them; before the first turn a call is timed to find how many.

    Raises:
        Exception: what building or a call raises in the process.
        ChildProcessError: the process ended without an answer.
    """
    context = multiprocessing.get_context('spawn')  # a fork would have this process's threads
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, build, arguments), daemon=True)
    process.start()
    there.close()  # so that the end of the process is the end of what can be received

    def run(name: str) -> Times:
        here.send(name)
        return _received(here, process)

    try:
        yield {name: functools.partial(run, name) for name in _received(here, process)}
    finally:
        here.close()
        process.join()


def _received(connection: Connection, process: BaseProcess) -> Any:
    try:
        found = connection.recv()
    except EOFError:
        process.join()
        raise ChildProcessError(
            f'the process that is timed ended with status {process.exitcode}'
        ) from None
    if isinstance(found, Exception):
        raise found
    return found


def _serve(
    connection: Connection, build: Callable[..., Mapping[str, Call]], arguments: tuple[Any, ...]
) -> None:
    """Runs in the process: answers each name with the times of its turn, until nobody asks."""
    calls = _outcome(build, *arguments)
    counts: dict[str, int] = {}

    def run(name: str) -> Times:
        if name not in counts:
            least, most = _CALLS
            counts[name] = min(max(round(_SECONDS / turn(calls[name]).wall), least), most)
        return turn(calls[name], counts[name])

    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send(calls if isinstance(calls, Exception) else list(calls))
        while True:
            connection.send(_outcome(run, connection.recv()))


def _outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, or the error that it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return error
