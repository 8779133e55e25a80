"""Choices follow the devices that are compiled for."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from ggcf_jax.attention import attend, block_sizes, target
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.flash import Chunks, choose_chunks
from ggcf_jax.attention.graphs import parse


def mesh(platform: str, devices: int = 1) -> jax.sharding.AbstractMesh:
    device = jax.sharding.AbstractDevice('any', None, platform)
    return jax.sharding.AbstractMesh(
        (devices,), ('data',), (jax.sharding.AxisType.Auto,), abstract_device=device
    )


@pytest.mark.parametrize(
    'name, sizes', [('tpu', block_sizes.ACCELERATOR), ('cpu', block_sizes.CPU)]
)
def test_the_mesh_in_effect_comes_first(name, sizes):
    seen = []

    def f(x):
        seen.append((target.current(), block_sizes.current(1)))
        return x

    with jax.sharding.use_abstract_mesh(mesh(name)):
        jax.make_jaxpr(jax.jit(f))(1.0)
    assert seen == [(name, sizes)]


def test_default_devices():
    assert target.current() == jax.default_backend() == 'cpu'
    assert target.devices() == 1


def test_devices_of_the_mesh():
    auto = (jax.sharding.AxisType.Auto,) * 2
    real = jax.make_mesh((4, 2), ('data', 'space'), axis_types=auto)
    per_device = jax.shard_map(
        lambda x: x + target.devices(), in_specs=P('data'), out_specs=P('data'), mesh=real
    )
    with jax.set_mesh(real):
        assert target.devices() == 8
        assert per_device(jnp.zeros(4)).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    'heads, drop_rate',
    [
        *((h, None) for h in ('local:4', 'grid:2', 'full', 'learned')),
        ('full', 0.5),
    ],
)
def test_loops_are_those_of_one_devices_share(heads, drop_rate, monkeypatch):
    """A batch of 32 over 16 devices runs as many rounds as one of 2 on one device."""
    monkeypatch.setattr(
        block_sizes,
        'ACCELERATOR',
        dataclasses.replace(
            block_sizes.CPU, queries=128, keys=64, whole_keys=64, whole_scores=0, scores=1 << 12
        ),
    )
    graph = parse(heads)[0]
    if heads == 'learned':
        graph = graph.bind(graph.init(jax.random.key(0)))

    def rounds(batch, devices):
        x = jax.ShapeDtypeStruct((batch, 24, 20, 1, 4), jnp.float32)
        with jax.sharding.use_abstract_mesh(mesh('tpu', devices)):
            options = {'drop_rate': drop_rate, 'implementation': 'xla'}
            f = jax.make_jaxpr(lambda q, k, v: attend(q, k, v, graph, **options))
            return re.findall(r'length=(\d+)', str(f(x, x, x)))

    assert rounds(32, 16) == rounds(2, 1) != rounds(32, 1)
    assert rounds(3, 16) == rounds(3, 1)  # such a batch is on every device


@pytest.mark.parametrize(
    ('platform', 'n', 'sequences', 'whole'),
    [
        ('cpu', 257, 24, True),
        ('cpu', 257, 32, False),
        ('cpu', 1448, 1, True),
        ('cpu', 1449, 1, False),
        ('tpu', 1500, 1, False),
        ('gpu', 1500, 1, False),
    ],
)
def test_few_scores_are_one_pair_of_chunks_on_cpus(platform, n, sequences, whole):
    """Up to 2^21 of them; of a batch over two devices twice as many."""
    with target.tracing_for(platform):
        sizes = block_sizes.current(1)
    for devices in (1, 2):
        sized = dataclasses.replace(sizes, devices=devices)
        chunks = choose_chunks(n, sequences * devices, Options(scale=1.0, sizes=sized))
        assert (chunks == Chunks(n, n)) == whole


def test_a_symbolic_batch_has_no_whole_score_matrix():
    (batch,) = jax.export.symbolic_shape('b')
    options = Options(scale=1.0, sizes=block_sizes.CPU)
    assert choose_chunks(1024, 2, options).queries == 1024
    assert choose_chunks(1024, batch, options).queries == 512
