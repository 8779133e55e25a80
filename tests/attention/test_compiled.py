"""The compiled programs: sizes of arrays, temporary memory, collectives under sharding."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ggcf_jax.attention import attend, graphs, position_bias, target
from tests.attention.cases import assert_close, inputs, slow

COLLECTIVES = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute', 'reduce-scatter')


def forward_and_backward(graph):
    def f(q, k, v):
        o, pull = jax.vjp(lambda *x: attend(*x, graph), q, k, v)
        return o, pull(o)

    return jax.jit(f)


def largest_array(compiled):
    shapes = re.findall(r'\b(?:pred|[a-z]+\d+)\[([\d,]+)\]', compiled.as_text())
    return max(np.prod([int(n) for n in shape.split(',')]) for shape in shapes)


def collectives(compiled):
    """Counts of the collectives in a compiled program."""
    found = re.findall(rf'= .* ({"|".join(COLLECTIVES)})(?:-start)?\(', compiled.as_text())
    return dict(collections.Counter(found))


@pytest.mark.parametrize(
    'text',
    [
        *('local:4', 'grid:8', 'full', 'cross', 'block:8+4'),
        *slow(
            [
                'local:4:shift',
                'local:2@4',
                'local:3x0@4x1:shift',
                'local:12&grid:4',
                'local:4|grid:8|row',
            ]
        ),
    ],
)
def test_no_array_of_all_pairs(text):
    h, w = 48, 64
    x = jax.ShapeDtypeStruct((1, h, w, 1, 16), jnp.float32)
    compiled = forward_and_backward(graphs.parse(text)[0]).lower(x, x, x).compile()
    assert largest_array(compiled) < (h * w) ** 2 / 8


@pytest.mark.parametrize(
    ('platform', 'shape', 'masked'),
    [('cpu', (37, 37), False), ('cpu', (61, 67), False), ('gpu', (61, 67), True)],
    ids=str,
)
def test_no_scores_are_masked_on_cpus(platform, shape, masked):
    """XLA:CPU fuses a product of keys with its softmax only without a mask."""
    x = jax.ShapeDtypeStruct((1, *shape, 2, 16), jnp.float32)
    with target.tracing_for(platform):
        options = {'implementation': 'xla', 'scale': 0.5}
        text = str(
            jax.make_jaxpr(lambda *x: attend(*x, graphs.parse('full')[0], **options))(x, x, x)
        )
    least = 100 * 100  # elements of the scores of a pair of chunks
    chosen = re.findall(r'f32\[([\d,]+)\] = select_n', text)
    sizes = [np.prod([int(n) for n in each.split(',')]) for each in chosen]
    assert any(size > least for size in sizes) == masked


@pytest.mark.slow
@pytest.mark.parametrize('text', ['local:4:shift', 'local:2@4:shift', 'local:4:shift|cross'])
def test_no_array_of_all_pairs_where_images_end(text):
    (graph,), h, w = graphs.parse(text), 48, 64
    x = jax.ShapeDtypeStruct((2, h, w, 1, 16), jnp.float32)
    valid = jax.ShapeDtypeStruct((2, h, w), bool)

    def both(q, k, v, valid):
        o, pull = jax.vjp(lambda *x: attend(*x, graph, valid=valid), q, k, v)
        return o, pull(o), attend(q, k, v, graph, valid=valid, keep=9)

    compiled = jax.jit(both).lower(x, x, x, valid).compile()
    assert largest_array(compiled) < (h * w) ** 2 / 8


@pytest.mark.slow
@pytest.mark.parametrize('text', ['local:4', 'grid:4', 'block:8', 'full'])
def test_no_bias_of_all_pairs(text):
    (graph,), h, w = graphs.parse(text), 48, 64
    rows, columns = position_bias.reach(graph, h, w)
    x = jax.ShapeDtypeStruct((1, h, w, 1, 16), jnp.float32)
    table = jax.ShapeDtypeStruct((1, 2 * rows + 1, 2 * columns + 1), jnp.float32)

    def both(q, k, v, bias):
        o, pull = jax.vjp(lambda *x: attend(*x[:3], graph, bias=x[3]), q, k, v, bias)
        return pull(o)

    compiled = jax.jit(both).lower(x, x, x, table).compile()
    assert largest_array(compiled) < (h * w) ** 2 / 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ('text', 'maps'),
    [
        *(('local:24', 6), ('grid:8', 6), ('grid:24', 6), ('block:32+16', 6)),
        ('local:8@8', 12),  # arrays and gradients stand by residue class as well
        ('cross', 10),  # two parts with gradients of their own
    ],
)
def test_temporary_memory_at_128_by_256(text, maps):
    """Forward and backward, in units of one array of the map; all pairs would be 512 of them."""
    x = jax.ShapeDtypeStruct((1, 128, 256, 1, 64), jnp.float32)
    compiled = forward_and_backward(graphs.parse(text)[0]).lower(x, x, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < maps * x.size * 4


def sharded(graph, spec, shape):
    mesh = jax.make_mesh((8,), ('axis',), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    arrays = inputs(*shape, 8, 8)[:3]
    expected = forward_and_backward(graph)(*arrays)
    with jax.set_mesh(mesh):
        arrays = [jax.device_put(x, sharding) for x in arrays]
        f = jax.jit(forward_and_backward(graph), out_shardings=sharding)
        compiled = f.lower(*arrays).compile()
        assert_close(compiled(*arrays), expected, 1e-5)
    return collectives(compiled)


@pytest.mark.parametrize(
    'text',
    [
        *('local:2', 'grid:3', 'full', 'learned'),
        *slow(['local:2:shift', 'local:1@3', 'cross', 'block:4+1', 'local:1|grid:4']),
    ],
)
def test_sharded_batch_needs_no_communication(text):
    graph = graphs.parse(text)[0]
    if text == 'learned':
        graph = graph.bind(graph.init(jax.random.key(0)))
    assert sharded(graph, ('axis',), (8, 10, 13, 1)) == {}


@pytest.mark.slow
def test_pruned_sharded_batch_needs_no_gather():
    mesh = jax.make_mesh((8,), ('axis',), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec('axis'))
    q, k, v, _ = inputs(8, 6, 7, 1, 4, 4)
    for graph in graphs.parse('local:2,full'):
        f = jax.jit(lambda q, k, v, graph=graph: attend(q, k, v, graph, drop_rate=0.5),
                    out_shardings=sharding)  # fmt: skip
        with jax.set_mesh(mesh):
            arrays = [jax.device_put(x, sharding) for x in (q, k, v)]
            compiled = f.lower(*arrays).compile()
            assert_close(compiled(*arrays), attend(q, k, v, graph, drop_rate=0.5), 1e-5)
        # The search ends when the rows of all devices are settled: a reduction of one flag.
        assert set(collectives(compiled)) <= {'all-reduce'}
        with jax.set_mesh(mesh), target.tracing_for('gpu'):
            there = lambda q, k, v, graph=graph: attend(q, k, v, graph, drop_rate=0.5)  # noqa: E731
            compiled = jax.jit(there, out_shardings=sharding).lower(*arrays).compile()
            assert_close(compiled(*arrays), attend(q, k, v, graph, drop_rate=0.5), 1e-5)
        assert collectives(compiled) == {}  # on accelerators the number of passes is known
