"""Dead and stuck processes, with a dictionary for the store that processes share."""

import json
import threading

import pytest

from ggcf_jax.distributed.liveness import LOST, Verdict, Watch


class Dictionary(dict):
    write = dict.__setitem__

    def read(self):
        return dict(self)


def _watches(count, ends=None):
    """One watch a process: dead after 5 looks without a sign, stuck after 10 without progress."""
    board = Dictionary()
    end = print if ends is None else ends.append
    return board, [
        Watch(board, i, count, peer_timeout=10, stall_timeout=20, end=end) for i in range(count)
    ]


def _look(watches, times=1):
    """Every watch looks; what the last look of each said."""
    for _ in range(times):
        said = [watch.look() for watch in watches]
    return said


def test_working_processes_are_left_alone():
    _, watches = _watches(3)
    for step in range(30):
        for watch in watches:
            watch.progress(f'step {step}')
        assert _look(watches) == [None] * 3


def test_slow_start_is_no_stall():
    _, watches = _watches(2)
    assert _look(watches, 50) == [None] * 2


def test_dead_process_is_named_to_all():
    _, watches = _watches(3)
    for watch in watches:
        watch.progress('step 7')
    _look(watches)
    assert _look(watches[:2], 5) == [None] * 2
    first, second = _look(watches[:2])
    assert first == second and first.code == LOST
    assert 'no sign of life for 10 s from process 2 (host ' in first.text
    assert "at 'step 7'" in first.text and 'process 1' not in first.text


def test_process_that_never_came_is_dead():
    _, watches = _watches(2)
    verdicts = [watches[0].look() for _ in range(5)]
    assert verdicts[:4] == [None] * 4
    assert 'process 1' in verdicts[4].text


def test_pause_of_the_whole_machine_is_no_death():
    """Looks are counted, not seconds: nobody looked while everything stood still."""
    _, watches = _watches(2)
    _look(watches, 4)
    assert watches[0].look() is None  # the first to wake up
    assert _look(watches, 3) == [None] * 2


def test_stuck_process_is_the_one_that_is_behind():
    _, watches = _watches(3)
    for step in (1, 2):
        for watch in watches:
            watch.progress(f'step {step}')
    for watch in (watches[0], watches[2]):
        watch.progress('step 3')
    assert _look(watches, 10) == [None] * 3
    first, second, third = _look(watches)
    assert first == second == third and first.code == LOST
    assert 'no progress for 20 s: stuck is process 1 (host ' in first.text
    assert "at 'step 2'" in first.text


def test_all_stuck_at_the_same_place():
    _, watches = _watches(2)
    for watch in watches:
        watch.progress('step 1')
    assert _look(watches, 11)[0].text.endswith('stuck is all processes')


def test_first_word_stands():
    board, watches = _watches(2)
    watches[1].publish(Verdict(2, 'process 1 ended: no such file'))
    watches[0].publish(Verdict(1, 'process 0 ended: it was lost'))
    assert watches[0].look() == Verdict(2, 'process 1 ended: no such file')
    assert json.loads(board['verdict'])['code'] == 2


@pytest.mark.parametrize('stopped', [False, True])
def test_thread_ends_the_process_unless_stopped(stopped):
    board, _ = _watches(2)
    ended = threading.Event()
    watch = Watch(board, 0, 2, peer_timeout=0.05, stall_timeout=9, end=lambda verdict: ended.set())
    if stopped:
        watch.stop()
    watch.start()
    assert ended.wait(0.5 if stopped else 20) is not stopped
