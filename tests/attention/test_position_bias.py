"""A bias by offset: every engine against the definition, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ggcf_jax.attention import (
    Block,
    Column,
    Cross,
    Full,
    Grid,
    Learned,
    Local,
    Row,
    attend,
    attention_weights,
    block_sizes,
    position_bias,
)
from tests.attention.cases import assert_close, attending, inputs, slow_cases, values_and_gradients
from tests.attention.test_values import SMALL

GRAPHS = [
    *(Local(2), Grid((3, 2)), Block((3, 4), (1, 0)), Cross()),
    *(Local((1, 40)), Local(2, dilation=2), Local(1, border='shift'), Grid(1), Block(30)),
    *(Full(), Row(), Column()),
]
H, W = 9, 11


def table(graph, heads, *, more=1, seed=5):
    """A random table that reaches some steps further than the graph on the map."""
    rows, columns = (2 * (n + more) + 1 for n in position_bias.reach(graph, H, W))
    return jnp.asarray(
        np.random.default_rng(seed).standard_normal((heads, rows, columns)), jnp.float32
    )


def run(graph, implementation='auto', **options):
    return lambda q, k, v, bias: attend(
        q, k, v, graph, bias=bias, scale=0.6, implementation=implementation, **options
    )


@pytest.mark.parametrize(
    ('graph', 'heads'),
    [
        *((graph, 2) for graph in GRAPHS[:4]),
        *slow_cases((graph, 2) for graph in GRAPHS[4:]),
        (Local(2), 1),
        *slow_cases((graph, 1) for graph in (Grid((3, 2)), Full(), Cross())),
    ],
    ids=str,
)
def test_values_and_gradients(graph, heads):
    *arrays, weight = inputs(2, H, W, 2, 5, 4, v_heads=heads)
    found, expected = (
        values_and_gradients(run(graph, i), weight, *arrays, table(graph, heads))
        for i in ('xla', 'reference')
    )
    assert_close(found, expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('graph', [Local(2), Grid(2), Block(5), Full()], ids=str)
def test_many_small_tiles(graph, monkeypatch):
    monkeypatch.setattr(block_sizes, 'CPU', SMALL)
    *arrays, weight = inputs(2, H, W, 2, 5, 4)
    valid = jnp.arange(W) < jnp.array([W, 5])[:, None, None] + jnp.zeros((1, H, 1), int)
    found, expected = (
        values_and_gradients(run(graph, i, valid=valid), weight, *arrays, table(graph, 2))
        for i in ('xla', 'reference')
    )
    assert_close(found, expected, 1e-5)


def test_the_definition_by_hand():
    """Query (4, 5) of a window: each neighbour's score is moved by the entry of its offset."""
    q, k, v, _ = inputs(1, H, W, 1, 5, 4)
    bias = table(Local(1), 1, more=0)
    weights = np.asarray(attention_weights(q, k, Local(1), [[4, 5]], bias=bias))[0, 0, 0]
    q, k, bias = np.asarray(q)[0, 4, 5, 0], np.asarray(k)[0, :, :, 0], np.asarray(bias)[0]
    scores = {
        (y, x): k[y, x] @ q + bias[1 + 4 - y, 1 + 5 - x] for y in (3, 4, 5) for x in (4, 5, 6)
    }
    total = sum(np.exp(s) for s in scores.values())
    for (y, x), s in scores.items():
        np.testing.assert_allclose(weights[y, x], np.exp(s) / total, rtol=1e-5)
    whole = attend(*inputs(1, H, W, 1, 5, 4)[:3], Local(1), bias=jnp.asarray(bias)[None])
    expected = np.einsum('yx,yxc->c', weights, np.asarray(v)[0, :, :, 0])
    np.testing.assert_allclose(np.asarray(whole)[0, 4, 5, 0], expected, rtol=1e-4, atol=1e-6)


def test_a_learned_graph_is_full_with_a_bias():
    graph = Learned().bind(Learned().init(jax.random.key(0)))
    q, k, v, _ = inputs(1, H, W, 2, 5, 4)
    bias = graph.log_table(H, W)[None]
    assert_close(attend(q, k, v, Full(), bias=bias), attend(q, k, v, graph), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    'graph', [Local(3), Local(2, dilation=2), Grid((2, 3)), Block(4), Full(), Cross()], ids=str
)
def test_rows_over_devices(graph):
    mesh = jax.make_mesh((2, 4), ('data', 'space'), axis_types=(AxisType.Auto,) * 2)
    *arrays, weight = inputs(2, 8, W, 2, 4, 4)
    bias = table(graph, 2)
    expected = values_and_gradients(run(graph), weight, *arrays, bias)
    sharding = NamedSharding(mesh, PartitionSpec('data', 'space'))
    with jax.set_mesh(mesh):
        dealt = [jax.device_put(x, sharding) for x in arrays]
        assert_close(values_and_gradients(run(graph), weight, *dealt, bias), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('graph', [Local(2), Grid(3), Full()], ids=str)
def test_inside_shard_map(graph):
    """Replicated tables get the gradient of all devices, with the default check_vma."""
    mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    q, k, v, _ = inputs(2, H, W, 1, 4, 3)
    bias = table(graph, 1)

    def f(q, k, v, bias):
        o, pull = jax.vjp(run(graph), q, k, v, bias)
        return o, pull(jnp.cos(o))[3]

    own, whole = PartitionSpec('data'), PartitionSpec()
    per_device = jax.shard_map(
        f, mesh=mesh, in_specs=(own, own, own, whole), out_specs=(own, whole)
    )
    assert_close(jax.jit(per_device)(q, k, v, bias), jax.jit(f)(q, k, v, bias), 1e-5)


def test_pruned_by_the_affinity_alone():
    q, k, v, _ = inputs(1, H, W, 2, 5, 4)
    bias = 50 * table(Local(2), 2)
    at = np.array([[4, 5]])

    @jax.jit
    def run(q, k, bias):
        both = attention_weights(q, k, Local(2), at, bias=bias, keep=4)
        return both, attention_weights(q, k, Local(2), at, keep=4) > 0

    weights, kept = run(q, k, bias)
    assert not np.asarray(weights)[~np.asarray(kept)].any()
    o = attending(Local(2), bias=bias, keep=4, implementation='reference')(q, k, v)
    expected = jnp.einsum('bmkyx,byxkc->bmkc', weights, v)[0, 0]
    assert_close(o[0, 4, 5], expected, 1e-5)
    whole = attending(Local(2), bias=bias)(q, k, v)
    np.testing.assert_array_equal(attending(Local(2), bias=bias, keep=25)(q, k, v), whole)
    with pytest.raises(ValueError, match='Context Pruning with a bias has no engine'):
        attend(q, k, v, Local(2), bias=bias, keep=4)


@pytest.mark.parametrize(
    ('graph', 'bias', 'words'),
    [
        (Local(2), np.zeros((2, 5, 4), np.float32), r'must be \[1 or 2, 2 R \+ 1, 2 C \+ 1\]'),
        (Local(2), np.zeros((3, 5, 5), np.float32), 'for 2 heads'),
        (Local(2), np.zeros((2, 5, 5), int), 'bias must be floating point, not int64'),
        (Local(2), np.zeros((2, 3, 5), np.float32), r'local:2 on a map of 9 x 11: .*\[., 5, 5\]'),
        (Grid(3), np.zeros((1, 5, 5), np.float32), r'needs \[., 5, 7\] or more'),
        (Learned(), np.zeros((1, 17, 21), np.float32), 'learned has a bias of its own'),
    ],
)
def test_mistakes_are_named(graph, bias, words):
    q, k, v, _ = inputs(1, H, W, 2, 5, 4)
    with pytest.raises(ValueError, match=words):
        attend(q, k, v, graph, bias=bias)
