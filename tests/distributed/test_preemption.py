"""What a signal does in each context, in a process of its own that knows nothing of JAX."""

import signal
import subprocess
import sys

import pytest

from ggcf_jax.distributed import preemption
from tests.helpers import ROOT

# A mutex that its holder locks again: the main thread waits outside of Python, for ever.
_DRIVER = """
import ctypes, os, signal, sys, threading
from ggcf_jax.distributed import preemption
preemption.GRACE = 60.0
stop = getattr(signal, sys.argv[1])
signal.signal(stop, signal.SIG_DFL)  # the test itself may ignore it

def stuck():
    threading.Timer(0.1, os.kill, (os.getpid(), stop)).start()
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)

"""


def _run(code: str, name: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', _DRIVER + code, name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize('name', [number.name for number in preemption.SIGNALS])
def test_a_program_ends_with_one_line_and_the_code_of_the_signal(name):
    done = _run(
        'preemption.install()\n'
        'try:\n'
        '    with preemption.interruptible("before the first step: nothing is lost"):\n'
        '        signal.raise_signal(stop)\n'
        'finally:\n'
        '    print("tidied up")\n',
        name,
    )
    assert done.stderr == f'stopped by {name} before the first step: nothing is lost\n'
    assert done.stdout == 'tidied up\n'
    assert done.returncode == 128 + signal.Signals[name].value


def test_a_signal_inside_of_the_garbage_collector_is_no_traceback():
    """JAX has a callback there; exceptions end in it, and Python prints them."""
    done = _run(
        'import gc, time\n'
        'preemption.GRACE = 0.2\n'
        'preemption.install()\n'
        'def called(phase, info):\n'
        '    if phase == "start": signal.raise_signal(stop); time.sleep(0)\n'
        'with preemption.interruptible("before the first step"):\n'
        '    gc.callbacks.append(called)\n'
        '    gc.collect()\n'
        '    gc.callbacks.clear()\n'
        '    time.sleep(30)\n',
        'SIGHUP',
    )
    assert done.stderr == 'stopped by SIGHUP before the first step\n'
    assert done.returncode == 129


def test_a_main_thread_that_is_stuck_outside_of_python_is_left_behind():
    done = _run(
        'preemption.GRACE = 0.2\n'
        'preemption.install()\n'
        'with preemption.stop_requests(), preemption.interruptible(\n'
        '    "during the evaluation", finish=lambda: print("saved"), code=0\n'
        '):\n'
        '    stuck()\n',
        'SIGUSR1',
    )
    assert (done.returncode, done.stdout) == (0, 'saved\n')
    assert done.stderr == 'stopped by SIGUSR1 during the evaluation\n'


def test_a_loop_is_told_and_a_second_signal_has_its_usual_effect():
    done = _run(
        'preemption.install()\n'
        'with preemption.stop_requests() as requested:\n'
        '    assert requested() is None\n'
        '    signal.raise_signal(stop)\n'
        '    print(requested())\n'
        '    try:\n'
        '        with preemption.interruptible("in between"): print("not reached")\n'
        '    except preemption.Interrupted as interrupted: print(interrupted)\n'
        '    signal.raise_signal(stop)\n'
        '    print("not reached")\n',
        'SIGINT',
    )
    assert done.stdout == 'SIGINT\nstopped by SIGINT in between\n'
    assert (done.returncode, done.stderr) == (130, 'stopped by SIGINT\n')


def test_an_ignored_signal_stays_ignored():
    """As SIGHUP under nohup."""
    done = _run(
        'signal.signal(stop, signal.SIG_IGN)\n'
        'preemption.install()\n'
        'with preemption.stop_requests() as requested:\n'
        '    signal.raise_signal(stop)\n'
        '    print(requested())\n',
        'SIGHUP',
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, 'None\n', '')


def test_handlers_of_others_come_back():
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with preemption.stop_requests() as requested, preemption.stop_requests() as inner:
        signal.raise_signal(signal.SIGUSR1)
        assert (inner(), requested()) == ('SIGUSR1', None)
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
    with preemption.interruptible('here'):  # nobody took the signals over
        assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
