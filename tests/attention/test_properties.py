"""Properties that hold whatever the implementation, transformations, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.attention import attend, graphs
from ggcf_jax.attention.graphs import Full, Grid, Local
from tests.attention.cases import (
    assert_close,
    attending,
    every_graph,
    inputs,
    is_joined,
    numbered,
    slow,
    values_and_gradients,
)


@pytest.mark.parametrize('graph', [Local(13), Local(40), Grid(1)], ids=str)
def test_the_whole_map_is_full(graph):
    q, k, v, weight = inputs(1, 9, 13, 1, 8, 8)
    actual = values_and_gradients(lambda *x: attend(*x, graph), weight, q, k, v)
    assert_close(actual, values_and_gradients(lambda *x: attend(*x, Full()), weight, q, k, v), 1e-5)


def test_translation_equivariance_in_the_interior():
    q, k, v, _ = inputs(1, 20, 24, 1, 8, 8)
    graph = Local(3)
    run = jax.jit(lambda *arrays: attend(*arrays, graph))
    for y, x in ((5, 7), (1, 0)):
        there = run(*(jnp.roll(a, (y, x), (1, 2)) for a in (q, k, v)))
        here = jnp.roll(run(q, k, v), (y, x), (1, 2))
        s = graph.size
        inside = np.s_[:, y + s : 20 - s, x + s : 24 - s]
        assert_close(there[inside], here[inside], 1e-5)


@pytest.mark.parametrize('graph', every_graph((3,)), ids=str)
def test_heads_are_independent(graph):
    q, k, v, _ = inputs(2, 5, 9, 3, 4, 6)
    run = jax.jit(lambda q, k, v: attend(q, k, v, graph))
    order = jnp.array([2, 0, 1])
    permuted = run(*(x[:, :, :, order] for x in (q, k, v)))
    whole = run(q, k, v)
    assert_close(permuted, whole[:, :, :, order], 1e-6)
    one = jax.jit(lambda q, k, v: attend(q, k, v, graph))(*(x[:1, :, :, 1:2] for x in (q, k, v)))
    assert_close(one, whole[:1, :, :, 1:2], 1e-5)


@pytest.mark.parametrize('graph', every_graph((3,)), ids=str)
@pytest.mark.parametrize('options', [{}, *slow([{'keep': 2}])], ids=str)
def test_weights_sum_to_one(graph, options):
    q, k, v, _ = inputs(1, 7, 5, 2, 4, 3)
    o = jax.jit(lambda q, k, v: attend(q, k, v, graph, **options))(q, k, jnp.ones_like(v))
    np.testing.assert_allclose(o, 1, atol=1e-6)


@pytest.mark.parametrize('graph', [*every_graph((3,)), *slow(numbered((1,)))], ids=str)
def test_large_affinities_and_single_neighbours(graph):
    """q . k = +-1e4 in every mixture, and maps on which a query sees itself alone."""
    sign = jnp.asarray(np.random.default_rng(0).choice([-100.0, 100.0], (1, 6, 7, 1, 1)))
    v, weight = inputs(1, 6, 7, 1, 3, 3)[2:]
    o, gradients = values_and_gradients(
        lambda q, k, v: attend(q, k, v, graph), weight, sign, sign[:, ::-1], v
    )
    for x in (o, *gradients):
        assert np.isfinite(x).all()
    expected = attending(graph, implementation='reference')(sign, sign[:, ::-1], v)
    # These products are exact; sums of that size are rounded to steps of 1e-3.
    assert_close(o, expected, 2e-3 if is_joined(graph) else 1e-5)
    alone = [x[:, :1, :1] for x in (sign, sign, v)]
    assert_close(attending(graph)(*alone), alone[2], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('text', ['full', 'local:2', 'cross', 'local:2|row', 'grid:3|row'])
def test_large_affinities_are_as_good_as_float32_has_them(text):
    """Random ones near 1e4 that compete: joined parts lose no more than the products themselves."""
    (graph,) = graphs.parse(text)
    q, k, v, _ = inputs(1, 9, 11, 1, 64, 5)
    q, k = q * 50, k[:, :1, :1] * 50 + k * 0.003
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x), jnp.float64) for x in (q, k, v)]
        expected = attending(graph, implementation='reference')(*exact)
        assert 5e3 < np.abs(jnp.einsum('byxkc,byxkc->byxk', *exact[:2])).max() < 5e4
    dense, found = (
        np.abs(np.asarray(attending(graph, implementation=i)(q, k, v)) - expected).max()
        for i in ('reference', 'auto')
    )
    assert 1e-4 < found < 3 * dense < 1e-1


@pytest.mark.parametrize('graph', [Full(), Local(2), Grid(3)], ids=str)
def test_vmap_equals_a_loop(graph):
    q, k, v, weight = (jnp.stack([x, x[:, ::-1] * 0.5]) for x in inputs(1, 5, 9, 2, 4, 4))

    def f(q, k, v, weight):
        return values_and_gradients(lambda *x: attend(*x, graph), weight, q, k, v)

    actual = jax.vmap(f)(q, k, v, weight)
    loop = [f(*(x[i] for x in (q, k, v, weight))) for i in range(2)]
    assert_close(actual, jax.tree.map(lambda *x: jnp.stack(x), *loop), 1e-5)


@pytest.mark.parametrize('graph', [Full(), Local(2), Grid(3)], ids=str)
def test_checkpoint_changes_nothing(graph):
    q, k, v, weight = inputs(1, 5, 9, 1, 4, 4)
    plain = values_and_gradients(lambda *x: attend(*x, graph), weight, q, k, v)
    again = values_and_gradients(jax.checkpoint(lambda *x: attend(*x, graph)), weight, q, k, v)
    assert_close(again, plain, 1e-6)


def test_a_gradient_has_a_derivative():
    q, k, v, weight = inputs(1, 4, 5, 1, 3, 3)

    def product(implementation):
        def loss(q):
            return (
                jnp.sin(attend(q, k, v, Local(2), implementation=implementation)) * weight
            ).sum()

        return jax.jit(lambda q: jax.jvp(jax.grad(loss), (q,), (k,))[1])(q)

    assert_close(product('xla'), product('reference'), 1e-5)
    with pytest.raises(TypeError, match=r"reverse mode.*implementation='reference'"):
        jax.jvp(lambda q: attend(q, k, v, Local(2)), (q,), (k,))


@pytest.mark.slow
def test_graphs_pass_through_jit_as_arguments():
    q, k, v, _ = inputs(1, 4, 5, 1, 3, 3)
    run = jax.jit(attend)
    for graph in every_graph((3,)):
        assert_close(run(q, k, v, graph), attending(graph)(q, k, v), 1e-5)


ARRAY = np.zeros((1, 4, 5, 2, 3), np.float32)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'q': ARRAY[0]}, 'q must be .batch, height, width, heads, channels.'),
        ({'k': ARRAY[..., :2]}, 'q and k must have one shape'),
        ({'q': ARRAY[:, :3], 'k': ARRAY[:, :3]}, 'v must be'),
        ({'v': np.zeros((1, 4, 5, 3, 3), np.float32)}, 'heads or 1'),
        ({'v': ARRAY.astype(int)}, 'floating'),
        ({'q': ARRAY[:, :0], 'k': ARRAY[:, :0], 'v': ARRAY[:, :0]}, 'empty'),
        ({'keep': 0}, 'keep must be an integer of at least 1, not 0'),
        ({'keep': -3}, 'not -3'),
        ({'keep': 2.5}, 'not 2.5'),
        ({'drop_rate': 1.0}, r'drop_rate must lie in \[0, 1\), not 1.0'),
        ({'drop_rate': -0.1}, 'not -0.1'),
        ({'drop_rate': float('nan')}, 'not nan'),
        ({'keep': 3, 'drop_rate': 0.5}, 'not both'),
        ({'pruning': 'best', 'keep': 3}, "'best' is not one of"),
        ({'pruning': 'random', 'keep': 3}, 'key'),
        ({'pruning': 'random'}, 'needs keep or drop_rate'),
        ({'scale': float('inf')}, 'scale must be'),
        ({'scale': '1'}, 'scale must be'),
        ({'implementation': 'fast'}, "'fast' is not one of auto, reference, xla, cudnn, pallas"),
        ({'graph': 'local:8'}, 'is no graph'),
        ({'graph': graphs.Learned()}, 'no parameters'),
    ],
)
def test_bad_input_is_named(change, words):
    arguments = {'q': ARRAY, 'k': ARRAY, 'v': ARRAY, 'graph': Local(2)} | change
    with pytest.raises(ValueError, match=words):
        attend(**{n: jnp.asarray(x) if n in 'qkv' else x for n, x in arguments.items()})
