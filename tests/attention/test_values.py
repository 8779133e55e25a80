"""The engine against the reference: values and gradients, all graphs, sizes, heads and dtypes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax import attention
from ggcf_jax.attention import Graph, Local, attend, block_sizes, graphs, target
from tests.attention.cases import (
    assert_close,
    every_graph,
    inputs,
    numbered,
    per_axis,
    slow,
    slow_cases,
    values_and_gradients,
    with_engine,
)

SMALL = dataclasses.replace(
    block_sizes.CPU,
    local=(3, 4),
    stack=3,
    queries=24,
    keys=40,
    whole_keys=0,
    whole_scores=0,
    scores=600,
)


def compare(graph, shape, rel, *, dtype=jnp.float32, v_heads=None, scale=1.0):
    q, k, v, weight = inputs(*shape, 8, 6, v_heads=v_heads, dtype=dtype)

    def run(implementation):
        def f(q, k, v, graph):
            return attend(q, k, v, graph, scale=scale, implementation=implementation)

        if jax.tree.leaves(graph):
            return values_and_gradients(f, weight, q, k, v, graph)
        return values_and_gradients(lambda q, k, v: f(q, k, v, graph), weight, q, k, v)

    actual, expected = run('auto'), run('reference')
    assert actual[0].dtype == dtype
    assert_close(actual, expected, rel)


SHAPES = [(1, 1, 1, 1), (2, 1, 7, 1), (1, 5, 3, 3), (2, 13, 17, 1)]


@pytest.mark.parametrize(
    ('graph', 'shape'),
    [
        *itertools.product(every_graph((3,)), SHAPES),
        *slow_cases(itertools.product(numbered((1, 30)), SHAPES)),
        # The kinds have all shapes; of their variants each has the largest and another one in turn.
        *slow_cases((graph, SHAPES[-1]) for graph in with_engine()),
        *slow_cases(zip(with_engine(), itertools.cycle(SHAPES[:-1]))),
    ],
    ids=str,
)
def test_engine_equals_reference(graph, shape):
    compare(graph, shape, 1e-5, scale=0.5)


@pytest.mark.slow
@pytest.mark.parametrize('graph', per_axis(), ids=str)
def test_numbers_per_axis(graph):
    compare(graph, (2, 13, 17, 1), 1e-5, scale=0.5)


_KINDS = [*every_graph((3,)), Local(2, border='shift')]


@pytest.mark.parametrize(
    ('graph', 'transpose_result'),
    [
        *((graph, True) for graph in _KINDS),
        *(pytest.param(graph, False, marks=pytest.mark.slow) for graph in _KINDS),
        *(pytest.param(graph, True, marks=pytest.mark.slow) for graph in with_engine()),
    ],
    ids=str,
)
def test_many_small_tiles(graph, transpose_result, monkeypatch):
    # Without, as on accelerators, where the last chunk of keys is padded.
    small = dataclasses.replace(
        SMALL, transpose_result=transpose_result, pad_keys=not transpose_result
    )
    monkeypatch.setattr(block_sizes, 'CPU', small)
    compare(graph, (1, 13, 11, 2), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    'text', ['local:8', 'local:8@2:shift', 'block:20+8', 'grid:4', 'full', 'learned']
)
def test_block_sizes_of_accelerators(text):
    graph = graphs.parse(text)[0]
    with target.tracing_for('gpu'):
        assert block_sizes.current(1) == block_sizes.ACCELERATOR
        # More than one tile of 16 x 16 and more than one chunk of 1024 queries and 2048 keys.
        compare(graph.bind(graph.init(jax.random.key(0))), (1, 50, 44, 1), 1e-5, scale=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('text', 'size'),
    # Of the full graph that is five chunks of 456 queries and three of 760, 760 and 755 keys.
    [('local:8', (48, 64)), ('grid:8', (48, 64)), ('full', (35, 65))],
    ids=str,
)
def test_large_maps(text, size):
    compare(graphs.parse(text)[0], (1, *size, 1), 1e-5, scale=0.5)


@pytest.mark.slow
@pytest.mark.parametrize('text', ['local:24', 'grid:24'])
def test_map_of_97_by_97(text):
    graph = graphs.parse(text)[0]
    q, k, v, _ = inputs(1, 97, 97, 1, 4, 4)
    run = jax.jit(attend, static_argnames='implementation')
    expected = run(q, k, v, graph, implementation='reference')
    assert_close(run(q, k, v, graph), expected, 1e-5)


@pytest.mark.parametrize('text', ['local:3', 'grid:4', *slow(['full', 'learned'])])
def test_bfloat16_and_one_shared_v(text):
    graph = graphs.parse(text)[0]
    if text == 'learned':
        graph = graph.bind(graph.init(jax.random.key(0)))
    compare(graph, (1, 9, 14, 3), 0.02, dtype=jnp.bfloat16, v_heads=1)
    compare(graph, (2, 9, 14, 3), 1e-5, v_heads=1)


def test_shared_v_equals_its_copies():
    q, k, v, _ = inputs(1, 6, 7, 3, 4, 5, v_heads=1)
    copies = jnp.broadcast_to(v, (1, 6, 7, 3, 5))
    for graph in graphs.parse('full,local:2,grid:3'):
        run = jax.jit(lambda *x, graph=graph: attend(*x, graph))
        assert_close(run(q, k, v), run(q, k, copies), 1e-6)


@dataclasses.dataclass(frozen=True)
class Diagonal(Graph):
    """A graph with nothing but adjacency, outside the package."""

    def adjacency(self, h, w):
        at = np.arange(h * w)
        return (at[:, None] - at[None]) % (w + 1) == 0


def test_a_new_graph_works_through_the_reference():
    q, k, v, _ = inputs(1, 4, 5, 2, 3, 3)
    resolution = attention.resolve_implementation(Diagonal())
    assert resolution.implementation == 'reference'
    assert set(resolution.reasons) == {'xla', 'cudnn', 'pallas'}
    o = attend(q, k, v, Diagonal(), keep=2)
    assert o.shape == v.shape
    i = 7
    j = np.flatnonzero(Diagonal().adjacency(4, 5)[i])
    flat = [np.asarray(x).reshape(20, 2, 3)[:, 1] for x in (q, k, v)]
    p = np.exp(flat[1][j] @ flat[0][i])
    whole = attend(q, k, v, Diagonal())
    expected = (p / p.sum()) @ flat[2][j]
    np.testing.assert_allclose(np.asarray(whole).reshape(20, 2, 3)[i, 1], expected, rtol=1e-5)
    with pytest.raises(ValueError, match='no engine'):
        attend(q, k, v, Diagonal(), implementation='xla')


def test_the_memory_of_the_reference_is_told_or_refused():
    x = jax.ShapeDtypeStruct((1, 4, 5, 2, 3), jnp.float32)

    def run(x, graph, **options):
        return jax.eval_shape(lambda x: attend(x, x, x, graph, **options), x)

    with pytest.warns(UserWarning, match=r'Diagonal has no engine: .* about 8.94e-06 GiB for the'):
        run(x, Diagonal())
    table = jnp.zeros((1, 9, 9))
    with pytest.warns(UserWarning, match='union has no engine for a bias: it attends through'):
        run(x, graphs.parse('local:1|row')[0], bias=table)
    many = jax.ShapeDtypeStruct((2, 32, 32, 1000, 1), jnp.float32)
    with pytest.raises(ValueError, match=r'about 23\.4 GiB for the 32 x 32 map: take a'):
        run(many, Diagonal())
    assert run(many, Diagonal(), implementation='reference').shape == many.shape


def test_resolve_implementation():
    for graph in graphs.parse('full,local:8,grid:8,learned,local:12&grid:4,row|column'):
        assert attention.resolve_implementation(graph).implementation == 'xla'
        named = attention.resolve_implementation(graph, implementation='reference')
        assert named == ('reference', {})
