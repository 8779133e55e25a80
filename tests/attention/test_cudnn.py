"""The form that cuDNN takes, with JAX's own attention in cuDNN's place; lowering for NVIDIA GPUs.

No GPU is needed: JAX's questions to the device are answered here.
"""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ggcf_jax.attention import (
    Registers,
    attend,
    cudnn,
    cudnn_rules,
    cudnn_sums,
    parse,
    resolve_implementation,
    target,
)
from tests.attention.cases import assert_close, inputs, slow, values_and_gradients

H100, A100 = (9, 0), (8, 0)


@pytest.fixture
def in_its_place(monkeypatch):
    """JAX's own attention in cuDNN's place, which takes float32 as well, and small tiles."""
    monkeypatch.setattr(cudnn, '_IMPLEMENTATION', 'xla')
    monkeypatch.setattr(cudnn_rules, 'DTYPES', (*cudnn_rules.DTYPES, jnp.float32))
    monkeypatch.setattr(cudnn, 'TILE', (3, 4))
    monkeypatch.setattr(cudnn_sums, 'forward', plain_forward)
    monkeypatch.setattr(cudnn_sums, 'backward', plain_backward)
    cudnn.forget_answers()
    yield
    cudnn.forget_answers()


def plain_scores(arrays, scale):
    s = scale * jnp.einsum('bihc,bjhc->bhij', arrays.q, arrays.k).astype(jnp.float32)
    s = s if arrays.bias is None else s + arrays.bias
    if arrays.of_k is None:
        return s
    return jnp.where(jnp.arange(s.shape[3]) < arrays.of_k[:, None, None, None], s, -jnp.inf)


def plain_forward(arrays, scale):
    """What `cudnn_sums.forward` computes."""
    s = plain_scores(arrays, scale)
    o = jnp.einsum('bhij,bjhc->bihc', jax.nn.softmax(s), arrays.v)
    return o.astype(arrays.v.dtype), jax.nn.logsumexp(s, -1)


def plain_backward(arrays, o, lse, do, scale):
    """What `cudnn_sums.backward` computes: the gradients of the scores from the sums of do * o."""
    p = jnp.exp(plain_scores(arrays, scale) - lse[..., None])
    delta = jnp.einsum('bihc,bihc->bhi', do, o)[..., None]
    ds = scale * p * (jnp.einsum('bihc,bjhc->bhij', do, arrays.v) - delta)
    dq = jnp.einsum('bhij,bjhc->bihc', ds, arrays.k)
    dk = jnp.einsum('bhij,bihc->bjhc', ds, arrays.q)
    return dq, dk, jnp.einsum('bhij,bihc->bjhc', p, do)


@pytest.fixture
def gpu(monkeypatch):
    """Sets the compute capability that JAX finds."""

    def set_capability(capability):
        def at_least(text):
            return capability >= tuple(map(int, text.split('.')))

        for name, answer in (
            ('check_cudnn_version', lambda: 91200),
            ('check_compute_capability', at_least),
            ('is_cuda_compute_capability_equal', lambda text: False),
        ):
            monkeypatch.setattr(fused_attention_stablehlo, name, answer)
        cudnn.forget_answers()

    yield set_capability
    cudnn.forget_answers()


def compare(graph, shape, rel, *, v_heads=None, dtype=jnp.float32, **options):
    q, k, v, weight = inputs(*shape, 8, 6, v_heads=v_heads, dtype=dtype)

    def by(implementation):
        return lambda *x: attend(*x, graph, implementation=implementation, **options)

    with target.tracing_for('gpu', H100):
        actual = values_and_gradients(by('cudnn'), weight, q, k, v)
    expected = values_and_gradients(by('reference'), weight, q, k, v)
    assert actual[0].dtype == dtype
    assert_close(actual, expected, rel)


@pytest.mark.parametrize(
    'text',
    [
        *('full', 'local:2', 'local:2:shift', 'grid:3', 'block:4+3', 'local:1@2'),
        *slow(['row', 'column', 'local:30', 'local:2x0', 'grid:2x5', 'local:1@2x3:shift']),
        *slow(['block:30', 'row&local:3', 'local:7&grid:3', 'grid:30']),
    ],
)
def test_values_and_gradients(text, in_its_place):
    compare(parse(text)[0], (2, 7, 9, 2), 1e-5, v_heads=1, scale=0.5)


@pytest.mark.parametrize(
    'text',
    ['cross', *slow(['local:2|cross', 'local:1|grid:3|row', 'block:3|column', 'grid:3|row'])],
)
def test_parts_are_joined(text, in_its_place):
    compare(parse(text)[0], (2, 7, 9, 2), 1e-5, v_heads=1, scale=0.5)
    valid = jnp.arange(2 * 7 * 9).reshape(2, 7, 9) % 9 < 4  # whole columns are not
    compare(parse(text)[0], (2, 7, 9, 1), 1e-5, valid=valid)


@pytest.mark.parametrize('text', ['local:2', *slow(['full', 'grid:3', 'cross'])])
def test_sums_and_registers(text, in_its_place):
    graph = parse(text)[0]
    q, k, v, weight = inputs(2, 7, 5, 2, 8, 6)
    tokens = [x[:, 0, :2] for x in (k, v)]
    registers = Registers(*tokens)

    def by(implementation):
        def f(q, k, v, *tokens):
            options = {'implementation': implementation, 'return_lse': True}
            part = attend(q, k, v, graph, registers=Registers(*tokens), **options)
            return part.o + jnp.sin(part.lse)[..., None]

        return f

    with target.tracing_for('gpu', H100):
        found = values_and_gradients(by('cudnn'), weight, q, k, v, *registers)
    expected = values_and_gradients(by('reference'), weight, q, k, v, *registers)
    assert_close(found, expected, 1e-5)


def test_values_of_more_channels_than_cudnn_takes(in_its_place, monkeypatch):
    monkeypatch.setattr(cudnn_rules.CudnnKernels, 'most_channels', lambda self, device: 16)
    q, k, _, _ = inputs(1, 5, 6, 1, 8, 8)
    _, _, v, weight = inputs(1, 5, 6, 1, 8, 37)
    for text in ('grid:2', 'cross'):

        def by(implementation, graph=parse(text)[0]):
            return lambda *x: attend(*x, graph, implementation=implementation)

        with target.tracing_for('gpu', H100):
            found = values_and_gradients(by('cudnn'), weight, q, k, v)
        assert_close(found, values_and_gradients(by('reference'), weight, q, k, v), 1e-5)


@pytest.mark.parametrize(
    'text', ['local:2', 'grid:3', *slow(['full', 'local:2:shift', 'block:4+3', 'local:1@2'])]
)
def test_valid_positions(text, in_its_place):
    valid = jnp.arange(63).reshape(1, 7, 9) % 4 > 0
    # The second image has nothing below its fourth row: queries without neighbours.
    valid = jnp.concatenate([valid, valid & (jnp.arange(7) < 4)[:, None]])
    compare(parse(text)[0], (2, 7, 9, 2), 1e-5, v_heads=1, valid=valid)


@pytest.mark.slow
@pytest.mark.parametrize('text', ['full', 'local:1', 'grid:2', 'block:2', 'local:1:shift'])
@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (2, 1, 7, 1), (1, 5, 3, 3)], ids=str)
def test_lines_and_odd_sizes(text, shape, in_its_place):
    compare(parse(text)[0], shape, 1e-5, scale=-0.5)


@pytest.mark.parametrize(
    'text', ['local:2', *slow(['local:2:shift', 'local:30', 'local:4x1', 'local:1@2x3:shift'])]
)
def test_a_bias_hides_where_there_is_no_room_for_channels(text, in_its_place, monkeypatch):
    monkeypatch.setattr(cudnn_rules.CudnnKernels, 'most_channels', lambda self, device: 8)
    valid = jnp.arange(2 * 7 * 9).reshape(2, 7, 9) % 4 > 0
    compare(parse(text)[0], (2, 7, 9, 2), 1e-5, v_heads=1, scale=-0.5)
    monkeypatch.setattr(cudnn_rules.CudnnKernels, 'most_channels', lambda self, device: 16)
    monkeypatch.setattr(cudnn, 'TILE', (5, 4))
    if 'shift' in text:
        with pytest.raises(ValueError, match=r'images of a batch end .* local needs 9 channels'):
            compare(parse(text)[0], (2, 7, 9, 2), 1e-5, v_heads=1, valid=valid)
    else:
        compare(parse(text)[0], (2, 7, 9, 2), 1e-5, v_heads=1, valid=valid)


def test_overlapping_windows_add_in_float32(in_its_place):
    """A key of 25 windows: sums in bfloat16 would be off by more."""
    compare(parse('local:4')[0], (1, 12, 16, 1), 0.012, dtype=jnp.bfloat16)
    compare(parse('full')[0], (1, 5, 7, 2), 0.012, dtype=jnp.bfloat16, v_heads=1)


def test_under_vmap(in_its_place):
    q, k, v, _ = inputs(3, 4, 5, 1, 4, 4)
    graph = parse('local:1')[0]
    expected = attend(q, k, v, graph, implementation='reference')
    with target.tracing_for('gpu', H100):

        def one(*x):
            return attend(*(y[None] for y in x), graph, implementation='cudnn')[0]

        found = jax.jit(jax.vmap(one))(q, k, v)
        shared = jax.jit(jax.vmap(one, (0, None, None)))(q, k[0], v[0])
    assert_close(found, expected, 1e-5)
    assert_close(shared[0], expected[0], 1e-5)


@pytest.mark.parametrize('axes', [('data',), *slow([('data', 'space'), ('space',)])], ids=str)
@pytest.mark.parametrize('text', ['local:2', *slow(['full', 'grid:2', 'block:3', 'column'])])
def test_under_a_mesh(axes, text, in_its_place):
    shape = {1: (4,), 2: (2, 2)}[len(axes)]
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    arrays = inputs(4, 8, 6, 1, 4, 4)
    graph = parse(text)[0]

    def by(implementation):
        return lambda *x: attend(*x, graph, implementation=implementation)

    expected = values_and_gradients(by('reference'), arrays[3], *arrays[:3])
    rows = P('data' if 'data' in axes else None, 'space' if 'space' in axes else None)
    with jax.set_mesh(mesh), target.tracing_for('gpu', H100):
        placed = [jax.device_put(x, NamedSharding(mesh, rows)) for x in arrays]
        found = values_and_gradients(by('cudnn'), placed[3], *placed[:3])
    assert_close(found, expected, 1e-5)


def lowered(graph, shape, channels, dtype=jnp.bfloat16, heads=1, implementation='auto'):
    """What forward and backward are for an NVIDIA GPU: StableHLO, and cuDNN's calls in it."""
    q = jax.ShapeDtypeStruct((*shape, heads, channels[0]), dtype)
    v = jax.ShapeDtypeStruct((*shape, 1, channels[1]), dtype)

    def both(q, k, v):
        o, pull = jax.vjp(lambda *x: attend(*x, graph, implementation=implementation), q, k, v)
        return o, pull(o)

    with target.tracing_for('gpu', H100):
        text = jax.jit(both).trace(q, q, v).lower(lowering_platforms=('cuda',)).as_text()
    return text, collections.Counter(re.findall(r'__cudnn\$(\w+)', text))


# Feature maps of the recipes: crops of 769 and 768 and whole images of Cityscapes, ADE20K, CamVid.
RECIPE_SHAPES = [(1, 97, 97), *slow([(2, 96, 96), (1, 128, 256), (4, 65, 65), (1, 90, 120)])]


@pytest.mark.parametrize('shape', RECIPE_SHAPES, ids=str)
@pytest.mark.parametrize(
    'text', ['local:8', 'local:24', 'grid:8', 'grid:24', 'full', *slow(['local:16', 'grid:16'])]
)
def test_every_shape_of_the_recipes_is_taken(text, shape, gpu):
    gpu(H100)
    graph = parse(text)[0]
    sizes, is_local = 1, text.startswith('local')
    if text.startswith('grid'):  # one call for each size of a group
        stride = int(text.partition(':')[2])
        sizes = np.prod([1 + (n % stride > 0) for n in shape[1:]])
    # The number of channels matters where windows are cut for it, and there on every map.
    for channels in (64, 128, 256) if shape[1:] == (97, 97) else (64, 256)[: 1 + is_local]:
        calls = lowered(graph, shape, (channels, channels))[1]
        if is_local and channels == 256:  # windows at the border by themselves
            kinds = {'fmhaScaleBiasSoftmax', 'fmhaScaleBiasSoftmaxBackward'}
            assert set(calls) == kinds and max(calls.values()) <= 16
        else:
            assert calls == {'fmhaSoftmax': sizes, 'fmhaSoftmaxBackward': sizes}


@pytest.mark.parametrize('text', ['local:8', 'grid:8', 'full', 'block:8', 'row', 'local:3@4'])
def test_calls_do_not_grow_with_batch_and_heads(text, gpu):
    gpu(H100)
    graph = parse(text)[0]
    for dtype in (jnp.bfloat16, jnp.float16):
        one = lowered(graph, (1, 24, 32), (20, 12), dtype)[1]
        assert one == lowered(graph, (6, 24, 32), (20, 12), dtype, heads=3)[1]
        assert one == {'fmhaSoftmax': 1, 'fmhaSoftmaxBackward': 1}


def test_a_mesh_has_one_call_for_each_device(gpu):
    gpu(H100)
    mesh = jax.make_mesh((4, 2), ('data', 'space'), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        for text in ('full', 'local:3', 'grid:2'):
            calls = lowered(parse(text)[0], (8, 16, 12), (16, 16))[1]
            assert calls == {'fmhaSoftmax': 1, 'fmhaSoftmaxBackward': 1}


def test_calls_of_parts(gpu):
    gpu(H100)
    for text, parts in (('cross', 2), ('local:3|cross', 3), ('local:2|grid:8', 2)):
        q = jax.ShapeDtypeStruct((2, 16, 24, 1, 12), jnp.bfloat16)
        calls = lowered(parse(text)[0], q.shape[:3], (12, 12))[1]
        assert sum(n for name, n in calls.items() if not name.endswith('Backward')) == parts
        assert sum(n for name, n in calls.items() if name.endswith('Backward')) == parts


@pytest.mark.parametrize('has_bias', [False, True])
@pytest.mark.parametrize('m', [32, 31])
def test_arrays_that_cudnn_takes(gpu, m, has_bias):
    """The gradient takes what the forward pass took and gave; an odd length, lengths as well."""
    gpu(H100)
    q = jax.ShapeDtypeStruct((2, m, 3, 16), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((2, 48, 3, 16), jnp.bfloat16)
    bias = jnp.zeros((1, 3, m, 48), jnp.bfloat16) if has_bias else None

    def total(q, k, v):
        o, lse = cudnn_sums.attend(q, k, v, bias, 0.25)
        return o.astype(jnp.float32).sum() + lse.sum()

    gradient = jax.jit(jax.grad(total, (0, 1, 2)))
    text = gradient.trace(q, k, k).lower(lowering_platforms=('cuda',)).as_text()
    calls = re.findall(r'@__cudnn\$(\w+)\(.* : \((.*)\) ->', text)
    of_q, of_k, of_bias = '2x32x3x16xbf16', '2x48x3x16xbf16', ['1x3x32x48xbf16'] * has_bias
    lengths = ['2xi32', '2xi32'] * (m % 2)
    name = 'fmhaScaleBiasSoftmax' if has_bias else 'fmhaSoftmax'
    found = {called: re.findall(r'tensor<(\w+)>', arrays) for called, arrays in calls}
    assert found == {
        name: [of_q, of_k, of_k, *of_bias, *lengths],
        f'{name}Backward': [of_q, of_k, of_k, '2x3x32xf32', of_q, *of_bias, of_q, *lengths],
    }


def test_it_can_be_exported(gpu):
    gpu(H100)
    x = jax.ShapeDtypeStruct((1, 97, 97, 1, 64), jnp.bfloat16)
    allowed = [export.DisabledSafetyCheck.custom_call('__cudnn$fmhaSoftmax')]
    with target.tracing_for('gpu', H100):
        f = jax.jit(lambda *x: attend(*x, parse('full')[0]))
        exported = export.export(f, platforms=['cuda'], disabled_checks=allowed)(x, x, x)
    assert '__cudnn$fmhaSoftmax' in exported.mlir_module()
    # For a GPU that is not known, it is XLA's form, which every GPU takes.
    with target.tracing_for('gpu'):
        f = jax.jit(lambda *x: attend(*x, parse('full')[0]))
        exported = export.export(f, platforms=['cuda'])(x, x, x)
    assert '__cudnn$' not in exported.mlir_module()


def test_the_platform_decides_when_lowering(gpu, monkeypatch):
    gpu(H100)
    here = (target.Device('gpu', H100), target.Device('cpu'))
    plain = jax.jit(lambda *x: attend(*x, parse('local:2')[0]))
    x = jax.ShapeDtypeStruct((1, 6, 7, 1, 8), jnp.bfloat16)

    def compiled_for_cpu(traced):
        text = traced.lower(lowering_platforms=('cpu',)).compile().as_text()
        return collections.Counter(re.findall(r'= \S+ ([\w-]+)\(', text))

    alone = compiled_for_cpu(plain.trace(x, x, x))
    monkeypatch.setattr(target, '_here', lambda: here)
    traced = jax.jit(lambda *x: attend(*x, parse('local:2')[0])).trace(x, x, x)
    assert '__cudnn$fmhaSoftmax' in traced.lower(lowering_platforms=('cuda',)).as_text()
    assert compiled_for_cpu(traced) == alone
    assert '__cudnn$' not in traced.lower(lowering_platforms=('tpu',)).as_text()


@pytest.mark.parametrize(
    'text, options, reason',
    [
        ('full', {'dtype': 'float32'}, 'bfloat16 or float16'),
        ('local:1:shift|row', {'extras': ['valid']}, 'depends on where each image ends'),
        (
            'local:1:shift',
            {'key_channels': 240, 'extras': ['valid']},
            'where images of a batch end',
        ),
        ('full', {'key_channels': 257}, '256 channels on compute capability 9.0'),
        ('local:8', {'key_channels': 256, 'extras': ['valid']}, 'local with valid needs 264'),
        ('full', {'compute_capability': A100, 'key_channels': 136}, '128 channels'),
        ('full', {'compute_capability': (7, 5)}, 'compute capability 8.0, the GPU has 7.5'),
        ('full', {'compute_capability': None}, 'not known for which NVIDIA GPU'),
        ('full', {'platform': 'cpu'}, 'NVIDIA GPUs, not on a CPU'),
        ('grid:8', {'platform': 'tpu'}, 'NVIDIA GPUs, not on a TPU'),
        ('learned', {}, 'no form of learned'),
        ('local:8', {'scale': 0.0}, 'scale of 0.0 is too small'),
        *(('full', {'extras': [extra]}, f'does not know {extra}') for extra in ('bias', 'pruning')),
    ],
)
def test_why_it_does_not_apply(text, options, reason):
    asked = {'dtype': 'bfloat16', 'platform': 'gpu', 'compute_capability': H100, **options}
    resolution = resolve_implementation(parse(text)[0], **asked)
    assert resolution.implementation == 'xla'
    assert reason in resolution.reasons['cudnn']
    with pytest.raises(ValueError, match="implementation 'cudnn' cannot attend on"):
        resolve_implementation(parse(text)[0], implementation='cudnn', **asked)


@pytest.mark.parametrize(
    'text', ['full', 'local:8', 'grid:8', 'row', 'column', 'block:8', 'local:3@4']
)
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_where_it_applies(text, dtype):
    for capability, most in ((H100, 256), (A100, 128)):
        asked = {'dtype': dtype, 'platform': 'gpu', 'compute_capability': capability}
        found = resolve_implementation(parse(text)[0], key_channels=most, **asked)
        assert found == ('cudnn', {})


def test_slower_ways_work_where_it_does_not(gpu):
    gpu(A100)
    graph = parse('full')[0]
    with target.tracing_for('gpu', A100):
        assert resolve_implementation(graph, dtype='bfloat16').implementation == 'cudnn'
        for options in ({'dtype': 'float32'}, {'dtype': 'bfloat16', 'key_channels': 130}):
            assert resolve_implementation(graph, **options).implementation == 'xla'
    assert not lowered(graph, (1, 4, 5), (8, 8), jnp.float32)[1]
    block = parse('block:1')[0]  # more sequences than a CUDA grid has blocks
    assert not lowered(block, (1, 300, 300), (8, 8))[1]
    x = jnp.zeros((1, 4, 5, 1, 8), jnp.bfloat16)
    with target.tracing_for('gpu', A100), pytest.raises(ValueError, match='does not know pruning'):
        attend(x, x, x, graph, keep=2, implementation='cudnn')
    with jax.set_mesh(jax.make_mesh((8,), ('model',), axis_types=(AxisType.Auto,))):
        assert not lowered(graph, (1, 4, 5), (8, 8))[1]


@pytest.mark.parametrize('text', ['full', 'local:1', 'cross'])
def test_second_derivatives_are_refused(gpu, text):
    gpu(H100)
    x = jnp.ones((1, 2, 3, 1, 8), jnp.bfloat16)

    def loss(q, implementation='auto'):
        o = attend(q, x, x, parse(text)[0], implementation=implementation)
        return o.astype(jnp.float32).sum()

    def along(do):  # linear in the gradient of the output
        return jax.grad(lambda q: (loss(q) * do.astype(jnp.float32)).sum())(x).sum()

    refused = pytest.raises(
        NotImplementedError, match=r"by cuDNN .* jax\.hessian take implementation='xla'"
    )
    with target.tracing_for('gpu', H100):
        for function in (jax.hessian(loss), jax.hessian(jax.jit(loss)), jax.grad(along)):
            with refused:
                jax.make_jaxpr(function)(x)
        jax.make_jaxpr(jax.hessian(lambda q: loss(q, 'xla')))(x)


def test_without_a_gpu_its_absence_is_the_reason():
    cudnn.forget_answers()
    with target.tracing_for('gpu', H100):
        found = resolve_implementation(parse('full')[0], dtype='bfloat16')
    assert found.implementation == 'xla' and 'cuDNN' in found.reasons['cudnn']
