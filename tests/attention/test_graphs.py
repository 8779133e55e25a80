"""Graphs: definitions, counts, grammar."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.attention import graphs
from ggcf_jax.attention.graphs import Column, Full, Grid, Learned, Local, Row
from tests.attention.cases import every_graph

SIZES = ((1, 1), (1, 7), (5, 3), (13, 17))


def test_every_class_is_found():
    assert {type(g) for g in every_graph()} >= {Full, Local, Grid, Learned}


@pytest.mark.parametrize('graph', every_graph(), ids=str)
@pytest.mark.parametrize('size', SIZES)
def test_definition_holds(graph, size):
    h, w = size
    edges = np.asarray(graph.adjacency(h, w))
    assert edges.shape == (h * w, h * w)
    assert (edges >= 0).all() and (np.diag(edges) > 0).all(), 'self is always a neighbour'
    assert (edges > 0).sum() == graph.num_edges(h, w)
    assert (edges > 0).sum(1).max() == graph.max_degree(h, w)


@pytest.mark.parametrize('graph', every_graph(), ids=str)
def test_edges_depend_on_the_offset_alone(graph):
    small = np.asarray(graph.adjacency(4, 5)).reshape(4, 5, 4, 5)
    large = np.asarray(graph.adjacency(9, 8)).reshape(9, 8, 9, 8)
    np.testing.assert_allclose(small, large[3:7, 2:7, 3:7, 2:7], rtol=1e-6)


def test_local_and_grid_by_hand():
    local = np.asarray(Local(2).adjacency(1, 6)).astype(int)
    assert local[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert local[3].tolist() == [0, 1, 1, 1, 1, 1]
    grid = np.asarray(Grid(2).adjacency(3, 3)).astype(int)
    assert grid[0].reshape(3, 3).tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
    assert grid[4].reshape(3, 3).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_sizes_per_axis_by_hand():
    at = np.s_[3 * 8 + 4]  # row 3 and column 4 of a map of 6 x 8
    wide = np.asarray(Local((1, 2)).adjacency(6, 8))[at].reshape(6, 8)
    assert wide[2:5, 2:7].all() and wide.sum() == 15
    grid = np.asarray(Grid((2, 3)).adjacency(6, 8))[at].reshape(6, 8)
    assert np.argwhere(grid).tolist() == [[y, x] for y in (1, 3, 5) for x in (1, 4, 7)]
    row = np.asarray(Row().adjacency(6, 8))[at].reshape(6, 8)
    assert row[3].all() and row.sum() == 8
    column = np.asarray(Column().adjacency(6, 8))[at].reshape(6, 8)
    assert column[:, 4].all() and column.sum() == 6


def test_counts_of_the_paper():
    n = 128 * 256
    pairs = [g.num_edges(128, 256) / n for g in graphs.parse('local:8,16,24,grid:8,16,24')]
    assert sum(pairs[:3]) == pytest.approx(3328.3, abs=0.05)
    assert sum(pairs[3:]) == pytest.approx(697.4, abs=0.05)
    assert Full().num_edges(128, 256) == n * 32768


def test_parse_and_print():
    heads = graphs.parse('local:8,16,24,grid:8,16,24')
    assert heads == (Local(8), Local(16), Local(24), Grid(8), Grid(16), Grid(24))
    assert graphs.parse(' full , learned:32,8,learned') == (
        Full(), Learned(32), Learned(8), Learned(),
    )  # fmt: skip
    assert graphs.parse('local:4x12,0x3,grid:2x5,row,column') == (
        Local((4, 12)), Local((0, 3)), Grid((2, 5)), Row(), Column(),
    )  # fmt: skip
    assert graphs.parse('local:4x4') == (Local(4),)
    for text in ('full', 'local:8', 'local:4x12', 'grid:3', 'row', 'learned', 'learned:32'):
        assert str(graphs.parse(text)[0]) == text
    assert len(set(heads)) == 6


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('gird:8', "head 'gird:8' is not one of full, local:SIZE, grid:STRIDE, row"),
        ('local', "head 'local' is not one of"),
        ('full:3', "head 'full:3' is not one of"),
        ('full,3', "head '3' is not one of"),
        ('8,local:8', 'no kind before it'),
        ('local:0', 'at least 1'),
        ('local:-3', 'at least 1'),
        ('grid:2.5', 'whole number'),
        ('local:', 'whole number'),
        ('local:8,,grid:8', "head '' is not one of"),
        ('', 'heads are written like'),
        (8, 'heads are written like'),
    ],
)
def test_bad_heads_are_named(text, words):
    with pytest.raises(ValueError, match=words):
        graphs.parse(text)


@pytest.mark.parametrize('make', [Local, Grid])
@pytest.mark.parametrize('numbers', [(1,), (1, 2, 3), (1.0, 2), (True, 2), (-1, 2), (0, 0)])
def test_bad_numbers_per_axis_are_refused(make, numbers):
    with pytest.raises(ValueError, match='at least'):
        make(numbers)


@pytest.mark.parametrize('make', [Local, Grid, Learned])
@pytest.mark.parametrize('number', [0, -1, 2.0, True, None])
def test_bad_numbers_are_refused(make, number):
    with pytest.raises(ValueError, match='at least 1'):
        make(number)


def test_learned_starts_close_to_full_and_stays_positive():
    graph = Learned(8)
    assert hash(graph) == hash(Learned(8))
    bound = graph.bind(graph.init(jax.random.key(1)))
    assert np.allclose(bound.adjacency(9, 9), 1, atol=0.2)
    far_below = bound.bind(bound.params | {'b2': jnp.asarray(-200.0)})
    table = np.asarray(far_below.log_table(3, 3))
    assert np.isfinite(table).all()
    np.testing.assert_allclose(table, -200, atol=1)


def test_learned_without_parameters_says_so():
    with pytest.raises(ValueError, match='bind'):
        Learned().adjacency(3, 3)


def test_learned_matches_its_formula():
    graph = Learned(4)
    params = {k: np.asarray(x) for k, x in graph.init(jax.random.key(2)).items()}
    edges = np.asarray(graph.bind(params).adjacency(4, 6)).reshape(4, 6, 4, 6)
    dy, dx = (3 - 0) / 32, (1 - 5) / 32
    hidden = np.maximum(np.array([dy, dx, np.hypot(dy, dx)]) @ params['w1'] + params['b1'], 0)
    expected = np.log1p(np.exp(hidden @ params['w2'] + params['b2']))
    assert edges[3, 1, 0, 5] == pytest.approx(expected, rel=1e-5)
