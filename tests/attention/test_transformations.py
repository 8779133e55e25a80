"""The attention wherever JAX works: x64, every kind of mesh, shard_map, export, transforms."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ggcf_jax.attention import Full, Grid, Local, attend, attention_weights, parse
from tests.attention.cases import assert_close, every_graph, inputs, is_joined

GRAPHS = [*every_graph((3,)), Local(1, 2, 'shift'), *parse('local:1|grid:3,local:1:shift|row')]
AT = np.array([[0, 1], [3, 3]])  # positions of queries
VALID = np.ones((2, 6, 7), bool)
VALID[0, 4:], VALID[1, :, 3:] = False, False
PRUNED = [{'keep': 3}, {'drop_rate': 0.5, 'pruning': 'random', 'key': jax.random.key(1)}]


def forward_and_backward(graph, implementation='auto'):
    """(q, k, v, parameters of the graph, valid) -> output and the gradients of all of them."""

    def f(q, k, v, params, valid=None):
        bound = graph.bind(params) if params else graph
        options = {'valid': valid, 'implementation': implementation}
        o, pull = jax.vjp(lambda q, k, v, g: attend(q, k, v, g, **options), q, k, v, bound)
        return o, pull(jnp.cos(o))

    return f


def params_of(graph):
    return dict(graph.params) if graph.trainable else {}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ('graph', 'dtype'),
    [
        *((graph, dtype) for graph in GRAPHS for dtype in ('float64', 'float32')),
        (Local(3), 'bfloat16'),
        (Local(3), 'float16'),
    ],
    ids=str,
)
def test_with_x64_on(x64, graph, dtype):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 6, 7, 2, 4)), dtype) for _ in range(3))
    options = PRUNED[dtype != 'float64']  # the largest affinities, or random ones

    @jax.jit
    def run(q, k, v, params):
        both = ('auto', 'reference')
        whole = [forward_and_backward(graph, i)(q, k, v, params) for i in both]
        pruned = [attend(q, k, v, graph, implementation=i, **options) for i in both]
        return whole, pruned, attention_weights(q, k, graph, AT, keep=4)

    ((o, gradients), expected), pruned, weights = run(q, k, v, params_of(graph))
    assert o.dtype == dtype and all(x.dtype == dtype for x in gradients[:3])
    # Learned graphs have float32 parameters.
    exact = 1e-13 if not graph.trainable else 1e-6
    rel = {'float64': exact, 'float32': 1e-6}.get(dtype, 2e-2)
    assert_close(o, expected[0], rel)
    assert_close(*pruned, rel)
    rel = {'float64': 10 * exact, 'float32': 1e-5}.get(dtype, 5e-2)
    assert_close(gradients[:3], expected[1][:3], rel)
    np.testing.assert_allclose(weights.astype('float64').sum((-1, -2)), 1, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('graph', GRAPHS, ids=str)
def test_explicit_mesh(graph):
    """jax.make_mesh gives Explicit axes unless told otherwise: shardings are part of the types.

    Images or rows of images are sharded, and the mesh is set or known from the types alone.
    """
    mesh = jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])
    assert mesh.axis_types == (AxisType.Explicit,)
    arrays = inputs(2, 6, 7, 2, 4, 3)[:3]

    @jax.jit
    def run(q, k, v, params, valid):
        whole = forward_and_backward(graph)(q, k, v, params, valid)
        pruned = attend(q, k, v, graph, keep=3, valid=valid)
        return whole, pruned, attention_weights(q, k, graph, AT, keep=3, valid=valid)

    everywhere = np.ones_like(VALID)
    expected = {id(x): run(*arrays, params_of(graph), x) for x in (VALID, everywhere)}
    cases = [(('data',), True, VALID), ((None, 'data'), True, None)]
    if graph in (Full(), Local(3), Local(1) | Grid(3)):
        cases.append((('data',), False, VALID))
    for spec, set_mesh, valid in cases:
        placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec))) for x in arrays]
        with jax.set_mesh(mesh) if set_mesh else contextlib.nullcontext():
            found = run(*placed, params_of(graph), valid)
        assert jax.typeof(found[0][0]).sharding.spec[: len(spec)] == spec
        assert_close(found, expected[id(everywhere if valid is None else valid)], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('graph', 'axis'), [*((graph, 'model') for graph in GRAPHS), (Local(3), 'space')], ids=str
)
def test_inside_shard_map(graph, axis):
    """With the default check_vma, also over a mesh that has an axis called space."""
    mesh = jax.make_mesh((2, 2), ('data', axis), axis_types=(AxisType.Auto,) * 2,
                         devices=jax.devices()[:4])  # fmt: skip
    q, k, v = inputs(2, 6, 7, 1, 4, 3)[:3]
    whole, own = PartitionSpec(), PartitionSpec('data')
    f = forward_and_backward(graph)
    # The keys are the same on all devices: their gradient is summed over them.
    expected = jax.jit(f)(q, k[:1].repeat(2, 0), v, params_of(graph))
    expected_k = expected[1][1].sum(0, keepdims=True)

    def per_device(q, k, v, params):
        o, (dq, dk, dv, dgraph) = f(q, k, v, params)
        return o, dq, dk, dv, jax.tree.leaves(dgraph)

    outs = (own, own, whole, own, whole)
    run = jax.shard_map(
        per_device, mesh=mesh, in_specs=(own, whole, own, whole), out_specs=outs
    )  # fmt: skip
    o, dq, dk, dv, dgraph = jax.jit(run)(q, k[:1], v, params_of(graph))
    assert_close((o, dq, dv), (expected[0], expected[1][0], expected[1][2]), 1e-5)
    assert_close(dk, expected_k, 1e-5)
    assert_close(dgraph, jax.tree.leaves(expected[1][3]), 1e-4)

    def with_valid(q, k, v, valid):
        o, pull = jax.vjp(lambda *x: attend(*x, graph, valid=valid), q, k, v)
        return o, pull(jnp.cos(o)), attend(q, k, v, graph, valid=valid, keep=3)

    run = jax.shard_map(with_valid, mesh=mesh, in_specs=(own,) * 4, out_specs=own)
    assert_close(jax.jit(run)(q, k, v, VALID), jax.jit(with_valid)(q, k, v, VALID), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('graph', GRAPHS, ids=str)
def test_symbolic_batch(graph):
    (b,) = export.symbolic_shape('b')
    shapes = [jax.ShapeDtypeStruct((b, 6, 6, 1, c), jnp.float32) for c in (4, 4, 3)]

    def run(q, k, v):
        o, pull = jax.vjp(lambda *x: attend(*x, graph), q, k, v)
        valid = jnp.abs(q[..., 0, 0]) > 0.1
        return o, pull(o), [attend(q, k, v, graph, keep=3, valid=x) for x in (None, valid)]

    run = jax.jit(run)
    arrays = inputs(3, 6, 6, 1, 4, 3)[:3]
    assert_close(export.export(run)(*shapes).call(*arrays), run(*arrays), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('graph', GRAPHS, ids=str)
def test_vmap_checkpoint_hessian(graph):
    q, k, v = inputs(2, 4, 5, 1, 2, 3)[:3]

    @jax.jit
    def both(q, k, v):
        def run(q, k, v):
            return attend(q, k, v, graph)

        def gradient(f):
            return jax.grad(lambda q: (f(q, k, v) ** 2).sum())(q)

        def second(implementation):
            def f(x):
                one = q.at[0, 1, 2, 0].set(x)
                return (attend(one, k, v, graph, implementation=implementation) ** 2).sum()

            return jax.hessian(f)(q[0, 1, 2, 0])

        each = jax.vmap(lambda q, k, v: attend(q[None], k[None], v[None], graph)[0])
        found = each(q, k, v), gradient(jax.checkpoint(run)), second('auto')
        return found, (run(q, k, v), gradient(run), second('reference'))

    (*found, curvature), (*expected, expected_curvature) = both(q, k, v)
    assert_close(found, expected, 1e-6)
    assert_close(curvature, expected_curvature, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('graph', GRAPHS, ids=str)
def test_nan_stays_nan(graph):
    """No finite sentinel turns a row without meaning into numbers."""
    q, k, v = inputs(1, 5, 6, 1, 4, 3)[:3]
    k = k.at[0, 2, 3].set(jnp.nan)
    sees = np.asarray(graph.adjacency(5, 6) > 0)[:, 2 * 6 + 3]
    every = ({}, *PRUNED)

    @jax.jit
    def run(q, k, v):
        outputs = [
            attend(q, k, v, graph, implementation=i, **options)
            for i in ('auto', 'reference')
            for options in every
        ]
        at = np.array([[2, 3], [0, 0]])
        return outputs, [attention_weights(q, k, graph, at, **options) for options in every]

    outputs, weights = run(q, k, v)
    for o in outputs:
        np.testing.assert_array_equal(np.isnan(np.asarray(o).reshape(30, 3)).all(1), sees)
    for each in weights:
        assert np.isnan(np.asarray(each[0, 0])).any()


@pytest.mark.parametrize('graph', every_graph((2,)), ids=str)
def test_infinite_scores_are_those_of_the_reference(graph):
    q, k, v = inputs(1, 7, 9, 1, 4, 3)[:3]
    q = q.at[0, 3, 4, 0, 0].set(1.0)
    for channel in (-jnp.inf, -3e38):
        low = k.at[..., 0].set(channel)
        found, expected = (
            np.asarray(jax.jit(lambda *x, i=i: attend(*x, graph, implementation=i))(q, low, v))
            for i in ('auto', 'reference')
        )
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        if channel == -jnp.inf or not is_joined(graph):  # sums of 1e38 do not tell 3 keys from 4
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_one_graph_per_head():
    q, k, v, _ = inputs(1, 6, 7, 5, 4, 3)
    heads = parse('local:1,1,grid:2,full,local:1')

    def each(q, k, v):
        own = [[x[:, :, :, i : i + 1] for x in (q, k, v)] for i in range(5)]
        return [attend(*x, graph) for x, graph in zip(own, heads)]

    expected = jnp.concatenate(jax.jit(each)(q, k, v), 3)
    assert_close(jax.jit(lambda *x: attend(*x, heads))(q, k, v), expected, 1e-6)
    one_v = jax.eval_shape(lambda *x: attend(*x, list(heads)), q, k, v[:, :, :, :1])
    assert one_v.shape == v.shape
    key = jax.random.key(0)
    one = jnp.eye(42).reshape(1, 6, 7, 1, 42)
    full = (Full(), Full(), Grid(1), Full(), Full())
    drawn = jax.jit(lambda: attend(q, k, one, full, keep=5, pruning='random', key=key))()
    masks = np.asarray(drawn).transpose(3, 0, 1, 2, 4).reshape(5, -1) > 0
    assert len({mask.tobytes() for mask in masks}) == 5
    with pytest.raises(ValueError, match='2 graphs were given for 5 heads'):
        attend(q, k, v, heads[:2])


def test_numbers_of_numpy_and_traced_scales():
    q, k, v, _ = inputs(1, 6, 7, 1, 4, 3)
    graph = Local(np.int64(2))
    assert graph == Local(2) and isinstance(graph.size, int)
    expected = attend(q, k, v, Local(2), keep=3, scale=0.5)
    assert_close(attend(q, k, v, graph, keep=np.int32(3), scale=np.float32(0.5)), expected, 1e-6)

    def loss(scale):
        return (attend(q, k, v, graph, scale=scale) ** 2).sum()

    slope = jax.jit(jax.grad(loss))(jnp.float32(0.5))
    assert slope == pytest.approx(float(loss(0.51) - loss(0.49)) / 0.02, rel=1e-2)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'graph': Full}, r'Full is a class: make a graph of it'),
        ({'graph': (Full(), 'local:2')}, 'is no graph'),
        ({'k': jnp.ones((1, 6, 7, 2, 4), jnp.bfloat16)}, 'one dtype, not float32 and bfloat16'),
        ({'scale': jnp.ones(3)}, 'scale must be a finite number or a scalar array'),
        ({'keep': True}, 'keep must be'),
        ({'drop_rate': '0.5'}, 'drop_rate must lie in'),
    ],
)
def test_wrong_types_are_named(change, words):
    x = jnp.ones((1, 6, 7, 2, 4))
    with pytest.raises(ValueError, match=words):
        attend(**{'q': x, 'k': x, 'v': x, 'graph': Local(1)} | change)
    with pytest.raises(ValueError, match='positions must be integers, not float64'):
        attention_weights(x, x, Local(1), np.array([[0.0, 1.0]]))
