"""Single rows of the attention against the dense reference: every graph, pruned and not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.attention import attend, attention_weights, neighbor_mask
from ggcf_jax.attention.graphs import Full, Learned, Local
from tests.attention.cases import adjacency, every_graph, inputs
from tests.attention.test_values import Diagonal

H, W = 6, 9
# Corners, edges and the middle: every way in which a window is truncated.
POSITIONS = np.array([[0, 0], [0, 8], [5, 0], [5, 8], [3, 4], [2, 8], [3, 4]])
OPTIONS = (
    {},
    {'keep': 5},
    {'drop_rate': 0.7},
    {'keep': 4, 'pruning': 'random', 'key': jax.random.key(5)},
)


GRAPHS = [pytest.param(graph, id=str(graph)) for graph in every_graph((1, 3, 30))]
GRAPHS.append(pytest.param(Diagonal(), id='diagonal'))


def dense(q, k, graph, **options):
    """Every weight by the reference, whose v is the identity: [b, h*w, heads, h*w]."""
    v = jnp.broadcast_to(jnp.eye(H * W).reshape(1, H, W, 1, H * W), (len(q), H, W, 1, H * W))
    o = attend(q, k, v, graph, implementation='reference', **options)
    return o.reshape(len(q), H * W, q.shape[3], H * W)


@pytest.mark.slow
@pytest.mark.parametrize('graph', GRAPHS)
def test_rows_equal_the_dense_reference(graph):
    # Selecting knows nothing of the numbers of a graph.
    in_every_way = {str(g) for g in (*every_graph((3,)), Diagonal())}
    ways = OPTIONS if str(graph) in in_every_way else OPTIONS[:2]
    q, k, *_ = inputs(2, H, W, 2, 8, 8)

    @jax.jit
    def both(q, k):
        return [
            (
                dense(q, k, graph, scale=0.5, **options),
                attention_weights(q, k, graph, POSITIONS, scale=0.5, **options),
            )
            for options in ways
        ]

    for every, rows in both(q, k):
        expected = np.asarray(every)[:, POSITIONS @ (W, 1)]
        assert rows.shape == (2, len(POSITIONS), 2, H, W) and rows.dtype == jnp.float32
        np.testing.assert_allclose(rows.reshape(expected.shape), expected, atol=1e-6)
        assert ((np.asarray(rows) > 0).reshape(expected.shape) == (expected > 0)).all()


@pytest.mark.parametrize('graph', GRAPHS)
def test_neighbours_are_those_of_the_definition(graph):
    expected = adjacency(graph, H, W)[POSITIONS @ (W, 1)] > 0
    found = neighbor_mask(graph, POSITIONS, H, W)
    assert (np.asarray(found).reshape(expected.shape) == expected).all()
    unbound = Learned() if isinstance(graph, Learned) else graph
    assert (neighbor_mask(unbound, POSITIONS, H, W) == found).all()


def test_weights_far_below_one_do_not_underflow():
    graph = Learned(4)
    params = graph.init(jax.random.key(0)) | {'b2': jnp.asarray(-200.0)}
    q, k, *_ = inputs(1, H, W, 1, 4, 4)
    rows = attention_weights(q, k, graph.bind(params), POSITIONS)
    np.testing.assert_allclose(np.asarray(rows).sum((-1, -2)), 1, rtol=1e-5)


def test_memory_of_a_full_row_at_128_by_256_is_linear():
    shape = jax.ShapeDtypeStruct((1, 128, 256, 1, 8), jnp.float32)
    at = jax.ShapeDtypeStruct((5, 2), jnp.int32)
    for options in ({}, {'drop_rate': 0.5}):
        run = jax.jit(
            lambda q, k, at, options=options: attention_weights(q, k, Full(), at, **options)
        )
        memory = run.lower(shape, shape, at).compile().memory_analysis()
        # A few rows of 32,768 numbers and a copy of the keys; all pairs would be 4 GiB.
        assert memory.temp_size_in_bytes < 8 * 2**20


def test_mistakes_are_named():
    q, k, *_ = inputs(1, H, W, 1, 4, 4)
    with pytest.raises(ValueError, match=r'position \[6, 0\] lies outside the map of \(6, 9\)'):
        attention_weights(q, k, Local(2), [[0, 0], [6, 0]])
    with pytest.raises(ValueError, match=r'positions must be \[queries, 2\]'):
        attention_weights(q, k, Local(2), [0, 0])
    with pytest.raises(ValueError, match='bind'):
        attention_weights(q, k, Learned(), POSITIONS)
    with pytest.raises(ValueError, match='drop_rate'):
        attention_weights(q, k, Full(), POSITIONS, drop_rate=1.0)
