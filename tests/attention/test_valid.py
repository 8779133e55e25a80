"""Positions that may not be attended to, registers, and attentions that are joined."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ggcf_jax.attention import (
    Block,
    Column,
    Cross,
    Frame,
    Full,
    Grid,
    Local,
    Partial,
    Registers,
    Row,
    SeparableGraph,
    attend,
    attention_weights,
    block_sizes,
    merge,
    parse,
)
from ggcf_jax.attention import frame as frames
from ggcf_jax.attention.graph import of_images
from tests.attention.cases import (
    adjacency,
    assert_close,
    attending,
    every_graph,
    inputs,
    per_axis,
    slow,
    slow_cases,
    values_and_gradients,
    with_engine,
)

H, W, SIZE = 9, 11, (6, 7)  # of the maps, and of the image in the corner of the first of them
PRUNED = [{'keep': 4}, {'drop_rate': 0.5}]
# Graphs that know where the image ends.
BORDERED = parse('local:2:shift,local:1x2@2x3:shift,local:1:shift|cross,local:30:shift')


def some_valid():
    """An image with padding, scattered positions, and nothing at all."""
    valid = np.zeros((3, H, W), bool)
    valid[0, : SIZE[0], : SIZE[1]] = True
    valid[1, 1:, 2:] = np.random.default_rng(1).random((H - 1, W - 2)) < 0.3
    return jnp.asarray(valid)


def both_outputs(graph, weights, options):
    """(q, k, v, valid) -> output, log-sum-exp, and gradients of a loss of both."""

    def run(q, k, v, valid):
        def loss(q, k, v):
            part = attend(q, k, v, graph, valid=valid, return_lse=True, **options)
            lse = jnp.where(jnp.isfinite(part.lse), part.lse, 0)
            return (part.o * weights).sum() + jnp.sin(lse).sum(), part

        (_, part), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return part, gradients

    return jax.jit(run)


def adjacency_of_images(graph, valid):
    """Its edges on the map of each image, as a NumPy array."""
    run = jax.jit(lambda valid: of_images(graph, valid, lambda g: jnp.asarray(g.adjacency(H, W))))
    return np.asarray(run(valid))


@pytest.mark.parametrize(
    'graph',
    [
        *(*every_graph((3,)), *BORDERED[:2]),
        *slow([*every_graph((1, 30))[3:], *per_axis(), *with_engine(), BORDERED[2]]),
    ],
    ids=str,
)
def test_values_and_gradients(graph):
    *arrays, weights = inputs(3, H, W, 2, 5, 4)
    valid = some_valid()
    part, gradients = both_outputs(graph, weights, {})(*arrays, valid)
    expected = both_outputs(graph, weights, {'implementation': 'reference'})(*arrays, valid)
    edges = adjacency_of_images(graph, valid) > 0
    nobody = ~(np.asarray(edges) & np.asarray(valid).reshape(3, 1, -1)).any(-1).reshape(3, H, W)
    assert nobody[2].all()
    np.testing.assert_array_equal(np.isneginf(part.lse), nobody[..., None].repeat(2, -1))
    finite = Partial(part.o, jnp.where(nobody[..., None], 0, part.lse))
    assert_close(
        (finite, gradients),
        (Partial(expected[0].o, jnp.where(nobody[..., None], 0, expected[0].lse)), expected[1]),
        1e-5,
    )
    assert not np.asarray(part.o)[nobody].any()
    dq, dk, dv = map(np.asarray, gradients)
    assert not dq[nobody].any() and not dk[~valid].any() and not dv[~valid].any()


@pytest.mark.parametrize('pad_keys', [False, True])
def test_in_many_chunks(pad_keys, monkeypatch):
    """99 keys in chunks of 40, 40 and 19, or padded to 120."""
    small = dataclasses.replace(
        block_sizes.CPU, queries=24, keys=40, whole_keys=0, whole_scores=0, pad_keys=pad_keys
    )
    monkeypatch.setattr(block_sizes, 'CPU', small)
    test_values_and_gradients(parse('full')[0])


@pytest.mark.parametrize('graph', [*BORDERED, BORDERED[0] & Grid(2)], ids=str)
def test_the_border_is_that_of_the_image(graph):
    """By definition: the edges of an image alone, wherever in the map it lies."""
    valid = np.zeros((4, H, W), bool)
    places = [(0, 0, *SIZE), (2, 3, 7, 8), (8, 1, 1, 10), (0, 0, 0, 0)]
    for image, (top, left, h, w) in zip(valid, places):
        image[top : top + h, left : left + w] = True
    edges = adjacency_of_images(graph, valid)
    masks = jax.jit(lambda valid: of_images(graph, valid, lambda g: g.mask_of(4, 5, H, W)))(valid)
    np.testing.assert_array_equal(masks, edges.reshape(4, H, W, H, W)[:, 4, 5])
    for own, image, (_, _, h, w) in zip(edges, valid.reshape(4, -1), places[:3]):
        np.testing.assert_array_equal(own[image][:, image], adjacency(graph, h, w))
    np.testing.assert_array_equal(frames.mask(valid), valid)
    holes = valid[:1] & (np.arange(W) % 5 != 2)  # the same frame
    np.testing.assert_array_equal(frames.mask(holes), valid[:1])
    assert len(adjacency_of_images(Local(2), valid)) == 1


@dataclasses.dataclass(frozen=True)
class Mirror(SeparableGraph):
    """Rows and columns see those of the other end; outside of the package."""

    frame: Frame | None = dataclasses.field(default=None, compare=False)

    def axis_edges(self, axis, i, j, n):
        first, end = (0, n) if self.frame is None else (x[axis] for x in self.frame)
        return (i == j) | (i + j == first + end - 1)

    def within(self, frame):
        return Mirror(frame)


def test_a_graph_outside_the_package_may_know_the_border():
    q, k, v = inputs(3, H, W, 1, 5, 4)[:3]
    for graph in (Mirror(), Mirror() | Local(2, border='shift')):
        o = attending(graph, valid=some_valid(), implementation='reference')(q, k, v)
        alone = [x[:1, : SIZE[0], : SIZE[1]] for x in (q, k, v)]
        expected = attending(graph, implementation='reference')(*alone)
        assert_close(o[:1, : SIZE[0], : SIZE[1]], expected, 1e-6)


@pytest.mark.parametrize(
    ('graph', 'pruned'),
    # Selecting and the graph know nothing of each other: one way of it for each graph.
    [
        *zip([*every_graph((3,)), BORDERED[0]], itertools.cycle(PRUNED)),
        *slow_cases(zip(BORDERED[1:], itertools.cycle(PRUNED))),
    ],
    ids=str,
)
def test_an_image_is_the_same_with_padding_around_it(graph, pruned):
    q, k, v = inputs(3, H, W, 2, 5, 4)[:3]
    at = np.array([[0, 0], [4, 5]])

    @jax.jit
    def run(q, k, v, valid=None):
        return [
            (
                attend(q, k, v, graph, valid=valid, **options),
                attention_weights(q, k, graph, at, valid=valid, **options),
            )
            for options in ({}, pruned)
        ]

    padded = run(q, k, v, some_valid())
    cut = run(*(x[:1, : SIZE[0], : SIZE[1]] for x in (q, k, v)))
    for (o, weights), (alone, weights_alone) in zip(padded, cut, strict=True):
        assert_close(o[:1, : SIZE[0], : SIZE[1]], alone, 1e-5)
        assert_close(weights[:1, ..., : SIZE[0], : SIZE[1]], weights_alone, 1e-5)
        assert not np.asarray(weights)[0, ..., SIZE[0] :, :].any()
        assert not np.asarray(o)[2].any() and not np.asarray(weights)[2].any()


@pytest.mark.slow
@pytest.mark.parametrize('options', PRUNED, ids=['keep', 'rate'])
@pytest.mark.parametrize('graph', [*every_graph((3,)), *BORDERED, Local(2) | Grid(3)], ids=str)
def test_pruned(graph, options):
    q, k, v = inputs(3, H, W, 2, 5, 4)[:3]
    run = jax.jit(
        lambda *x: [
            attend(*x[:3], graph, valid=x[3], implementation=i, **options)
            for i in ('auto', 'reference')
        ]
    )
    assert_close(*run(q, k, v, some_valid()), 1e-5)


@pytest.mark.parametrize('graph', [Local(2), Grid(3), Full()], ids=str)
def test_nan_in_padding_stays_there(graph):
    q, k, v = inputs(3, H, W, 1, 5, 4)[:3]
    valid = some_valid()
    dirty = [jnp.where(valid[..., None, None], x, jnp.nan) for x in (k, v)]
    run = attending(graph, valid=valid)
    clean = [jnp.where(valid[..., None, None], x, 0) for x in (k, v)]
    assert_close(run(q, *dirty), run(q, *clean), 1e-6)


@pytest.mark.parametrize(
    'graph',
    [
        Local(5), Full(),
        *slow([Grid((5, 3)), Row(), Column(), Cross(), Block(5, 3), Local(1, 2, 'shift')]),
        *slow(BORDERED),
    ],
    ids=str,
)  # fmt: skip
def test_rows_over_devices(graph):
    mesh = jax.make_mesh((2, 4), ('data', 'space'), axis_types=(AxisType.Auto,) * 2)
    *arrays, weights = inputs(2, 12, 11, 2, 4, 4)
    valid = np.random.default_rng(0).random((2, 12, 11)) < 0.6
    valid[1] = (np.arange(12)[:, None] < 8) & (np.arange(11) < 7)  # ends inside a device's rows
    run = both_outputs(graph, weights, {})
    expected = run(*arrays, valid)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec('data', 'space'))
        found = run(*(jax.device_put(x, sharding) for x in (*arrays, valid)))
    found, expected = (
        jax.tree.map(lambda x: jnp.nan_to_num(jax.device_get(x), neginf=0), x)
        for x in (found, expected)
    )
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize('graph', [Local(2), Grid(3), *slow([Full(), Row()])], ids=str)
def test_merge_of_two_halves_is_the_whole(graph):
    *arrays, weights = inputs(2, H, W, 2, 5, 4)
    left = jnp.broadcast_to(jnp.arange(W) < 3, (2, H, W))  # some queries see nothing of it

    def merged(q, k, v):
        parts = [attend(q, k, v, graph, valid=x, return_lse=True) for x in (left, ~left)]
        return merge(*parts)

    def outputs_and_gradients(f):
        def loss(*arrays):
            part = f(*arrays)
            return (part.o * weights).sum() + jnp.cos(part.lse).sum(), part

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)

    whole = outputs_and_gradients(lambda *x: attend(*x, graph, return_lse=True))
    assert_close(outputs_and_gradients(merged), whole, 1e-5)


@pytest.mark.parametrize(
    'graph', [Cross(), *slow(parse('local:1|row,grid:3|row,local:1:shift|cross'))], ids=str
)
def test_keys_of_no_weight_leave_the_others(graph):
    """Affinities of minus infinity, of all keys of one part or of all keys."""
    q, k, v, _ = inputs(2, H, W, 1, 5, 4)
    low = jnp.abs(jnp.arange(W) - 4) < jnp.array([2, W])[:, None]  # some columns; all of them
    k = k.at[..., 0].set(jnp.where(low[:, None, :, None], -jnp.inf, k[..., 0]))
    q = q.at[..., 0].set(1.0)
    for options in ({}, {'keep': 30}, {'keep': 4}):
        found, expected = (
            jax.jit(
                lambda *x, i=i, o=options: attend(*x, graph, implementation=i, return_lse=True, **o)
            )(q, k, v)
            for i in ('auto', 'reference')
        )
        assert np.isfinite(found.o[0]).all() and np.isnan(found.o[1]).all()
        assert_close(found.o[0], expected.o[0], 1e-5)
        assert_close(found.lse[0], expected.lse[0], 1e-5)
        assert np.isneginf(found.lse[1]).all() and np.isnan(expected.o[1]).all()


@pytest.mark.slow
def test_a_bias_hides_a_part():
    *arrays, weight = inputs(1, H, W, 1, 5, 4)
    bias = jnp.zeros((1, 2 * H - 1, 2 * W - 1)).at[:, H - 1].set(-jnp.inf)  # the row of the query
    found, expected = (
        values_and_gradients(
            lambda *x, i=i: attend(*x[:3], Cross(), bias=x[3], implementation=i),
            weight, *arrays, bias,
        )
        for i in ('xla', 'reference')
    )  # fmt: skip
    assert np.isfinite(found[0]).all()
    assert_close(found, expected, 1e-5)


def test_merge_of_nothing():
    o, lse = jnp.zeros((1, 2, 3, 1, 4)), jnp.full((1, 2, 3, 1), -jnp.inf)
    both, gradients = jax.jit(
        jax.value_and_grad(lambda o, lse: merge(Partial(o, lse), Partial(o, lse)).o.sum(), (0, 1))
    )(o, lse)
    assert both == 0 and not any(np.asarray(x).any() for x in gradients)
    assert np.isneginf(merge(Partial(o, lse)).lse).all()
    nan, some = Partial(o + jnp.nan, lse), Partial(o + 2, lse.at[:].set(-1e4))
    assert np.isnan(merge(nan, Partial(o, lse)).o).all() and (merge(nan, some).o == 2).all()
    with pytest.raises(ValueError, match='at least one part'):
        merge()
    with pytest.raises(ValueError, match=r'different shapes: o \(1, 2, 3, 1, 4\)'):
        merge(Partial(o, lse), Partial(o[:, :1], lse[:, :1]))


@pytest.mark.parametrize('shape', [(2, 2), *slow([(1, 1), (2, 1)])], ids=str)
def test_registers_are_seen_by_every_query(shape):
    """Against a softmax over the keys of the map and the registers side by side."""
    batch, v_heads = shape
    rng = np.random.default_rng(3)
    q, k, v, weights = inputs(2, 4, 5, 2, 6, 3, v_heads=v_heads)
    registers = Registers(
        jnp.asarray(rng.standard_normal((batch, 3, 2, 6)), jnp.float32),
        jnp.asarray(rng.standard_normal((batch, 3, v_heads, 3)), jnp.float32),
    )
    graph, valid = Local(1), jnp.asarray(rng.random((2, 4, 5)) < 0.5)

    def dense(q, k, v, registers):
        def all_keys(x, extra):
            extra = jnp.broadcast_to(extra, (2, 3, 2, x.shape[-1]))
            x = jnp.broadcast_to(x, (*x.shape[:3], 2, x.shape[-1]))
            return jnp.concatenate([x.reshape(2, 20, 2, -1), extra], axis=1)

        s = 0.7 * jnp.einsum('bihd,bjhd->bhij', q.reshape(2, 20, 2, 6), all_keys(k, registers.k))
        mask = graph.adjacency(4, 5)[None] & valid.reshape(2, 1, 20)
        mask = jnp.concatenate([mask, jnp.ones((2, 20, 3), bool)], axis=-1)[:, None]
        p = jax.nn.softmax(jnp.where(mask, s, -jnp.inf), axis=-1)
        return jnp.einsum('bhij,bjhd->bihd', p, all_keys(v, registers.v)).reshape(2, 4, 5, 2, 3)

    def fast(q, k, v, registers):
        return attend(q, k, v, graph, valid=valid, registers=registers, scale=0.7)

    found, expected = (
        jax.jit(jax.value_and_grad(lambda *x, f=f: (f(*x) * weights).sum(), (0, 1, 2, 3)))(
            q, k, v, registers
        )
        for f in (fast, dense)
    )
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'valid': np.ones((1, 4), bool)}, r'valid must be .* = \(1, 4, 5\), not of shape'),
        ({'valid': np.ones((1, 4, 5), np.float32)}, 'valid must be bool, not float32'),
        ({'registers': np.ones(3)}, r'registers must be Registers\(k, v\)'),
        (
            {'registers': Registers(jnp.ones((1, 2, 3, 3)), jnp.ones((1, 2, 1, 3)))},
            r'k \[1 or 1, tokens, 2, 3\] and v',
        ),
        (
            {'registers': Registers(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 1, 3), jnp.bfloat16))},
            'dtypes of q and v',
        ),
    ],
)
def test_mistakes_are_named(change, words):
    array = jnp.zeros((1, 4, 5, 2, 3))
    with pytest.raises(ValueError, match=words):
        attend(array, array, array, Local(1), **change)
