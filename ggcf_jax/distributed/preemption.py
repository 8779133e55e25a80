"""Stop requests, wherever they come: SIGTERM (preemption), Ctrl-C, SIGHUP and SIGUSR1.

SLURM and other launchers announce the end of a job by SIGUSR1, a terminal that is closed sends
SIGHUP. A signal that is ignored when the program starts, as SIGHUP under nohup, stays ignored.

What a signal does depends on where the program is, the innermost of these contexts:

- `stop_requests`: it is noted, for a loop that asks between two pieces of work;
- `interruptible`: there is nothing to lose, so the work is left at once by `Interrupted`. Where the
  main thread is inside of a compilation or another call that Python cannot interrupt, a second
  thread ends the process after `GRACE` seconds.

This file imports nothing but the standard library, so that `main.py` can call `install` before the
imports that take seconds.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
GRACE = 1.0  # seconds that the main thread has to leave what is interrupted


class Interrupted(BaseException):
    """The work was interrupted by a signal.

    As with `KeyboardInterrupt`, `except Exception` lets it pass.

    Attributes:
        signal: name of the signal, such as 'SIGTERM'.
        code: exit code that says so, if this ends the program.
    """

    def __init__(self, name: str, where: str = ''):
        """
        Args:
            name: name of the signal.
            where: what was interrupted and what that means, for the message.
        """
        super().__init__(f'stopped by {name} {where}'.rstrip())
        self.signal = name
        self.code = 128 + signal.Signals[name].value


class _Context:
    """A context that decides what a signal does.

    Attributes:
        note: whether a signal is only noted.
        where: what is interrupted, for the message.
        finish: what the second thread does before it ends the process.
        code: exit code then; None for that of the signal.
        arrived: names of the signals that were noted.
        left: set when the context is left.
    """

    def __init__(
        self,
        *,
        note: bool,
        where: str = '',
        finish: Callable[[], None] | None = None,
        code: int | None = None,
    ):
        self.note = note
        self.where = where
        self.finish = finish
        self.code = code
        self.arrived: list[str] = []
        self.left = threading.Event()


_contexts: list[_Context] = []  # the innermost last
_previous: dict[int, Any] = {}  # handlers that were there before ours
_wake: socket.socket | None = None
_ending = threading.Lock()  # held by the thread that ends the process, never released


def install() -> None:
    """Takes the signals over for the whole program, which a signal ends with one line."""
    _push(_Context(note=False))
    usual = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, *rest: Any) -> None:
        if not isinstance(error, Interrupted):
            usual(kind, error, *rest)
            return
        _end(error, error.code)  # the code of other exceptions is 1

    sys.excepthook = tell
    ignored = sys.unraisablehook

    def tell_ignored(unraisable: Any) -> None:
        # The signal came inside of a finalizer or a callback of the garbage collector, where
        # exceptions end: the second thread ends the process instead.
        if not isinstance(unraisable.exc_value, Interrupted):
            ignored(unraisable)

    sys.unraisablehook = tell_ignored


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
    """Records stop requests instead of ending the process, for a loop that polls for them.

    A second signal of the same kind has its usual effect, so that a second Ctrl-C stops at once.
    Outside of the main thread, where Python has no signals, nothing is recorded.

    Yields:
        Function that returns the name of the signal that arrived, or None.
    """
    context = _Context(note=True)
    with _pushed(context):
        yield lambda: context.arrived[0] if context.arrived else None


@contextlib.contextmanager
def interruptible(
    where: str, *, finish: Callable[[], None] | None = None, code: int | None = None
) -> Iterator[None]:
    """Leaves the body at once if a signal comes; does nothing where `install` was not called.

    Inside of `stop_requests` a signal that was noted before ends the body before it begins.

    Args:
        where: what is interrupted and what that means; completes "stopped by SIGTERM ...".
        finish: called by the second thread before it ends the process, which must be done within
            seconds.
        code: exit code if the second thread ends the process; None for 128 and the signal's number.

    Raises:
        Interrupted: a signal came.
    """
    if not _contexts:
        yield
        return
    noted = next((name for each in _contexts for name in each.arrived), None)
    if noted is not None:
        raise Interrupted(noted, where)
    with _pushed(_Context(note=False, where=where, finish=finish, code=code)):
        yield


@contextlib.contextmanager
def synchronized_stop_requests() -> Iterator[Callable[[], str | None]]:
    """As `stop_requests`, for a loop that all processes of a run go through together.

    A signal to any process stops all of them after the same call. With several processes JAX
    catches SIGTERM, and the other signals are forwarded as one.

    Yields:
        Function, to be called equally often by every process, that returns the name of the signal
        or None.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        with stop_requests() as stop_requested:
            yield stop_requested
        return
    calls = 0
    forwarded = [number for number in SIGNALS if number != signal.SIGTERM]
    previous = {number: signal.signal(number, _forward) for number in forwarded}

    def reached() -> str | None:
        nonlocal calls
        calls += 1
        return 'SIGTERM' if multihost_utils.reached_preemption_sync_point(calls) else None

    try:
        yield reached
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _forward(number: int, frame: types.FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _pushed(context: _Context) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _push(context)
    try:
        yield
    finally:
        context.left.set()
        _contexts.remove(context)
        if not _contexts:
            _uninstall()


def _push(context: _Context) -> None:
    _contexts.append(context)
    if len(_contexts) > 1:
        return
    global _wake
    _wake, heard = socket.socketpair()
    _wake.setblocking(False)
    # The interpreter writes the numbers of signals there even while the main thread is busy.
    signal.set_wakeup_fd(_wake.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard,), name='signals', daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            _previous[number] = signal.signal(number, _handle)


def _uninstall() -> None:
    global _wake
    signal.set_wakeup_fd(-1)
    for number, handler in _previous.items():
        signal.signal(number, handler)
    _previous.clear()
    if _wake is not None:
        _wake.close()  # which ends the thread
        _wake = None


def _handle(number: int, frame: types.FrameType | None) -> None:
    """Runs in the main thread, between two operations of Python."""
    del frame
    name = signal.Signals(number).name
    for context in reversed(_contexts):
        if not context.note:
            raise Interrupted(name, context.where)
        if name not in context.arrived:
            context.arrived.append(name)
            return
    # A second signal where nothing but `stop_requests` is active: what it does elsewhere.
    signal.signal(number, _previous[number])
    signal.raise_signal(number)


def _watch(heard: socket.socket) -> None:
    """Ends the process if the main thread does not leave what a signal interrupts."""
    while numbers := heard.recv(64):
        context = _contexts[-1] if _contexts else None
        names = [signal.Signals(n).name for n in numbers if n in SIGNALS and n in _previous]
        if context is None or context.note or not names or context.left.wait(GRACE):
            continue
        try:
            if context.finish is not None:
                context.finish()
        finally:
            stopped = Interrupted(names[0], context.where)
            _end(stopped, stopped.code if context.code is None else context.code)
    heard.close()


def _end(stopped: Interrupted, code: int) -> None:
    """Ends the process with one line; the first thread that comes here does."""
    _ending.acquire()
    with contextlib.suppress(OSError, ValueError):
        print(stopped, file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)
