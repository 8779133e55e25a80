"""Graphs: definitions, counts, grammar."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.attention import graphs
from ggcf_jax.attention.graphs import (
    Block,
    Column,
    Cross,
    Full,
    Grid,
    Intersection,
    Learned,
    Local,
    Row,
    Union,
)
from tests.attention.cases import adjacency, every_graph, with_options

SIZES = ((1, 1), (1, 7), (5, 3), (13, 17))


def test_every_class_is_found():
    assert {type(g) for g in every_graph()} >= {Full, Local, Grid, Learned}


@pytest.mark.parametrize('graph', [*every_graph(), *with_options()], ids=str)
@pytest.mark.parametrize('size', SIZES)
def test_definition_holds(graph, size):
    h, w = size
    y, x = h // 2, w - 1
    # Not by `adjacency`: operations of a size are the same for many graphs, programs are not.
    edges = np.asarray(graph.adjacency(h, w))
    assert edges.shape == (h * w, h * w)
    assert (edges >= 0).all() and (np.diag(edges) > 0).all(), 'self is always a neighbour'
    assert graph.degrees(h, w).tolist() == (edges > 0).sum(1).reshape(h, w).tolist()
    assert (edges > 0).sum() == graph.num_edges(h, w)
    assert (edges > 0).sum(1).max() == graph.max_degree(h, w)
    np.testing.assert_allclose(graph.edges_of(y, x, h, w).reshape(-1), edges[y * w + x], rtol=1e-6)


def window(i, n, size, dilation, border):
    """The neighbours of i on an axis, from the definition of a local graph."""
    members = list(range(i % dilation, n, dilation))
    at, whole = members.index(i), 2 * size + 1
    if border == 'truncate':
        return set(members[max(0, at - size) : at + size + 1])
    best = min(range(max(1, len(members) - whole + 1)), key=lambda start: abs(start + size - at))
    return set(members[best : best + whole])


def block(i, n, size, shift):
    """The neighbours of i on an axis, from the definition of a block graph."""
    starts = [start for start in range(shift % size - size, n, size) if start <= i]
    return {j for j in range(starts[-1], starts[-1] + size) if 0 <= j < n}


AXES = [
    ('local:1@3', [(window, 1, 3, 'truncate')] * 2),
    ('local:2x1@2x5', [(window, 2, 2, 'truncate'), (window, 1, 5, 'truncate')]),
    ('local:30@2', [(window, 30, 2, 'truncate')] * 2),
    ('local:2:shift', [(window, 2, 1, 'shift')] * 2),
    ('local:1x2@2x3:shift', [(window, 1, 2, 'shift'), (window, 2, 3, 'shift')]),
    ('local:30@4:shift', [(window, 30, 4, 'shift')] * 2),
    ('block:4', [(block, 4, 0)] * 2),
    ('block:4+3', [(block, 4, 3)] * 2),
    ('block:3x5+1x2', [(block, 3, 1), (block, 5, 2)]),
    ('block:40+9', [(block, 40, 9)] * 2),
]


@pytest.mark.parametrize(('text', 'axes'), AXES, ids=[text for text, _ in AXES])
@pytest.mark.parametrize('size', SIZES)
def test_windows_and_blocks_by_enumeration(text, axes, size):
    (graph,) = graphs.parse(text)
    h, w = size
    edges = adjacency(graph, h, w).reshape(h, w, h, w)
    rows, columns = (
        [neighbours(i, n, *numbers) for i in range(n)]
        for n, (neighbours, *numbers) in zip(size, axes)
    )
    for y, x in np.ndindex(h, w):
        expected = {(a, b) for a in rows[y] for b in columns[x]}
        assert set(map(tuple, np.argwhere(edges[y, x]).tolist())) == expected


def test_shifted_borders_keep_the_number_of_neighbours():
    assert set(Local(2, border='shift').degrees(5, 9).flat) == {25}
    assert set(Local(2, border='shift').degrees(4, 9).flat) == {20}
    # Rows: two residue classes of 7 and 6; both have 5.
    assert set(Local((2, 1), 2, 'shift').degrees(13, 6).flat) == {15}
    inside = np.s_[2:-2, 2:-2]
    whole, cut = (
        adjacency(Local(2, border=b), 7, 9).reshape(7, 9, 7, 9) for b in ('shift', 'truncate')
    )
    assert (whole[inside] == cut[inside]).all() and (cut <= whole).all()


def test_shifted_blocks_are_those_of_swin():
    """The mask of cyclically shifted windows (Swin), where the size divides the map."""
    h, w, size, shift = 8, 12, 4, 2
    region = np.zeros((h, w), int)
    slices = (np.s_[:-size], np.s_[-size:-shift], np.s_[-shift:])
    for number, (rows, columns) in enumerate((a, b) for a in slices for b in slices):
        region[rows, columns] = number
    y, x = np.divmod(np.arange(h * w), w)
    rolled = (y - shift) % h, (x - shift) % w
    names = np.stack([rolled[0] // size, rolled[1] // size, region[rolled]])
    expected = (names[:, :, None] == names[:, None]).all(0)
    assert (adjacency(Block(size, shift), h, w) == expected).all()


def test_cross_by_hand():
    cross = adjacency(Cross(), 6, 8)[3 * 8 + 4].reshape(6, 8)
    assert cross[3].all() and cross[:, 4].all() and cross.sum() == 13
    assert Cross().num_edges(6, 8) == 48 * 13


def test_combinations_are_those_of_their_members():
    a, b, c = Local(2), Cross(), Grid(2)
    of = [adjacency(graph, 7, 9) for graph in (a, b, c)]
    assert (adjacency((a | b), 7, 9) == of[0] | of[1]).all()
    assert (adjacency((a & c), 7, 9) == of[0] & of[2]).all()
    assert (adjacency(((a | b) & c), 7, 9) == (of[0] | of[1]) & of[2]).all()
    assert a | b | c == Union((a, b, c)) and a & b & c == Intersection((a, b, c))
    assert a | a == a and (a | b) | a == a | b
    assert len({a | b, Local(2) | Cross(), a & b}) == 2
    with pytest.raises(TypeError):
        a | 'local:2'


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda: Local(2) | Learned(), 'union is of graphs without weights, not of learned'),
        (lambda: Intersection((Full(),)), 'intersection is of two different graphs or more'),
        (lambda: Union((Full(), Full())), 'union is of two different graphs or more'),
        (lambda: Union((Full(), 'row')), "union is of graphs, not of 'row'"),
        (lambda: (Weighted() & Local(1)).adjacency(2, 3), 'graphs without weights'),
    ],
)
def test_what_does_not_combine(make, words):
    with pytest.raises(ValueError, match=words):
        make()


class Weighted(graphs.OffsetGraph):
    """Weights that are not trained."""

    def edges(self, dy, dx):
        return jnp.exp(-(dy**2) - dx**2.0)


def test_counting_a_large_map_needs_no_pairs():
    assert Local(8, 4, 'shift').num_edges(512, 1024) == 512 * 1024 * 17**2
    assert (Block(64) | Cross()).max_degree(512, 1024) == 64 * 64 + 512 + 1024 - 2 * 64


@pytest.mark.parametrize('graph', [g for g in every_graph() if not isinstance(g, Block)], ids=str)
def test_edges_depend_on_the_offset_alone(graph):
    small = adjacency(graph, 4, 5).reshape(4, 5, 4, 5)
    large = adjacency(graph, 9, 8).reshape(9, 8, 9, 8)
    np.testing.assert_allclose(small, large[3:7, 2:7, 3:7, 2:7], rtol=1e-6)


def test_local_and_grid_by_hand():
    local = adjacency(Local(2), 1, 6).astype(int)
    assert local[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert local[3].tolist() == [0, 1, 1, 1, 1, 1]
    grid = adjacency(Grid(2), 3, 3).astype(int)
    assert grid[0].reshape(3, 3).tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
    assert grid[4].reshape(3, 3).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_sizes_per_axis_by_hand():
    at = np.s_[3 * 8 + 4]  # row 3 and column 4 of a map of 6 x 8
    wide = adjacency(Local((1, 2)), 6, 8)[at].reshape(6, 8)
    assert wide[2:5, 2:7].all() and wide.sum() == 15
    grid = adjacency(Grid((2, 3)), 6, 8)[at].reshape(6, 8)
    assert np.argwhere(grid).tolist() == [[y, x] for y in (1, 3, 5) for x in (1, 4, 7)]
    row = adjacency(Row(), 6, 8)[at].reshape(6, 8)
    assert row[3].all() and row.sum() == 8
    column = adjacency(Column(), 6, 8)[at].reshape(6, 8)
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
    assert graphs.parse('local:3@4,5,2x3@1x2:shift,block:8+12') == (
        Local(3, 4), Local(5), Local((2, 3), (1, 2), 'shift'), Block(8, 4),
    )  # fmt: skip
    assert graphs.parse('local:2 | row & grid:2, cross') == (
        Union((Local(2), Intersection((Row(), Grid(2))))), Cross(),
    )  # fmt: skip
    assert graphs.parse('(local:2)')[0] == Local(2)
    for text in (
        'full', 'local:8', 'local:4x12', 'grid:3', 'row', 'learned', 'learned:32', 'cross',
        *map(str, with_options()),
    ):  # fmt: skip
        assert str(graphs.parse(text)[0]) == text
    assert len(set(heads)) == 6


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (
            'gird:8',
            r"head 'gird:8' is not one of full, local:SIZE\[@DILATION\]\[:BORDER\], grid:STR",
        ),
        ('local', "head 'local' is not one of"),
        ('full:3', "head 'full:3' is not one of"),
        ('full,3', "head '3' is not one of"),
        ('8,local:8', 'no kind before it'),
        ('local:0', 'at least 1'),
        ('local:-3', 'at least 1'),
        ('grid:2.5', 'whole number'),
        ('local:', 'whole number'),
        ('local:8,,grid:8', "head '' is not one of"),
        ('local:3@', 'whole number'),
        ('local:3@0', 'dilation of a local graph must be an integer of at least 1'),
        ('local:3:wrap', "border of a local graph is one of truncate, shift, not 'wrap'"),
        ('local:3+2', r'whole number .* local:SIZE\[@DILATION\]'),
        ('block', r'block:SIZE\[\+SHIFT\]'),
        ('block:3+x', "shift of a block graph must be .* not 'x'"),
        ('cross:3', "head 'cross:3' is not one of"),
        ('union', "head 'union' is not one of"),
        ('local:8|', 'combines graphs with'),
        ('(local:8|row', 'combines graphs with'),
        ('local:8)&row', 'combines graphs with'),
        ('local:8&&row', 'combines graphs with'),
        ('local:8|crosses', "head 'crosses' is not one of"),
        ('local:8|learned', 'graphs without weights'),
        ('local:8|local:8', 'two different graphs'),
        ('local:8|cross,16', 'no kind before it'),
        ('', 'heads are written like'),
        (8, 'heads are written like'),
    ],
)
def test_bad_heads_are_named(text, words):
    with pytest.raises(ValueError, match=words):
        graphs.parse(text)


@pytest.mark.parametrize('make', [Local, Grid, Block, lambda n: Local(1, n)])
@pytest.mark.parametrize('numbers', [(1,), (1, 2, 3), (1.0, 2), (True, 2), (-1, 2), (0, 0)])
def test_bad_numbers_per_axis_are_refused(make, numbers):
    with pytest.raises(ValueError, match='at least'):
        make(numbers)


@pytest.mark.parametrize('make', [Local, Grid, Learned, Block, lambda n: Local(1, n)])
@pytest.mark.parametrize('number', [0, -1, 2.0, True, None])
def test_bad_numbers_are_refused(make, number):
    with pytest.raises(ValueError, match='at least 1'):
        make(number)


@pytest.mark.parametrize('shift', [-1, 2.0, (1, 2, 3), (1, -1), True, None])
def test_bad_shifts_are_refused(shift):
    with pytest.raises(ValueError, match='the shift of a block graph must be'):
        Block(4, shift)


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
    edges = adjacency(graph.bind(params), 4, 6).reshape(4, 6, 4, 6)
    dy, dx = (3 - 0) / 32, (1 - 5) / 32
    hidden = np.maximum(np.array([dy, dx, np.hypot(dy, dx)]) @ params['w1'] + params['b1'], 0)
    expected = np.log1p(np.exp(hidden @ params['w2'] + params['b2']))
    assert edges[3, 1, 0, 5] == pytest.approx(expected, rel=1e-5)
