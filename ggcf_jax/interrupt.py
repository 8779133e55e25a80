"""Stopping in good order when the machine asks for it."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], str | None]]:
    """Turns SIGTERM and Ctrl-C into a question that the training loop asks after every step.

    A second signal of the same kind acts as if nothing was installed, for the impatient. With
    several processes a signal to any of them stops all after the same step; JAX catches SIGTERM
    then, and Ctrl-C is passed on as one.

    Yields:
        A function of the step that returns the name of the signal that arrived, or None.
    """
    if jax.process_count() > 1:
        previous = signal.signal(signal.SIGINT, _terminate)
        try:
            yield (
                lambda step: (
                    'SIGTERM' if multihost_utils.reached_preemption_sync_point(step) else None
                )
            )
        finally:
            signal.signal(signal.SIGINT, previous)
        return
    arrived: list[str] = []
    previous = {}

    def note(number, frame):
        del frame
        arrived.append(signal.Signals(number).name)
        signal.signal(number, previous[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, note)
    try:
        yield lambda step: arrived[0] if arrived else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _terminate(number, frame):
    del frame
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
