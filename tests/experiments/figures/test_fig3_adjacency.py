import csv
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.figures import fig3_adjacency
from ggcf_jax.attention import graphs
from ggcf_jax.errors import InputError
from tests.helpers import save_untrained


@pytest.mark.parametrize('graph', graphs.parse('full,local:2,grid:3'))
def test_counts_are_those_of_the_matrix(graph):
    edges = np.asarray(graph.adjacency(5, 8))
    row = fig3_adjacency.count(graph, 5, 8)
    assert row.mean == edges.sum(1).mean() and row.largest == edges.sum(1).max()
    assert row.density == pytest.approx(edges.mean())


@pytest.mark.slow
def test_picture_and_tables(tmp_path, untrained_run):
    options = SimpleNamespace(
        workdir=None, heads='full,local:1,learned', map=(4, 6), matrix=True, out=tmp_path / 'heads'
    )
    fig3_adjacency.main(options)
    rows = list(csv.DictReader((tmp_path / 'heads' / 'adjacency.csv').open()))
    assert [row['graph'] for row in rows] == ['full', 'local:1', 'learned']
    text = (tmp_path / 'heads' / 'adjacency.md').read_text()
    assert '| FULL | 32768.0 | 300K |' in text
    assert '| {LOCAL, GRID}_{8,16,24} | 4025.8 | 0.5K |' in text
    assert (tmp_path / 'heads' / 'adjacency.png').stat().st_size > 3000
    run = SimpleNamespace(
        workdir=[str(untrained_run)], checkpoint='latest', map=(4, 6),
        matrix=False, out=tmp_path / 'run',
    )  # fmt: skip
    fig3_adjacency.main(run)
    rows = list(csv.DictReader((tmp_path / 'run' / 'adjacency.csv').open()))
    assert [row['graph'] for row in rows] == ['local:1', 'grid:2', 'learned']
    learned = fig3_adjacency.trained_heads([str(untrained_run)], 'latest')[2]
    assert np.asarray(learned.adjacency(2, 3)).shape == (6, 6)  # it has its parameters


@pytest.mark.slow
def test_heads_of_another_context_module(tmp_path, tiny_config):
    tiny_config.model.update_from_flattened_dict({'context': 'isa', 'isa.channels': 4})
    save_untrained(tiny_config, 11, tmp_path / 'isa')
    found = fig3_adjacency.trained_heads([str(tmp_path / 'isa')], 'latest')
    assert found == [graphs.Grid(3), graphs.Block(3)]


def test_mistakes(tmp_path, workdirs):
    with pytest.raises(InputError, match='more than 4096'):
        fig3_adjacency.draw(tmp_path / 'x.png', [graphs.Full()], 64, 65)
    with pytest.raises(InputError, match='--heads=ring:3'):
        fig3_adjacency.parse_heads('ring:3')
    with pytest.raises(InputError, match='Baseline has no heads'):
        fig3_adjacency.trained_heads([str(workdirs / 'none')], 'latest')
