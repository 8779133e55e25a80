"""Dead and stuck processes, with a dictionary for the store that processes share."""

import json
import threading

import pytest

from ggcf_jax.distributed.liveness import LOST, LivenessMonitor, Verdict


class Dictionary(dict):
    write = dict.__setitem__

    def read(self):
        return dict(self)


def _monitors(count, ends=None):
    """One monitor per process: dead after 5 missed heartbeats, stuck after 10 without progress."""
    store = Dictionary()
    end = print if ends is None else ends.append
    return store, [
        LivenessMonitor(store, i, count, peer_timeout=10, stall_timeout=20, end=end)
        for i in range(count)
    ]


def _beat(monitors, times=1):
    """Every monitor sends a heartbeat; returns what the last one of each found."""
    for _ in range(times):
        verdicts = [monitor.beat() for monitor in monitors]
    return verdicts


def test_working_processes_are_left_alone():
    _, monitors = _monitors(3)
    for step in range(30):
        for monitor in monitors:
            monitor.report_progress(f'step {step}')
        assert _beat(monitors) == [None] * 3


def test_slow_start_is_no_stall():
    _, monitors = _monitors(2)
    assert _beat(monitors, 50) == [None] * 2


def test_dead_process_is_named_to_all():
    _, monitors = _monitors(3)
    for monitor in monitors:
        monitor.report_progress('step 7')
    _beat(monitors)
    assert _beat(monitors[:2], 5) == [None] * 2
    first, second = _beat(monitors[:2])
    assert first == second and first.code == LOST
    assert 'no heartbeat for 10 s from process 2 (host ' in first.text
    assert "at 'step 7'" in first.text and 'process 1' not in first.text


def test_process_that_never_came_is_dead():
    _, monitors = _monitors(2)
    verdicts = [monitors[0].beat() for _ in range(5)]
    assert verdicts[:4] == [None] * 4
    assert 'process 1' in verdicts[4].text


def test_pause_of_the_whole_machine_is_no_death():
    """Heartbeats are counted, not seconds: nobody sent any while everything stood still."""
    _, monitors = _monitors(2)
    _beat(monitors, 4)
    assert monitors[0].beat() is None  # the first to wake up
    assert _beat(monitors, 3) == [None] * 2


def test_stuck_process_is_the_one_that_is_behind():
    _, monitors = _monitors(3)
    for step in (1, 2):
        for monitor in monitors:
            monitor.report_progress(f'step {step}')
    for monitor in (monitors[0], monitors[2]):
        monitor.report_progress('step 3')
    assert _beat(monitors, 10) == [None] * 3
    first, second, third = _beat(monitors)
    assert first == second == third and first.code == LOST
    assert 'no progress for 20 s; stuck: process 1 (host ' in first.text
    assert "at 'step 2'" in first.text


def test_all_stuck_at_the_same_place():
    _, monitors = _monitors(2)
    for monitor in monitors:
        monitor.report_progress('step 1')
    assert _beat(monitors, 11)[0].text.endswith('stuck: all processes')


def test_first_verdict_wins():
    store, monitors = _monitors(2)
    monitors[1].publish(Verdict(2, 'process 1 ended: no such file'))
    monitors[0].publish(Verdict(1, 'process 0 ended: it was lost'))
    assert monitors[0].beat() == Verdict(2, 'process 1 ended: no such file')
    assert json.loads(store['verdict'])['code'] == 2


@pytest.mark.parametrize('stopped', [False, True])
def test_thread_ends_the_process_unless_stopped(stopped):
    store, _ = _monitors(2)
    ended = threading.Event()
    monitor = LivenessMonitor(
        store, 0, 2, peer_timeout=0.05, stall_timeout=9, end=lambda verdict: ended.set()
    )
    if stopped:
        monitor.stop()
    monitor.start()
    assert ended.wait(0.5 if stopped else 20) is not stopped
