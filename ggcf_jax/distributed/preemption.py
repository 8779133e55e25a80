"""Graceful shutdown on SIGTERM (preemption) and Ctrl-C."""

import contextlib
import os
import signal
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
    """Records SIGTERM and Ctrl-C instead of ending the process, for a loop that polls for them.

    A second signal of the same kind has its usual effect, so that a second Ctrl-C stops at once.

    Yields:
        Function that returns the name of the signal that arrived, or None.
    """
    arrived: list[str] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: types.FrameType | None) -> None:
        del frame
        arrived.append(signal.Signals(number).name)
        signal.signal(number, previous[number])

    for caught in (signal.SIGTERM, signal.SIGINT):
        previous[caught] = signal.signal(caught, note)
    try:
        yield lambda: arrived[0] if arrived else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def synchronized_stop_requests() -> Iterator[Callable[[int], str | None]]:
    """As `stop_requests`, for a training loop that all processes run.

    A signal to any process stops all of them after the same step. With several processes JAX
    catches SIGTERM, and Ctrl-C is forwarded as one.

    Yields:
        Function of the step, to be called after every step, that returns the name of the signal or
        None.
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


def _terminate(number: int, frame: types.FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
