"""The paper's "Efficiency" paragraph, and what the engine executes."""

import numpy as np
import pytest

from experiments.tables import efficiency
from experiments.tables.efficiency import Module
from ggcf_jax.attention import graphs

GI = 2**30
SIX = graphs.parse('local:8,16,24,grid:8,16,24')


def test_numbers_of_the_paper():
    full = Module((graphs.Full(),), 128, 256)
    assert full.mean_degree == 32768
    assert full.pair_flops == 512 * GI
    assert full.projection_flops == 8 * GI
    # 520 with the projections; 63 without.
    assert Module(SIX[:3], 128, 256).mean_degree == pytest.approx(3328.3, abs=0.05)
    assert Module(SIX[3:], 128, 256).mean_degree == pytest.approx(697.4, abs=0.05)
    six = Module(SIX, 128, 256)
    assert six.pair_flops / GI == pytest.approx(62.9, abs=0.05)
    assert six.projection_flops == 38 * GI


def test_pairs_are_those_of_the_adjacency():
    heads = graphs.parse('local:2,grid:3,full,learned')
    pairs = sum(graph.num_edges(7, 10) for graph in heads)
    dense = [graphs.parse(text)[0].adjacency(7, 10) for text in ('local:2', 'grid:3', 'full')]
    assert pairs == sum(int(np.sum(e)) for e in dense) + 70**2
    assert Module(heads, 7, 10, key_channels=3, value_channels=5).pair_flops == 2 * 8 * pairs


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_executed_flops(platform):
    """Nothing is masked in FULL and GRID; LOCAL tiles see more than a query's window."""
    for text in ('full', 'grid:8', 'grid:7', 'learned'):
        module = Module(graphs.parse(text), 32, 64)
        executed = efficiency.executed_flops(module, platform)
        weights = 63 * 127 * 2 * (3 * 16 + 16) if text == 'learned' else 0  # two layers an offset
        assert executed == module.pair_flops + weights
    local = Module(SIX[:1], 128, 256)
    ratio = efficiency.executed_flops(local, platform) / local.pair_flops
    # 8 x 16 and 16 x 16 tiles: (8 + 16) (16 + 16) / 17^2 = 2.66, (16 + 16)^2 / 17^2 = 3.5 inside.
    assert {'cpu': 2.0, 'gpu': 2.5}[platform] < ratio < {'cpu': 2.66, 'gpu': 3.6}[platform]


def test_table():
    heads = graphs.parse('local:1,grid:2')
    module = Module(heads, 6, 8, channels=16, key_channels=4, value_channels=4)
    row = efficiency.table_row('local:1,grid:2', module, repeats=1)
    assert float(row['time ms']) >= 0 and row['paper'] == ''
    text = efficiency.markdown([row], 'title')
    assert text.splitlines()[4].startswith('| local:1,grid:2 |')
    assert 'The paper' not in text
