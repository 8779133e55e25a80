"""Which process holds up the others."""

import numpy as np
import pytest

from ggcf_jax.distributed import processes
from ggcf_jax.training import hosts


def _times(waited, seconds=1.0):
    return {'train/data_wait_sec': waited, 'train/step_sec': seconds}


def test_one_process_has_nobody_to_wait_for():
    assert hosts.HostWatch(['one']).row(_times(0.5)) == ({}, None)


@pytest.fixture
def three(monkeypatch):
    """A watch of the first of three processes; the others wait as the list says."""
    others = [0.01, 0.01]
    monkeypatch.setattr(processes, 'gathered', lambda own: np.array([own, *others], np.float32))
    return hosts.HostWatch(['one', 'two', 'three']), others


def test_the_slow_host_is_named_once(three):
    watch, others = three
    row, warning = watch.row(_times(0.02))
    assert list(row) == [f'hosts/{i}/data_wait_sec' for i in range(3)] and warning is None
    others[1] = 0.4
    row, warning = watch.row(_times(0.02))
    assert row['hosts/2/data_wait_sec'] == pytest.approx(0.4)
    assert warning.startswith('warning: process 2 on three waits 0.4 s')
    assert watch.row(_times(0.02))[1] is None
    others[0] = 0.8
    assert 'process 1 on two' in watch.row(_times(0.02))[1]


def test_before_a_step_was_timed_nobody_is_slow(three):
    watch, others = three
    others[0] = 9.0
    assert watch.row(_times(None, None))[1] is None
