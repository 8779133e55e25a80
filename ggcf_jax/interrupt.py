"""Stopping in good order when the machine asks for it."""

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
    """Turns SIGTERM and Ctrl-C into a question that the training loop asks between steps.

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
