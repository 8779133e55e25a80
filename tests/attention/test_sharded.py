"""Rows of a map over devices: the values and gradients of one device, by the collectives meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ggcf_jax.attention import attend, graphs, sharded
from tests.attention.cases import assert_close, inputs, slow
from tests.attention.test_compiled import collectives, forward_and_backward

FETCHED = {
    'local': {'collective-permute'},
    'dilated': {'all-to-all'},
    'union': {'collective-permute', 'all-to-all'},
    'cross': {'all-to-all'},
    'block': {'all-to-all'},
    'grid': {'all-to-all'},
    'column': {'all-to-all'},
    # The transposed gather; XLA:CPU writes a reduce-scatter as all-reduce or all-to-all.
    'full': {'all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all'},
}


@pytest.fixture(scope='module')
def mesh():
    return jax.make_mesh((2, 4), ('data', 'space'), axis_types=(AxisType.Auto,) * 2)


# 12 rows, 3 on each device: halos of less, of more than one neighbour and of more than the map;
# residues that do and do not divide rows, columns and devices.
@pytest.mark.parametrize(
    'text',
    [
        *('local:5', 'grid:5', 'column', 'full'),
        *slow(['local:2', 'local:40', 'local:1x3', 'grid:4', 'grid:4x3']),
        *slow(
            ['local:1:shift', 'local:2:shift', 'local:40:shift', 'local:2@3', 'local:1x2@2x5:shift']
        ),
        *slow(['local:2|cross', 'grid:5|grid:3x2|row']),
        *slow(['cross', 'block:5', 'block:3+1', 'block:4x3+2x1', 'block:30+7']),
    ],
)
def test_rows_over_devices(mesh, text):
    graph = graphs.parse(text)[0]
    arrays = inputs(2, 12, 11, 1, 8, 4)[:3]
    expected = forward_and_backward(graph)(*arrays)
    sharding = NamedSharding(mesh, PartitionSpec('data', 'space'))
    with jax.set_mesh(mesh):
        dealt = [jax.device_put(x, sharding) for x in arrays]
        f = jax.jit(forward_and_backward(graph), out_shardings=sharding)
        compiled = f.lower(*dealt).compile()
        assert_close(compiled(*dealt), expected, 1e-5)
    special = {'@': 'dilated', '|': 'union'}
    kinds = [kind for sign, kind in special.items() if sign in text]
    fetched = FETCHED[kinds[0] if kinds else text.split(':')[0]]
    assert 0 < len(collectives(compiled)) <= len(fetched)
    assert set(collectives(compiled)) <= fetched


def test_learned_graph_over_devices(mesh):
    graph = graphs.parse('learned')[0]
    params = graph.init(jax.random.key(0))
    q, k, v = inputs(2, 8, 5, 1, 4, 4)[:3]

    def value(params, q):
        return jnp.sin(attend(q, k, v, graph.bind(params))).sum()

    f = jax.value_and_grad(value, argnums=(0, 1))
    expected = jax.jit(f)(params, q)
    sharding = NamedSharding(mesh, PartitionSpec('data', 'space'))
    with jax.set_mesh(mesh):
        found = jax.jit(f)(params, jax.device_put(q, sharding))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_rows_that_cannot_be_dealt(mesh):
    q, k, v = inputs(2, 10, 5, 1, 4, 4)[:3]
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r'height 10 .* divisible by 4'):
        attend(q, k, v, graphs.Local(1))
    assert sharded.num_devices() == 1


@pytest.mark.parametrize('text', ['row', *slow(['block:3', 'block:1x4+0x3'])])
def test_some_need_no_communication(mesh, text):
    (graph,) = graphs.parse(text)
    q, k, v = inputs(2, 12, 11, 1, 8, 4)[:3]
    sharding = NamedSharding(mesh, PartitionSpec('data', 'space'))
    expected = forward_and_backward(graph)(q, k, v)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, sharding) for x in (q, k, v)]
        f = jax.jit(forward_and_backward(graph), out_shardings=sharding)
        compiled = f.lower(*placed).compile()
        assert_close(compiled(*placed), expected, 1e-5)
    assert collectives(compiled) == {}
