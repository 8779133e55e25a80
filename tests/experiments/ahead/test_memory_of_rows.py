"""Rows of an image sharded over devices, with CPU devices in place of the target's."""

import jax
import pytest

from experiments.ahead import accelerators, collectives, memory_of_rows
from ggcf_jax.errors import InputError
from tests.helpers import TINY_MODEL, load_config


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(accelerators, 'devices', lambda target: jax.devices()[: target.devices])
    config = load_config('camvid')
    config.update_from_flattened_dict(TINY_MODEL)
    return config


@pytest.mark.slow
def test_a_share_of_the_rows_needs_less_and_only_heads_gather(config):
    # 64 rows of features, at least 16 for each device: more than any convolution reaches. One CPU
    # device alone would compute in forms of its own, which need another amount.
    programs = {n: memory_of_rows.compile_space(config, n, (512, 64), 11) for n in (1, 2, 4)}
    assert programs[1].collectives == ()
    assert 0.4 < programs[4].temporary / programs[2].temporary < 0.75
    found = programs[2].collectives
    assert collectives.gathers(found) == []
    assert {c.kind for c in found if collectives.is_in_head(c)} >= {'all-to-all'}  # GRID
    cells = [cell.strip() for cell in memory_of_rows.table_row(2, programs[2]).split('|')]
    assert cells[1:3] == ['2', f'{programs[2].temporary / 2**30:.2f}']
    assert 'all-to-all' in cells[4] and 'collective-permute' in cells[5]


def test_number_of_devices_that_there_is_no_target_of(config):
    with pytest.raises(InputError, match=r'--spaces=3 is not one of 1, 2, 4, 8'):
        memory_of_rows.compile_space(config, 3, (256, 64), 11)
