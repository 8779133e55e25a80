import types

import pytest

from ggcf_jax.training import clock


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until a test moves it."""
    time = types.SimpleNamespace(seconds=0.0)
    time.perf_counter = lambda: time.seconds
    monkeypatch.setattr(clock, 'time', time)
    return time


def test_steps_waits_and_other_work(now):
    steps = clock.StepClock(1)
    for wait in (0.5, 1.5):
        with steps.waiting_for_data():
            now.seconds += wait
        now.seconds += 1  # the step
    now.seconds += 7  # an evaluation
    steps.leave_out(7)
    row = steps.row(3, batch_size=4)
    assert row == {
        'train/step_sec': 2.0,
        'train/data_wait_sec': 1.0,
        'train/images_per_sec': 2.0,
    }
    assert not clock.is_input_bound(row)
    with steps.waiting_for_data():
        now.seconds += 2
    now.seconds += 0.5
    row = steps.row(4, batch_size=4)  # a window of its own
    assert row['train/data_wait_sec'] == 2 and row['train/step_sec'] == 2.5
    assert clock.is_input_bound(row)


def test_no_step_has_no_times(now):
    row = clock.StepClock(5).row(5, batch_size=4)
    assert set(row.values()) == {None} and not clock.is_input_bound(row)


def test_the_host_waits_for_the_step_before(monkeypatch):
    waited = []

    class Copy:
        def __init__(self, number):
            self.number = number

        def block_until_ready(self):
            waited.append(self.number)

    monkeypatch.setattr(clock, 'jnp', types.SimpleNamespace(copy=Copy))
    steps = clock.StepClock(0)
    for number in (1, 2, 3):
        steps.keep_up(types.SimpleNamespace(step=number))
    assert waited == [1, 2]
