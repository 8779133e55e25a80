"""Context Pruning: exactly N kept, ties, rates, random control, bounded memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.attention import attend, block_sizes, parse, pruning, target, top_k, top_k_bits
from ggcf_jax.attention.graphs import Block, Cross, Full, Grid, Local
from tests.attention.cases import (
    adjacency,
    assert_close,
    attending,
    every_graph,
    inputs,
    per_axis,
    slow_cases,
    with_engine,
)

RANDOM = {'pruning': 'random', 'key': jax.random.key(5)}
KEEPS = ({'keep': 5}, {'drop_rate': 0.7}, {'keep': 4} | RANDOM)
EXTRA = [*per_axis()[::2], *with_engine()]  # variants of the kinds


ACCELERATED = [  # what takes few steps there, as text
    *('local:3x0:shift', 'local:2', 'local:1@3', 'local:2@2:shift', 'grid:3', 'full', 'cross'),
    *('row', 'block:4+1', 'local:2|grid:3', 'learned'),
]


def kept_pairs(graph, h, w, q, k, **options):
    """The weights themselves, [h*w, h*w]: v is the identity."""
    v = jnp.eye(h * w).reshape(1, h, w, 1, h * w)
    run = jax.jit(lambda q, k: attend(q, k, v, graph, **options))
    return np.asarray(run(q, k)).reshape(h * w, h * w)


@pytest.mark.parametrize(
    ('graph', 'options'),
    [
        *((graph, KEEPS[0]) for graph in every_graph((3,))),
        *slow_cases([(graph, options) for options in KEEPS[1:] for graph in every_graph((3,))]),
        # The kinds have all options; of their variants each has one by its affinities and by chance
        # in turn.
        *slow_cases([(graph, KEEPS[i % 3]) for i, graph in enumerate(EXTRA)]),
    ],
    ids=lambda x: ' '.join(map(str, list(x.values())[:2])) if isinstance(x, dict) else str(x),
)
def test_engine_equals_reference(graph, options):
    q, k, v, _ = inputs(2, 9, 14, 2, 8, 6, v_heads=1)

    @jax.jit
    def both(*x):
        return [attend(*x, graph, implementation=i, **options) for i in ('auto', 'reference')]

    assert_close(*both(q, k, v), 1e-5)


@pytest.mark.parametrize(
    ('text', 'options', 'platform'),
    [
        ('local:3', KEEPS[0], 'gpu'),
        *slow_cases([(text, KEEPS[i % 3], 'gpu') for i, text in enumerate(ACCELERATED)]),
        *slow_cases([(text, KEEPS[1], 'tpu') for text in ('local:2', 'full')]),
    ],
)
def test_few_steps_of_accelerators_equal_the_reference(text, options, platform, monkeypatch):
    """By XLA for an accelerator, several steps of which the last one overlaps: the same pairs."""
    small = dataclasses.replace(block_sizes.ACCELERATOR, pruned_each=1 << 11, local=(4, 5))
    monkeypatch.setattr(block_sizes, 'ACCELERATOR', small)
    (graph,) = parse(text)
    if text == 'learned':
        graph = graph.bind(graph.init(jax.random.key(0)))
    b, h, w = 2, 9, 14
    valid = jnp.arange(b * h * w).reshape(b, h, w) % 4 > 0
    valid = valid.at[1, 5:].set(False)
    rng = np.random.default_rng(0)
    # Small integers: exact in every order of summation, many ties.
    q, k = (jnp.asarray(rng.integers(-1, 2, (b, h, w, 2, 3)), jnp.float32) for _ in range(2))
    v = jnp.asarray(rng.standard_normal((b, h, w, 1, 6)), jnp.float32)

    def by(implementation):
        options_ = {'implementation': implementation, 'return_lse': True, **options}
        return jax.jit(lambda *x: attend(*x[:3], graph, valid=x[3], **options_))

    with target.tracing_for(platform):
        found = by('xla')(q, k, v, valid)
    expected = by('reference')(q, k, v, valid)
    for x, y in zip(found, expected):
        seen = np.asarray(valid)
        np.testing.assert_allclose(np.asarray(x)[seen], np.asarray(y)[seen], rtol=1e-5, atol=1e-5)


def test_a_nan_among_the_affinities_of_accelerators(monkeypatch):
    q, k, v, _ = inputs(1, 5, 7, 1, 4, 4)
    q = q.at[0, 2, 3].set(np.nan)
    with target.tracing_for('gpu'):
        found = attending(Local(2), keep=3, implementation='xla')(q, k, v)
    expected = attending(Local(2), keep=3, implementation='reference')(q, k, v)
    assert np.isnan(found).any(-1).sum() == 1
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('graph', every_graph((3,)), ids=str)
def test_exactly_n_and_each_query_by_its_own_count(graph):
    h, w = 6, 9
    q, k, *_ = inputs(1, h, w, 1, 8, 8)
    edges = adjacency(graph, h, w)
    neighbours = (edges > 0).sum(1)
    for options, expected in (
        ({'drop_rate': 0.7}, neighbours - neighbours * 7 // 10),
        ({'keep': 4} | RANDOM, np.minimum(neighbours, 4)),
    ):
        weights = kept_pairs(graph, h, w, q, k, **options)
        assert ((weights > 0).sum(1) == expected).all()
        assert not (weights[edges == 0] > 0).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    'graph', [Local(2), Grid(2), Cross(), Block(3), Local(1, 2, 'shift')], ids=str
)
def test_ties_keep_the_first_in_row_major_order(graph):
    h, w = 5, 7
    zero = jnp.zeros((1, h, w, 1, 4))
    weights = kept_pairs(graph, h, w, zero, zero, keep=3)
    edges = adjacency(graph, h, w)
    for i in range(h * w):
        assert np.flatnonzero(weights[i]).tolist() == np.flatnonzero(edges[i])[:3].tolist()
    # Small integers: exact in every order of summation, many ties.
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.integers(-1, 2, (1, h, w, 1, 3)), jnp.float32) for _ in range(2))
    for keep in (1, 4):
        expected = kept_pairs(graph, h, w, q, k, keep=keep, implementation='reference')
        assert_close(kept_pairs(graph, h, w, q, k, keep=keep), expected, 1e-6)


@pytest.mark.parametrize('graph', every_graph((3,)), ids=str)
def test_keeping_all_changes_no_bit(graph):
    q, k, v, _ = inputs(1, 7, 10, 1, 8, 8)
    whole = jax.jit(lambda *x: attend(*x, graph))(q, k, v)
    most = graph.max_degree(7, 10)
    for options in ({'keep': most}, {'drop_rate': 0.0}, {'keep': 10**6} | RANDOM):
        pruned = jax.jit(lambda *x, options=options: attend(*x, graph, **options))(q, k, v)
        assert np.array_equal(pruned, whole)


def test_random_pruning_is_uniform_and_follows_its_key():
    h, w = 8, 8
    q, k, *_ = inputs(1, h, w, 1, 4, 4)
    v = jnp.eye(h * w).reshape(1, h, w, 1, h * w)

    @jax.jit
    def draw(seed):
        key = jax.random.key(seed)
        return attend(q, k, v, Full(), keep=16, pruning='random', key=key)

    masks = [np.asarray(draw(s)).reshape(h * w, h * w) > 0 for s in range(64)]
    assert (np.asarray(draw(0)).reshape(h * w, h * w) > 0).tolist() == masks[0].tolist()
    assert (masks[0] != masks[1]).any()
    # 64 draws of probability 1/4 a pair: 16 +- 3.46; over 4096 pairs no one beyond 6 sigma.
    counts = np.sum(masks, axis=0)
    assert abs(counts - 16).max() < 6 * 3.46
    assert counts.std() == pytest.approx(3.46, rel=0.1)
    assert abs(np.corrcoef(masks[0][3], masks[0][4])[0, 1]) < 0.6


def test_random_pruning_differs_by_head_and_not_by_batch():
    q = jnp.zeros((2, 6, 6, 2, 4))
    v = jnp.broadcast_to(jnp.eye(36).reshape(1, 6, 6, 1, 36), (2, 6, 6, 1, 36))
    o = np.asarray(attend(q, q, v, Full(), keep=9, **RANDOM)).reshape(2, 36, 2, 36) > 0
    assert (o[0] == o[1]).all() and (o[0, :, 0] != o[0, :, 1]).any()


@pytest.mark.parametrize('implementation', ['xla', 'reference'])
@pytest.mark.parametrize('graph', [Full(), Local(2)], ids=str)
def test_random_pruning_does_not_see_padding(graph, implementation):
    options = {'drop_rate': 0.5, 'implementation': implementation, **RANDOM}
    q, k, v, _ = inputs(2, 6, 7, 2, 4, 4)
    q, k, v = (jnp.stack([x[0], x[0]]) for x in (q, k, v))
    valid = jnp.zeros((2, 6, 7), bool).at[0, :4, :5].set(True).at[1].set(True)
    run = attending(graph, **options)
    alone = run(q[:1, :4, :5], k[:1, :4, :5], v[:1, :4, :5])
    found = attending(graph, valid=valid, **options)(q, k, v)
    np.testing.assert_allclose(found[:1, :4, :5], alone, atol=1e-6)


def test_gradients_are_right_or_refused():
    q, k, v, weight = inputs(1, 4, 5, 1, 4, 4)

    def loss(q, implementation):
        o = attend(q, k, v, Local(1), keep=2, implementation=implementation)
        return (o * weight).sum()

    with pytest.raises(NotImplementedError, match='inference'):
        jax.grad(loss)(q, 'xla')
    gradient = jax.jit(jax.grad(loss), static_argnums=1)(q, 'reference')
    step = jnp.zeros_like(q).at[0, 2, 3, 0, 1].set(1e-2)
    compiled = jax.jit(loss, static_argnums=1)
    slope = (compiled(q + step, 'xla') - compiled(q - step, 'xla')) / 2e-2
    assert slope == pytest.approx(float(gradient[0, 2, 3, 0, 1]), rel=2e-2, abs=1e-4)


@pytest.mark.slow
def test_memory_of_a_pruned_union_is_linear():
    x = jax.ShapeDtypeStruct((1, 64, 96, 1, 8), jnp.float32)
    graph = Local(2) | Cross()
    run = jax.jit(lambda *x: attend(*x, graph, keep=9, implementation='xla'))
    memory = run.lower(x, x, x).compile().memory_analysis()
    # 64 queries against the map at a time; all pairs would be 151 MB.
    assert memory.temp_size_in_bytes < 24 * 64 * 64 * 96


def largest_by_sort(x, mask, n):
    x = np.where(mask, x.astype(np.float64), -np.inf)
    rank = np.argsort(np.argsort(-x, axis=-1, kind='stable'), axis=-1)
    return (rank < np.minimum(n, mask.sum(-1))[..., None]) & mask


def searching(kind):
    """How an accelerator finds the largest, or how a CPU does."""
    if kind == 'cpu':
        return top_k.largest

    def largest(*arguments):
        with target.tracing_for(kind):
            return top_k_bits.largest(*arguments)

    return largest


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['cpu', 'gpu', 'tpu'])
def test_selection_against_a_sort(kind):
    largest = searching(kind)
    rng = np.random.default_rng(0)
    search = jax.jit(lambda x, mask, n: largest(x, mask, lambda c: jnp.minimum(c, n)))
    unmasked = jax.jit(lambda x, n: largest(x, None, lambda c: jnp.minimum(c, n)))
    normal = rng.standard_normal((3, 5, 333))
    rows = {
        'normal': normal,
        'ties': normal.round(1),
        'zeros of both signs': np.where(normal > 0, 0.0, -0.0),
        'positive': abs(normal),
        'heavy tails': normal / rng.standard_normal((3, 5, 333)) * 1e6,
        'two values': np.where(normal > 1, 1e30, -1e30),
        'denormals': normal * 1e-40,
    }
    for name, x in rows.items():
        x = x.astype(np.float32)
        if name == 'denormals':  # equal to zero on hardware that flushes them: compare counts
            assert (np.asarray(unmasked(x, 100)).sum(-1) == 100).all()
            continue
        mask = rng.random(x.shape) < 0.7
        mask[0, 0] = False
        for n in (1, 7, 100, 233, 330):
            assert (np.asarray(search(x, mask, n)) == largest_by_sort(x, mask, n)).all(), name
            whole = np.ones_like(mask)
            assert (np.asarray(unmasked(x, n)) == largest_by_sort(x, whole, n)).all(), name
        with target.tracing_for('cpu', kind=target.ONNX):
            ranked = top_k.largest(x, mask, lambda c: jnp.minimum(c, 100))
        assert (np.asarray(ranked) == largest_by_sort(x, mask, 100)).all(), name
    integers = rng.integers(-(2**31) + 2, 2**31 - 3, (3, 5, 333), dtype=np.int32)
    assert (np.asarray(search(integers, mask, 40)) == largest_by_sort(integers, mask, 40)).all()
    for length in (5000, 32768, 70000):  # the other ways of counting
        x = rng.standard_normal((2, length)).astype(np.float32)
        whole = np.ones_like(x, bool)
        assert (np.asarray(unmasked(x, 999)) == largest_by_sort(x, whole, 999)).all()


def test_memory_of_pruned_full_at_128_by_256_is_bounded():
    shape = jax.ShapeDtypeStruct((1, 128, 256, 1, 64), jnp.float32)
    run = jax.jit(lambda q, k, v: attend(q, k, v, Full(), drop_rate=0.5))
    compiled = run.lower(shape, shape, shape).compile()
    # All 32,768 x 32,768 scores would be 4 GiB.
    assert compiled.memory_analysis().temp_size_in_bytes < 128 * 2**20


def test_rates_are_exact_in_integers():
    for tenths in range(1, 10):
        prune = pruning.Prune(None, tenths * 1000, None)
        assert int(prune.kept(jnp.int32(10))) == 10 - tenths
        assert int(prune.kept(jnp.int32(524288))) == 524288 - 524288 * tenths // 10
    assert int(pruning.Prune(None, 9999, None).kept(jnp.int32(3))) == 1
