import numpy as np
import pytest

from experiments.common import cache


def test_arrays_are_computed_once_for_a_key(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {'x': np.arange(3) * len(calls)}

    path = tmp_path / 'folder' / 'kept.npz'
    for _ in range(2):
        np.testing.assert_array_equal(
            cache.load_or_compute(path, {'step': 1}, compute)['x'], [0, 1, 2]
        )
    np.testing.assert_array_equal(cache.load_or_compute(path, {'step': 2}, compute)['x'], [0, 2, 4])
    assert len(calls) == 2


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 cut off', b'no archive'])
def test_a_damaged_file_is_replaced(content, tmp_path):
    path = tmp_path / 'kept.npz'
    path.write_bytes(content)
    found = cache.load_or_compute(path, {}, lambda: {'x': np.ones(2)})
    assert found['x'].sum() == 2
    assert cache.load_or_compute(path, {}, lambda: 1 / 0)['x'].sum() == 2
