"""Programs that are timed in turn, each in a process of its own."""

import multiprocessing
import os
import pathlib
import time

import pytest

from experiments.benchmark import processes
from experiments.benchmark.interleaved import Call, Times, compare_turns


def _noting(file: pathlib.Path) -> dict[str, Call]:
    def note(word: str) -> None:
        with file.open('a') as lines:
            lines.write(f'{os.getpid()} {word}\n')

    def rest() -> None:
        note('other')
        time.sleep(0.09)

    return {'one': lambda: note('one'), 'other': rest}


def _faulty(kind: str) -> dict[str, Call]:
    if kind == 'build':
        raise ValueError('no such network')
    return {'raises': lambda: [][0], 'ends': lambda: os._exit(3)}


def test_calls_run_in_a_process_of_their_own(tmp_path):
    with processes.turns(_noting, tmp_path / 'lines') as turns:
        assert list(turns) == ['one', 'other']
        times = turns['other']()
        assert times.wall > 0 and times.processor >= 0
        turns['one']()
    pids, words = zip(*(line.split() for line in (tmp_path / 'lines').read_text().splitlines()))
    others = words.count('other')
    assert words == ('other',) * others + ('one',) * 53  # one is not timed, two find how many are
    assert 4 + 3 <= others <= 11 + 3  # as many as take a second, but no fewer than four
    assert len(set(pids)) == 1 and str(os.getpid()) not in pids
    assert not multiprocessing.active_children()


def test_errors_are_raised_here():
    with (
        pytest.raises(ValueError, match='no such network') as raised,
        processes.turns(_faulty, 'build'),
    ):
        pass
    assert 'in _faulty' in raised.value.__notes__[0]  # where in the other process
    with processes.turns(_faulty, '') as turns, pytest.raises(IndexError):
        turns['raises']()
    with processes.turns(_faulty, '') as turns, pytest.raises(ChildProcessError, match='status 3'):
        turns['ends']()
    assert not multiprocessing.active_children()


def test_turns_are_compared_round_by_round():
    order = []

    def program(name, walls):
        left = iter(walls)

        def turn():
            order.append(name)
            wall = next(left)
            return Times(wall, 2 * wall)

        return turn

    ratio = compare_turns(program('a', [0.3, 0.1, 0.2]), program('b', [0.1, 0.1, 0.4]), 3)
    assert order == ['b', 'a', 'a', 'b', 'b', 'a']
    assert ratio.milliseconds == pytest.approx((100, 100))
    assert ratio.least == pytest.approx((200, 200))
    assert ratio.wall == ratio.processor == pytest.approx(1)  # of 3, 1 and 0.5
