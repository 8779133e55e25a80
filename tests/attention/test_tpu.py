"""The Pallas kernels for TPUs, carried out by XLA; lowering and choices as on a TPU.

Compiled by the compiler of TPUs they are in tests/experiments/ahead/test_tpu.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggcf_jax.attention import (
    Registers,
    attend,
    parse,
    resolve_implementation,
    target,
    tpu_full,
    tpu_local,
    tpu_sizes,
)
from tests.attention.cases import (
    assert_close,
    inputs,
    slow,
    slow_cases,
    values_and_gradients,
)
from tests.helpers import operations

V5E = 'TPU v5 lite'


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(tpu_local, '_INTERPRET', True)
    monkeypatch.setattr(tpu_full, '_INTERPRET', True)


def compare(text, shape, rel, *, channels=(8, 6), v_heads=None, dtype=jnp.float32, **options):
    graph = parse(text)[0]
    q, k, v, weight = inputs(*shape, *channels, v_heads=v_heads, dtype=dtype)

    def by(implementation):
        return lambda *x: attend(*x, graph, implementation=implementation, **options)

    with target.tracing_for('tpu', kind=V5E):
        actual = values_and_gradients(by('pallas'), weight, q, k, v)
    expected = values_and_gradients(by('reference'), weight, q, k, v)
    assert actual[0].dtype == dtype
    assert_close(actual, expected, rel)


def some_valid(shape):
    """Holes in the first image, nothing at all in the second one."""
    valid = np.arange(np.prod(shape)).reshape(shape) % 4 > 0
    valid[1] = False
    return jnp.asarray(valid)


# More than one tile along an axis, windows that reach past the map, heads that share v.
@pytest.mark.parametrize(
    'case',
    [
        ('local:3', (1, 19, 21, 2)),
        *slow(
            [
                ('local:30', (1, 7, 9, 1)),
                ('local:2x0', (2, 5, 7, 1)),
                ('local:0x40', (1, 3, 50, 1)),
                ('local:4', (1, 1, 33, 1)),
                ('local:4', (1, 33, 1, 1)),
                ('local:1', (1, 1, 1, 1)),
                ('local:1@2x3', (1, 7, 9, 2)),
                ('local:25', (1, 40, 50, 1)),
                ('row&local:3', (1, 5, 7, 1)),
            ]
        ),
    ],
    ids=str,
)
def test_local(case, interpreted):
    compare(*case, 1e-5, v_heads=1, scale=-0.5)


@pytest.mark.parametrize('shape', [(1, 7, 9, 2), *slow([(1, 1, 300, 1), (2, 12, 20, 1)])], ids=str)
def test_full(shape, interpreted):
    compare('full', shape, 1e-5, v_heads=1, scale=-0.5)


@pytest.mark.parametrize('text', ['local:2', 'full'])
def test_valid_positions(text, interpreted):
    compare(text, (2, 7, 9, 1), 1e-5, valid=some_valid((2, 7, 9)))


@pytest.mark.slow
@pytest.mark.parametrize('text', ['local:4', 'full'])
@pytest.mark.parametrize('channels', [(20, 136), (130, 5)], ids=str)
def test_bfloat16_and_other_channels(text, channels, interpreted):
    compare(text, (1, 20, 12, 2), 0.012, channels=channels, dtype=jnp.bfloat16, scale=0.25)
    compare(text, (1, 20, 12, 2), 1e-5, channels=channels, v_heads=1, scale=0.25)


@pytest.mark.parametrize('number', [np.nan, -np.inf])
def test_scores_that_are_no_numbers(number, interpreted):
    """A query whose scores are all NaN, or all minus infinity, gets NaN, as everywhere."""
    q, k, v, _ = inputs(1, 5, 7, 1, 4, 4)
    k = jnp.abs(k)
    q = jnp.abs(q).at[0, 2, 3].set(number)
    graph = parse('local:1')[0]
    with target.tracing_for('tpu', kind=V5E):
        found = attend(q, k, v, graph, implementation='pallas', return_lse=True)
    expected = attend(q, k, v, graph, implementation='reference', return_lse=True)
    assert np.isnan(found.o).any(-1).sum() == 1
    np.testing.assert_allclose(found.o, expected.o, atol=1e-5)
    np.testing.assert_allclose(found.lse, expected.lse, atol=1e-5)


@pytest.mark.parametrize(
    ('text', 'shape', 'options'),
    [
        ('local:3', (2, 9, 21, 2), {'drop_rate': 0.7}),
        *slow_cases(
            [
                ('local:30', (2, 7, 9, 1), {'keep': 5}),
                ('local:2x0', (2, 5, 7, 1), {'drop_rate': 0.5}),
                ('local:1@2x3', (2, 7, 9, 2), {'keep': 4}),
                ('local:9', (2, 20, 37, 1), {'keep': 40}),
            ]
        ),
    ],
    ids=str,
)
def test_pruning(text, shape, options, interpreted):
    """The same neighbours: small integers have many ties, and are exact in every order."""
    graph = parse(text)[0]
    valid = some_valid(shape[:3])
    integers = np.random.default_rng(0).integers(-1, 2, (2, *shape, 3)).astype(np.float32)
    q, k, v, _ = inputs(*shape, 3, 6, v_heads=1)
    # The third map is one in which a query has NaN for an affinity, and another minus infinity.
    odd = k.at[0, 1, 2].set(np.nan).at[0, 3, 4].set(-np.inf)
    for a, b in (integers, (q, k), (abs(q), odd)):

        def by(implementation, a=a, b=b):
            return jax.jit(
                lambda q, k, v: attend(
                    q, k, v, graph, valid=valid, implementation=implementation, return_lse=True,
                    **options,
                )
            )(a, b, v)  # fmt: skip

        with target.tracing_for('tpu', kind=V5E):
            found = by('pallas')
        expected = by('reference')
        np.testing.assert_allclose(found.o, expected.o, atol=1e-5)
        np.testing.assert_allclose(found.lse, expected.lse, atol=1e-5)


def test_when_the_kernel_prunes(interpreted):
    asked = {'platform': 'tpu', 'dtype': 'bfloat16', 'extras': ['pruning']}
    assert resolve_implementation(parse('local:8')[0], **asked).implementation == 'pallas'
    x = jnp.zeros((2, 4, 5, 1, 8))
    graph = parse('local:1')[0]
    mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), target.tracing_for('tpu', kind=V5E):
        with pytest.raises(ValueError, match='over devices is left to the partitioner'):
            attend(x, x, x, graph, keep=2, implementation='pallas')
        assert attend(x, x, x, graph, keep=2).shape == x.shape
    with target.tracing_for('tpu', kind=V5E), pytest.raises(NotImplementedError, match='inference'):
        jax.grad(lambda q: attend(q, x, x, graph, keep=2).sum())(x)


@pytest.mark.slow
def test_log_sum_exps_and_registers(interpreted):
    q, k, v, weight = inputs(2, 5, 7, 2, 4, 4)
    registers = Registers(k[:, 0, :3], v[:1, 1, :3])
    graph, valid = parse('local:1')[0], some_valid((2, 5, 7))

    def by(implementation):
        def f(q, k, v, registers):
            options = {'implementation': implementation, 'return_lse': True}
            whole = attend(q, k, v, graph, registers=registers, **options)
            part = attend(q, k, v, graph, valid=valid, **options)
            seen = jnp.where(jnp.isfinite(part.lse), part.lse, 0)
            return whole.o * whole.lse[..., None] + part.o * seen[..., None]

        return f

    with target.tracing_for('tpu', kind=V5E):
        found = values_and_gradients(by('pallas'), weight, q, k, v, registers)
    assert_close(found, values_and_gradients(by('reference'), weight, q, k, v, registers), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('text', ['local:1', 'full'])
def test_under_vmap(text, interpreted):
    q, k, v, _ = inputs(3, 4, 5, 1, 4, 4)
    graph = parse(text)[0]
    expected = attend(q, k, v, graph, implementation='reference')

    def one(*x):
        return attend(*(y[None] for y in x), graph, implementation='pallas')[0]

    with target.tracing_for('tpu', kind=V5E):
        found = jax.jit(jax.vmap(one))(q, k, v)
        shared = jax.jit(jax.vmap(one, (0, None, None)))(q, k[0], v[0])
    assert_close(found, expected, 1e-5)
    assert_close(shared[0], expected[0], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('text', ['local:2', 'local:5', 'full', 'local:1@2'])
def test_under_a_mesh(text, interpreted):
    mesh = jax.make_mesh((2, 2, 1), ('data', 'space', 'model'), axis_types=(AxisType.Auto,) * 3)
    arrays = inputs(2, 8, 6, 1, 4, 4)
    graph = parse(text)[0]
    valid = jnp.arange(96).reshape(2, 8, 6) % 5 > 0

    def by(implementation):
        return lambda *x: attend(*x, graph, implementation=implementation, valid=valid)

    expected = values_and_gradients(by('reference'), arrays[3], *arrays[:3])
    with jax.set_mesh(mesh), target.tracing_for('tpu', kind=V5E):
        placed = [jax.device_put(x, NamedSharding(mesh, P('data', 'space'))) for x in arrays]
        found = values_and_gradients(by('pallas'), placed[3], *placed[:3])
    assert_close(found, expected, 1e-5)


def gradients(text, **options):
    graph = parse(text)[0]

    def f(q, k, v):
        o, pull = jax.vjp(lambda *x: attend(*x, graph, **options), q, k, v)
        return o, pull(o)

    return f


def lowered(text, shape, dtype=jnp.bfloat16, channels=8, **options):
    """StableHLO of forward and backward for a TPU."""
    x = jax.ShapeDtypeStruct((*shape, 1, channels), dtype)
    with target.tracing_for('tpu', kind=V5E):
        traced = jax.jit(gradients(text, **options)).trace(x, x, x)
        return traced.lower(lowering_platforms=('tpu',)).as_text()


CALL = '@tpu_custom_call'


@pytest.mark.parametrize('text', ['local:2', 'full'])
def test_auto_takes_three_kernels_that_do_not_grow(text):
    many = lowered(text, (3, 20, 40))
    assert many.count(CALL) == lowered(text, (1, 20, 40)).count(CALL) == 3


def test_the_platform_decides_when_lowering(monkeypatch):
    plain = jax.jit(lambda *x: attend(*x, parse('local:2')[0]))
    x = jax.ShapeDtypeStruct((1, 6, 7, 1, 8), jnp.float32)
    text_of_cpu = plain.trace(x, x, x).lower(lowering_platforms=('cpu',)).as_text()
    here = (target.Device('tpu', kind=V5E), target.Device('cpu'))
    monkeypatch.setattr(target, '_here', lambda: here)
    traced = jax.jit(lambda *x: attend(*x, parse('local:2')[0])).trace(x, x, x)
    assert CALL in traced.lower(lowering_platforms=('tpu',)).as_text()
    text = traced.lower(lowering_platforms=('cpu',)).as_text()
    assert operations(text) == operations(text_of_cpu)
    assert CALL not in text


@pytest.mark.parametrize('text', ['local:2', *slow(['full'])])
def test_a_symbolic_batch_is_one_image_after_the_other(text, interpreted):
    (b,) = export.symbolic_shape('b')
    arrays = inputs(3, 5, 7, 1, 4, 4)[:3]
    shapes = [jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for x in arrays]
    graph = parse(text)[0]
    with target.tracing_for('tpu', kind=V5E):
        exported = export.export(jax.jit(lambda *x: attend(*x, graph)), platforms=['cpu'])(*shapes)
    assert_close(exported.call(*arrays), attend(*arrays, graph, implementation='reference'), 1e-5)


def test_an_exported_program_has_the_kernels():
    (b,) = export.symbolic_shape('b')
    x = jax.ShapeDtypeStruct((b, 5, 7, 1, 8), jnp.float32)
    with target.tracing_for('tpu', kind=V5E):
        for text in ('local:2', 'full'):
            f = jax.jit(lambda *x, graph=parse(text)[0]: attend(*x, graph))
            assert CALL in export.export(f, platforms=['tpu'])(x, x, x).mlir_module()


@pytest.mark.parametrize(
    'text, options, reason',
    [
        ('grid:8', {}, 'no kernel for grid graphs'),
        ('local:2|row', {}, 'no kernel for union graphs'),
        ('local:8:shift', {}, 'windows that are truncated, not shifted ones'),
        ('full', {'dtype': 'float16'}, 'bfloat16 or float32 alike for q, k and v, not float16'),
        ('full', {'key_channels': 513}, '512 channels, not 513'),
        ('local:8', {'extras': ['bias']}, 'for local graphs does not know bias'),
        ('local:8', {'extras': ['random_pruning']}, 'does not know random_pruning'),
        ('full', {'extras': ['pruning']}, 'for full graphs does not know pruning'),
        ('full', {'extras': ['return_lse', 'registers']}, 'does not know registers, return_lse'),
        ('full', {'platform': 'cpu'}, 'for TPUs, not for a CPU'),
    ],
)
def test_why_it_does_not_apply(text, options, reason):
    asked = {'dtype': 'bfloat16', 'platform': 'tpu', **options}
    resolution = resolve_implementation(parse(text)[0], **asked)
    assert resolution.implementation == 'xla'
    assert reason in resolution.reasons['pallas']
    with pytest.raises(ValueError, match="implementation 'pallas' cannot attend on"):
        resolve_implementation(parse(text)[0], implementation='pallas', **asked)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_where_it_applies(dtype):
    for text in ('full', 'local:8', 'local:3@4'):
        asked = {'dtype': dtype, 'platform': 'tpu', 'extras': ['valid']}
        found = resolve_implementation(parse(text)[0], **asked)
        assert found.implementation == 'pallas' and list(found.reasons) == ['cudnn']
    extras = ['registers', 'return_lse']
    found = resolve_implementation(parse('local:8')[0], platform='tpu', extras=extras)
    assert found.implementation == 'pallas'


def test_slower_ways_work_where_it_does_not(monkeypatch):
    # 12 MiB of VMEM, and windows of more than 100 rows and columns.
    x = jax.ShapeDtypeStruct((1, 128, 128, 1, 64), jnp.float32)
    for kind, taken in (('TPU v4', False), (V5E, True), ('TPU v3', False)):
        with target.tracing_for('tpu', kind=kind):
            text = jax.jit(lambda *x: attend(*x, parse('local:50')[0])).trace(x, x, x)
            text = text.lower(lowering_platforms=('tpu',)).as_text()
        assert (CALL in text) == taken
    with target.tracing_for('tpu'):  # as in a program that is exported
        x = jax.ShapeDtypeStruct((1, 6, 7, 1, 8), jnp.float32)
        f = jax.jit(lambda *x: attend(*x, parse('local:2')[0]))
        assert CALL not in f.trace(x, x, x).lower(lowering_platforms=('tpu',)).as_text()
    # Several TPUs whose arrays may be sharded in a way that nobody knows.
    monkeypatch.setattr(target, 'number', lambda platform: 4)
    assert CALL not in lowered('local:2', (1, 6, 7))
    mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), target.tracing_for('tpu', kind=V5E):
        assert resolve_implementation(parse('local:2')[0]).implementation == 'pallas'
        x = jnp.zeros((1, 4, 5, 1, 8))
        with pytest.raises(ValueError, match='batch of 1 is not divisible by the 2 devices'):
            attend(x, x, x, parse('local:2')[0], implementation='pallas')


def test_windows_are_whole_and_chunks_divide_them():
    for kind in ('', 'TPU v4', V5E, 'TPU v6 lite', 'TPU7x'):
        sizes = tpu_sizes.of_kind(kind)
        for h, w, reach in ((1, 1, (0, 0)), (97, 97, (8, 8)), (128, 256, (24, 24)), (9, 7, (2, 0))):
            cut = tpu_local.plan(h, w, reach, sizes)
            assert cut.window[0] % cut.rows == cut.window[1] % 16 == cut.tile[1] % 16 == 0
            for n, tiles, tile, window, size in zip((h, w), cut.tiles, cut.tile, cut.window, reach):
                assert tiles * tile >= n > (tiles - 1) * tile
                assert window >= tile + 2 * size
    assert tpu_sizes.of_kind('TPU v2') is None


@pytest.mark.parametrize('text', ['local:1', 'local:1@2', 'full'])
def test_second_derivatives_are_refused(interpreted, text):
    x = jnp.ones((1, 4, 5, 1, 8), jnp.bfloat16)

    def loss(q, implementation='auto'):
        o = attend(q, x, x, parse(text)[0], implementation=implementation)
        return o.astype(jnp.float32).sum()

    refused = pytest.raises(
        NotImplementedError, match=r"by Pallas .* jax\.hessian take implementation='xla'"
    )
    with target.tracing_for('tpu', kind=V5E):
        for function in (jax.hessian(loss), jax.hessian(jax.jit(loss))):
            with refused:
                jax.make_jaxpr(function)(x)
        jax.make_jaxpr(jax.hessian(lambda q: loss(q, 'xla')))(x)
