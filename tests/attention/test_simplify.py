"""Simpler graphs in place of combined ones: the same edges."""

import itertools

import pytest

from ggcf_jax.attention import parse, simplify
from tests.attention.cases import adjacency, with_options

CASES = [
    ('local:12&grid:4', 'local:3@4'),
    ('local:13&grid:4', 'local:3@4'),
    ('local:12x5&grid:4x2', 'local:3x2@4x2'),
    ('local:2@3&local:5', 'local:1@3'),
    ('local:3@2&local:4@3', 'local:1@6'),
    ('grid:4&grid:6', 'grid:12'),
    ('grid:2&full', 'grid:2'),
    ('row&local:3', 'local:0x3'),
    ('row&column', 'block:1'),
    ('local:3&grid:4', 'block:1'),
    ('local:3&local:5x2', 'local:3x2'),
    ('local:3&block:1', 'block:1'),
    ('row&grid:3', 'row&grid:3'),
    ('block:4&block:8', 'block:4'),
    ('block:4+2&block:8', 'block:4+2&block:8'),
    ('local:3|local:5', 'local:5'),
    ('local:2@2|local:4', 'local:4'),
    ('grid:4|grid:2', 'grid:2'),
    ('row|column', 'cross'),
    ('row|local:3|column', 'cross|local:3'),
    ('cross|row', 'cross'),
    ('cross|local:0x4', 'cross'),
    ('cross&row', 'row'),
    ('full|cross', 'full'),
    ('block:4+1|block:8+5', 'block:8+5'),
    ('block:1|cross', 'cross'),
    ('local:3:shift|local:2', 'local:3:shift'),
    ('local:3:shift&local:2:shift', 'local:2:shift'),
    ('local:2@2:shift&grid:2', 'local:2@2:shift'),
    ('local:8|cross', 'local:8|cross'),
    ('(local:8|local:2)&grid:4', 'local:2@4'),
    ('(row|column)&row', 'row'),
]


@pytest.mark.parametrize(('text', 'simple'), CASES, ids=[text for text, _ in CASES])
def test_by_hand(text, simple):
    (graph,), (expected,) = parse(text), parse(simple)
    assert simplify(graph) == expected
    for h, w in ((7, 13), (1, 6), (14, 3)):
        assert (adjacency(graph, h, w) == adjacency(expected, h, w)).all()


def test_edges_stay_the_same():
    """All pairs of some graphs, on a map smaller than some of them and larger than others."""
    members = [
        *parse('full,row,column,cross,local:1,local:2x0,local:2@2,local:30,local:1:shift'),
        *parse('local:1@2:shift,grid:2,grid:2x3,block:1,block:2,block:4+2,block:3+1'),
    ]
    edges = {graph: adjacency(graph, 5, 6) for graph in members}
    for a, b in itertools.combinations(members, 2):
        for graph, expected in ((a | b, edges[a] | edges[b]), (a & b, edges[a] & edges[b])):
            assert (adjacency(simplify(graph), 5, 6) == expected).all(), str(graph)


@pytest.mark.parametrize('graph', with_options(), ids=str)
def test_what_is_simple_stays(graph):
    simple = simplify(graph)
    assert simplify(simple) == simple
    assert (adjacency(simple, 6, 5) == adjacency(graph, 6, 5)).all()
