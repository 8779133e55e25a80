"""Stopping in good order when the machine asks for it."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
    """Turns SIGTERM and Ctrl-C into a question that a loop of this process asks.

    A second signal of the same kind acts as if nothing was installed, for the impatient.

    Yields:
        A function that returns the name of the signal that arrived, or None.
    """
    arrived: list[str] = []
    previous = {}

    def note(number, frame):
        del frame
        arrived.append(signal.Signals(number).name)
        signal.signal(number, previous[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, note)
    try:
        yield lambda: arrived[0] if arrived else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def agreed_stop_requests() -> Iterator[Callable[[int], str | None]]:
    """As `stop_requests`, for a training loop that all processes are in.

    A signal to any of them stops all after the same step; JAX catches SIGTERM then, and Ctrl-C is
    passed on as one.

    Yields:
        A function of the step, asked after every one, that returns the name of the signal or None.
    """
    if jax.process_count() == 1:
        with stop_requests() as stop_requested:
            yield lambda step: stop_requested()
        return
    previous = signal.signal(signal.SIGINT, _terminate)
    try:
        yield (
            lambda step: 'SIGTERM' if multihost_utils.reached_preemption_sync_point(step) else None
        )
    finally:
        signal.signal(signal.SIGINT, previous)


def _terminate(number, frame):
    del frame
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
