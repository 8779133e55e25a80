"""Convolutions and pooling as CPUs and TPUs get them, against the plain operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax.attention import target
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models.layers import extent as extent_lib
from ggcf_jax.models.layers import forms, narrow, overlaps, winograd
from ggcf_jax.models.layers.conv import conv
from ggcf_jax.models.layers.depthwise import depthwise
from ggcf_jax.models.layers.layer_norm import layer_norm
from ggcf_jax.models.layers.linear import linear
from ggcf_jax.models.layers.norm import ACTIVATIONS, gelu
from ggcf_jax.models.layers.pool import max_pool
from ggcf_jax.models.layers.resize import upsample
from ggcf_jax.training.losses import pixels

SIZES = [(5, 8), (1, 2)]


def assert_equal_values_and_gradients(f, rng, *arguments, rtol=0.0, atol=0.0, form='cpu'):
    """`f` as traced for a platform with forms of its own and for a GPU: outputs and gradients."""
    results = {}
    weight = None
    for platform in ('gpu', form):
        with target.tracing_for(platform):
            y, pull = jax.vjp(jax.jit(lambda *x: f(*x)), *arguments)
            if weight is None:
                weight = jnp.asarray(rng.normal(size=y.shape), y.dtype)
            results[platform] = jax.tree.leaves((y, *pull(weight)))
    for cpu, gpu in zip(results[form], results['gpu']):
        assert cpu.dtype == gpu.dtype
        np.testing.assert_allclose(
            np.float32(cpu), np.float32(gpu), rtol=rtol, atol=atol * float(jnp.abs(gpu).max())
        )


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(
    ('channels', 'features', 'kernel', 'options'),
    [
        (5, 7, 1, {}),
        (4, 3, 1, {'stride': 2, 'use_bias': True}),
        (3, 6, 1, {}),
        (3, 12, 7, {'stride': 2}),
        (3, 20, 3, {'stride': 2}),
        (3, 40, 3, {}),
        (4, 6, 3, {'stride': 2, 'dilation': 2}),
    ],
)
def test_convolution(rng, size, channels, features, kernel, options):
    layer = conv(channels, features, kernel, dtype=jnp.float32, rngs=nnx.Rngs(0), **options)
    graphdef, params = nnx.split(layer)
    x = jnp.asarray(rng.normal(size=(2, *size, channels)), jnp.float32)

    def f(kernel, x):
        params_ = nnx.as_pure(params)
        return nnx.merge(graphdef, {**params_, 'kernel': kernel}, copy=True)(x)

    assert_equal_values_and_gradients(
        f, rng, nnx.as_pure(params)['kernel'], x, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('size', [(5, 8), (6, 7), (1, 2)])
@pytest.mark.parametrize(
    ('channels', 'features', 'kernel', 'strides', 'padding'),
    [
        (3, 16, 7, (2, 2), ((3, 3), (3, 3))),  # images: in pairs and with zeros
        (3, 24, 7, (2, 2), ((3, 3), (3, 3))),
        (3, 32, 5, (1, 3), ((2, 2), (1, 5))),
        (3, 20, 4, (3, 2), ((1, 2), (2, 1))),
        (3, 9, 3, (2, 2), ((1, 1), (0, 1))),
        (3, 5, 3, (1, 1), ((1, 1), (1, 1))),
        (3, 32, 7, (4, 4), ((3, 3), (3, 3))),
        (16, 16, 3, (1, 1), ((1, 1), (1, 1))),  # pairs everywhere
        (5, 7, 3, (1, 1), ((0, 2), (3, 1))),
        (6, 16, 5, (2, 2), ((2, 2), (2, 2))),
        (2, 4, 2, (1, 3), ((1, 0), (0, 4))),
        (17, 16, 3, (1, 1), ((1, 1), (1, 1))),  # pairs in the gradient of the kernel
        (24, 24, 3, (1, 1), ((1, 1), (1, 1))),  # zeros there
        (4, 20, 3, (2, 2), ((1, 1), (1, 1))),
    ],
)
def test_few_features(rng, size, channels, features, kernel, strides, padding):
    x = jnp.asarray(rng.normal(size=(2, *size, channels)), jnp.float32)
    taps = jnp.asarray(rng.normal(size=(kernel, kernel, channels, features)), jnp.float32)
    geometry = narrow.Geometry(strides, padding, None)

    def f(x, kernel):
        if target.current() == 'cpu':
            return narrow.convolve(x, kernel, geometry)
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    assert_equal_values_and_gradients(f, rng, x, taps, rtol=1e-5, atol=2e-6)
    gradients = []  # of gradients
    for platform in ('cpu', 'gpu'):
        with target.tracing_for(platform):
            gradient = jax.grad(lambda x, taps: (f(x, taps) ** 2).mean(), (0, 1))
            along = lambda x, taps: sum((d**2).sum() for d in gradient(x, taps))  # noqa: E731, B023
            gradients.append(jax.jit(jax.grad(along, (0, 1)))(x, taps))
    for found, expected in zip(*gradients):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(('size', 'kernel'), [(32, '3x4x16x32'), (8, '3x3x16x16')])
def test_few_features_of_large_maps_are_computed_in_pairs(size, kernel):
    """Forward, the gradient of the input and that of the kernel."""
    layer = conv(16, 16, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(layer)

    def squares(params, x):
        return (nnx.merge(graphdef, params, copy=True)(x) ** 2).sum()

    with target.tracing_for('cpu'):
        gradients = jax.jit(jax.grad(squares, argnums=(0, 1)))
        text = gradients.lower(params, jnp.zeros((1, size, size, 16))).as_text()
    convolutions = [line for line in text.splitlines() if 'stablehlo.convolution' in line]
    assert [f'tensor<{kernel}xf32>' in line for line in convolutions] == [True] * 3


@pytest.mark.parametrize('options', [{}, {'stride': 2, 'use_bias': True}])
def test_convolution_of_one_position_on_a_tpu(rng, options):
    layer = conv(4, 3, 1, dtype=jnp.float32, rngs=nnx.Rngs(0), **options)
    x = jnp.asarray(rng.normal(size=(2, 5, 8, 4)), jnp.float32)
    assert_equal_values_and_gradients(layer, rng, x, rtol=1e-5, atol=1e-6, form='tpu')
    with target.tracing_for('tpu'):
        assert 'stablehlo.convolution' not in jax.jit(lambda x: layer(x)).lower(x).as_text()


def test_convolution_in_bfloat16(rng):
    for channels, features, kernel in ((5, 7, 1), (3, 8, 3)):
        layer = conv(channels, features, kernel, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        x = jnp.asarray(rng.normal(size=(2, 5, 6, channels)), jnp.bfloat16)
        assert_equal_values_and_gradients(layer, rng, x, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ('size', 'dilation'), [((5, 8), 1), ((9, 4), 2), ((1, 2), 1), ((8, 3), 1), ((6, 5), 2)]
)
def test_depthwise_convolution(rng, dtype, size, dilation):
    """Seven taps to a side, on maps that are smaller, too: zeros around, one channel by another."""
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), dtype)
    kernel = jnp.asarray(rng.normal(size=(7, 7, 1, 3)), dtype)
    tolerance = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}[dtype]
    bias = jnp.asarray(rng.normal(size=3), jnp.float32)
    f = functools.partial(depthwise, dilation=dilation)
    for given in ((x, kernel), (x, kernel, bias)):
        assert_equal_values_and_gradients(f, rng, *given, rtol=tolerance, atol=tolerance / 2)


@pytest.mark.parametrize('options', [{}, {'dilation': 2}, {'stride': 2}])
def test_depthwise_convolution_of_nine_taps(rng, options):
    """Shifted products on every platform, against a grouped convolution."""
    x = jnp.asarray(rng.normal(size=(2, 6, 5, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 3)), jnp.float32)
    reach = options.get('dilation', 1)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (options.get('stride', 1),) * 2,
            ((reach, reach), (reach, reach)),
            rhs_dilation=(reach, reach),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=3,
        )

    def f(x, kernel, bias):
        if target.current() == 'cpu':
            return depthwise(x, kernel, bias, **options)
        return grouped(x, kernel) + bias

    bias = jnp.asarray(rng.normal(size=3), jnp.float32)
    assert_equal_values_and_gradients(f, rng, x, kernel, bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('name', ['relu', 'gelu'])
def test_activation(rng, name, dtype):
    x = jnp.concatenate([jnp.asarray(rng.normal(size=9), dtype), jnp.array([0.0, -0.0], dtype)])
    close = {jnp.float32: 1e-6, jnp.bfloat16: 1e-2}[dtype] * (name == 'gelu')
    assert_equal_values_and_gradients(ACTIVATIONS[name], rng, x, rtol=close, atol=close)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_relu_of_what_is_not_finite(value):
    with target.tracing_for('cpu'):
        found, gradient = jax.value_and_grad(lambda x: ACTIVATIONS['relu'](x))(jnp.float32(value))
    np.testing.assert_array_equal(found, jax.nn.relu(value))
    np.testing.assert_array_equal(gradient, jax.grad(jax.nn.relu)(value))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('shape', [(2, 3, 5, 7), (4, 6), (6,), (1, 1, 1, 3)])
def test_layer_norm(rng, shape, dtype):
    graphdef, params = nnx.split(layer_norm(shape[-1], dtype=dtype, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: x + jnp.float32(rng.normal(size=x.shape)), nnx.as_pure(params))
    x = jnp.asarray(rng.normal(loc=3, size=shape), dtype)

    def f(params, x):
        return nnx.merge(graphdef, params, copy=True)(x)

    close = {jnp.float32: 1e-5, jnp.bfloat16: 3e-2}[dtype]
    assert_equal_values_and_gradients(f, rng, params, x, rtol=close, atol=close)


@pytest.mark.parametrize('form', ['cpu', 'gpu'])
def test_layer_norm_of_one_channel_is_its_bias(rng, form):
    """Its gradient is a difference of equal numbers, which XLA may round once instead of twice."""
    graphdef, params = nnx.split(layer_norm(1, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: jnp.full(x.shape, 0.7), nnx.as_pure(params))
    x, weight = (jnp.asarray(rng.normal(size=(2, 3, 1)), jnp.float32) for _ in range(2))
    with target.tracing_for(form):
        f = jax.jit(lambda params, x: nnx.merge(graphdef, params, copy=True)(x))
        y, pull = jax.vjp(f, params, x)
        dparams, dx = pull(weight)
    np.testing.assert_array_equal(y, np.full_like(x, 0.7))
    np.testing.assert_allclose(dparams['bias'], weight.sum((0, 1)), rtol=1e-6)
    np.testing.assert_array_equal(dparams['scale'], 0)
    largest = 0.7 * np.abs(weight) / np.sqrt(1e-6)  # the terms of the difference
    assert (np.abs(dx) <= 1e-6 * largest).all()


def test_sums_of_a_layer_norm_are_apart_from_products():
    """YNNPACK computes both as one, with all that is between and before them, but not as fast."""
    graphdef, params = nnx.split(layer_norm(32, dtype=jnp.float32, rngs=nnx.Rngs(0)))

    def f(params, x, kernel):
        return nnx.merge(graphdef, params, copy=True)(x[..., :32] + gelu(x) @ kernel)

    x, kernel = jnp.ones((1, 64, 64, 128)), jnp.ones((128, 32))
    text = jax.jit(f).lower(params, x, kernel).compile().as_text()
    computations = text.split('\n\n')
    sums = [each for each in computations if ' reduce(' in each]
    assert sums and not any(' dot(' in each for each in sums)


def test_linear(rng):
    layer = linear(5, 7, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(layer)

    def f(params, x):
        return nnx.merge(graphdef, params, copy=True)(x)

    x = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    assert_equal_values_and_gradients(f, rng, nnx.as_pure(params), x, rtol=1e-5, atol=1e-6)


def direct(x, kernel, dilation):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((dilation, dilation),) * 2, rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip


@pytest.mark.parametrize('form', [winograd, overlaps])
@pytest.mark.parametrize(
    ('size', 'channels', 'features', 'dilation'),
    [
        ((4, 8), 64, 96, 1),
        ((5, 1), 3, 4, 1),
        ((7, 12), 4, 3, 2),
        ((9, 3), 3, 2, 4),  # most taps meet no column
    ],
)
def test_products_for_a_convolution(rng, monkeypatch, form, size, channels, features, dilation):
    if channels == 3:  # the gradient of the kernel by Winograd's products, too
        monkeypatch.setattr(winograd, '_GRADIENT_TRANSFORM', -1)
    x = jnp.asarray(rng.normal(size=(2, *size, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels, features)), jnp.float32)
    results = []
    for f in (form.convolve, direct):
        f = functools.partial(f, dilation=dilation)
        y, pull = jax.vjp(jax.jit(f), x, kernel)
        results.append((y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))))
    for result, expected in zip(*results):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-6 * scale)


@pytest.mark.parametrize('form', [winograd, overlaps])
@pytest.mark.parametrize('by_products', [True, False])  # Winograd's gradient of the kernel
def test_gradients_of_each_image_and_second_ones(rng, monkeypatch, form, by_products):
    monkeypatch.setattr(winograd, '_GRADIENT_TRANSFORM', -1 if by_products else 1000)
    x = jnp.asarray(rng.normal(size=(3, 1, 5, 4, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 2)), jnp.float32)
    results = []
    for convolve in (form.convolve, direct):
        loss = lambda x, kernel: (convolve(x, kernel, 2) ** 2).mean()  # noqa: E731, B023
        gradient = jax.grad(loss, (0, 1))
        along = lambda x, kernel: sum(  # noqa: E731
            (d**2).sum()
            for d in gradient(x, kernel)  # noqa: B023
        )
        results.append(
            (
                *jax.vmap(gradient, (0, None))(x, kernel),
                *jax.grad(along, (0, 1))(x[0], kernel),
                jax.jvp(gradient, (x[0], kernel), (x[1], 2 * kernel))[1][0],
            )
        )
    for result, expected in zip(*results):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5 * scale)


def products(size, channels, features, dilation=1, *, stride=1, dtype=jnp.float32) -> int:
    """Number of products that a 3x3 convolution is computed by on a CPU; 0: it is one."""
    layer = conv(
        channels, features, 3, stride=stride, dilation=dilation, dtype=dtype, rngs=nnx.Rngs(0)
    )
    text = str(jax.make_jaxpr(layer)(jnp.zeros((1, *size, channels), dtype)))
    return 0 if 'conv_general_dilated' in text else text.count('dot_general')


def test_products_where_they_pay():
    assert products((16, 16), 64, 96, 2) == 16
    assert products((16, 16), 16, 16) == 0  # transforms would take longer
    assert products((17, 17), 256, 256, 4) == 16
    assert products((17, 17), 256, 256, 6) == 9  # many taps in the padding
    assert products((16, 16), 64, 96, 2, stride=2) == 0
    assert products((16, 16), 64, 96, 2, dtype=jnp.bfloat16) == 0  # too coarse
    with forms.keeping_convolutions():
        assert products((16, 16), 64, 96, 2) == 0


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('size', [*SIZES, (1, 1), (4, 6), (7, 9), (6, 1)])
def test_max_pool(rng, size, dtype):
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), dtype)
    close = {jnp.float32: 1e-6, jnp.bfloat16: 1e-2}[dtype]  # of sums of up to four gradients
    assert_equal_values_and_gradients(max_pool, rng, x, atol=close)


def test_gradients_of_each_image_and_second_ones_of_max_pool(rng):
    x, direction = jnp.asarray(rng.normal(size=(2, 3, 1, 5, 8, 2)), jnp.float32)
    results = []
    for form in ('cpu', 'gpu'):
        with target.tracing_for(form):
            gradient = jax.grad(lambda x: (max_pool(x) ** 3).mean())
            each = jax.vmap(gradient)(x)
            along = lambda x: (gradient(x) * jnp.cos(x)).sum()  # noqa: E731, B023
            _, change = jax.jvp(gradient, (x[0],), (direction[0],))
            results.append((each, jax.grad(along)(x[0]), change))
    for result, expected in zip(*results):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)


def test_largest_entries_of_windows_are_found_once():
    """Else XLA finds them anew for each of the four positions of the map that read one."""
    gradient = jax.grad(lambda x: (max_pool(x) ** 2).sum())
    text = jax.jit(gradient).lower(jnp.zeros((1, 32, 32, 8))).compile().as_text()
    assert sum(' call(' in line and 's8[1,16,16,8]' in line for line in text.splitlines()) == 1


def test_max_pool_of_equal_values(rng):
    """The first of the largest gets the gradient, as in the window of the other platforms."""
    x = jnp.asarray(rng.integers(0, 2, size=(2, 9, 8, 3)), jnp.float32)
    assert_equal_values_and_gradients(max_pool, rng, x, atol=1e-6)


def test_max_pool_keeps_what_is_not_finite():
    x = jnp.zeros((1, 5, 5, 1)).at[0, 3, 3, 0].set(jnp.nan)
    expected = [[False, False, False], [False, True, True], [False, True, True]]
    assert jnp.isnan(max_pool(x))[0, :, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ('stride', 'size', 'first'),
    [(8, (33, 24), 0.0), (8, (1, 7), 0.0), (1, (3, 5), 0.0), (8, (32, 21), 3.5), (4, (10, 3), 1.5)],
)
def test_upsampling(rng, stride, size, first):
    x = jnp.asarray(rng.normal(size=(2, *(-(-n // stride) for n in size), 3)), jnp.float32)
    assert_equal_values_and_gradients(
        lambda x: upsample(x, stride, size, first=first), rng, x, rtol=1e-5, atol=1e-6
    )


def test_upsampling_in_bfloat16_and_inside_an_extent(rng):
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 3)))
    own = extent_lib.of_sizes(jnp.array([[3, 2], [5, 4]]))
    for dtype, error in ((jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)):
        assert_equal_values_and_gradients(
            lambda x: upsample(x, 4, (20, 13), own, first=1.5), rng, x.astype(dtype), atol=error
        )


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('shape', [(2, 3, 4), (5,), ()])
@pytest.mark.parametrize('weights', [(), (0.5, 0.0, 2.0)])
def test_losses_of_pixels(rng, dtype, shape, weights):
    logits = jnp.asarray(10 * rng.normal(size=(*shape, 3)), dtype)
    labels = jnp.asarray(rng.choice([0, 1, 2, IGNORE], size=shape), jnp.uint8)
    rtol = 1e-2 if dtype == jnp.bfloat16 else 1e-5
    assert_equal_values_and_gradients(
        lambda x: pixels.losses_and_weights(x, labels, weights)[0],
        rng, logits, rtol=rtol, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize(('features', 'kernel'), [(8, 1), (8, 7)])
def test_forward_mode(rng, features, kernel):
    layer = conv(3, features, kernel, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x, dx = jnp.asarray(rng.normal(size=(2, 1, 6, 5, 3)), jnp.float32)
    f = lambda x: max_pool(layer(x))  # noqa: E731
    _, tangent = jax.jvp(f, (x,), (dx,))
    _, pull = jax.vjp(f, x)
    weight = jnp.asarray(rng.normal(size=tangent.shape), jnp.float32)
    np.testing.assert_allclose((tangent * weight).sum(), (pull(weight)[0] * dx).sum(), rtol=1e-4)


@pytest.mark.parametrize(('platform', 'space'), [('cpu', 1), ('cpu', 2), ('gpu', 1), ('tpu', 1)])
def test_other_platforms_and_shared_rows_get_the_plain_operations(platform, space):
    point, stem = (
        functools.partial(conv, n, 8, k, dtype=jnp.float32, rngs=nnx.Rngs(0))()
        for n, k in ((4, 1), (3, 7))
    )
    mesh = mesh_lib.make_mesh(jax.devices()[:space], space=space)
    with jax.set_mesh(mesh), target.tracing_for(platform):
        texts = [
            str(jax.make_jaxpr(f)(jnp.zeros((1, 6, 6, n))))
            for f, n in ((point, 4), (stem, 3), (lambda x: max_pool(x), 4))
        ]
    plain = [
        'dot_general' not in texts[0],
        'custom_jvp' not in texts[1],
        'reduce_window' in texts[2],
    ]
    expected = [(platform, space) != ('cpu', 1)] * 3
    expected[0] &= platform != 'tpu'  # a product there, too
    assert plain == expected
