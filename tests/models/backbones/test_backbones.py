"""What all backbones promise the segmenter, and what is special to the small and the wide one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax import models
from ggcf_jax.errors import InputError
from ggcf_jax.models.backbones import dilation, mobilenet, wide_resnet
from ggcf_jax.models.layers.norm import ActivatedNorm
from ggcf_jax.models.segmenter import INPUTS


def _wide(stride=8, **options):
    return wide_resnet.WideResNet(
        dilation.plan(wide_resnet.PLANNED, stride=stride, **options),
        width=2,
        activation='leaky_relu',
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )


def _mobile(stride=8):
    return mobilenet.MobileNetV2(
        dilation.plan(mobilenet.DEPTHS, stride=stride),
        width=8,
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )


@pytest.mark.parametrize('build', [_wide, _mobile])
@pytest.mark.parametrize(
    ('stride', 'strides'),
    [
        (8, (4, 8, 8, 8)),
        pytest.param(16, (4, 8, 16, 16), marks=pytest.mark.slow),
        pytest.param(32, (4, 8, 16, 32), marks=pytest.mark.slow),
    ],
)
def test_features_of_four_stages(build, stride, strides):
    model = nnx.eval_shape(lambda: build(stride))
    assert model.stride == stride
    x = jax.ShapeDtypeStruct((2, 33, 50, 3), jnp.float32)
    outputs = nnx.eval_shape(lambda model, x: model(x, train=False), model, x)
    if build is _wide:  # its third stage ends where the fourth begins
        strides = (4, 8, stride, stride)
    for y, s, features in zip(outputs, strides, model.features):
        assert y.shape == (2, -(-33 // s), -(-50 // s), features)


def test_multi_grid_of_the_wide_network():
    mods = nnx.eval_shape(lambda: _wide(multi_grid=(1, 2))).mods
    assert [mods[i][0].convs[1].kernel_dilation for i in (3, 4, 5)] == [2, 4, 8]


@pytest.mark.slow
def test_dropout_of_the_wide_network_drops_channels(rng):
    """Only when training, only in the last two modules, whole channels, by the key alone."""
    model = nnx.eval_shape(_wide)
    graphdef, shapes = nnx.split(model)
    # Drawn here: compiling the network's own draws takes longer than the test.
    state = jax.tree.map(lambda x: jnp.float32(rng.uniform(0.2, 1, x.shape)), nnx.as_pure(shapes))
    x = jnp.float32(rng.normal(size=(2, 17, 17, 3)))

    @jax.jit
    def run(state, key):
        return nnx.merge(graphdef, state, copy=True)(x, train=True, key=key)

    one, again, other = (run(state, jax.random.key(i)) for i in (0, 0, 1))
    for i, (a, b, c) in enumerate(zip(one, again, other)):
        np.testing.assert_array_equal(a, b)
        assert bool((a != c).any()) == (i >= 2)
    block = model.mods[5][0]
    assert block.dropout.rate == 0.5 and block.dropout.broadcast_dims == (1, 2)
    assert model.mods[4][0].dropout.rate == 0.3


def test_abs_gamma_ignores_the_sign_and_learns_from_zero():
    x = jnp.linspace(-2, 2, 12).reshape(1, 2, 2, 3)
    norm = ActivatedNorm(3, 'identity', norm='abs_gamma', dtype=jnp.float32, rngs=nnx.Rngs(0))
    plain = ActivatedNorm(3, 'identity', dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm.norm.scale[...] = jnp.array([-0.5, 0.0, 2.0])
    plain.norm.scale[...] = jnp.array([0.5, 0.0, 2.0]) + 1e-5
    np.testing.assert_array_equal(norm(x, train=False), plain(x, train=False))

    graphdef, params, stats = nnx.split(norm, nnx.Param, nnx.BatchStat)

    def total(params):
        return (nnx.merge(graphdef, params, stats, copy=True)(x, train=False) * x).sum()

    gradient = nnx.as_pure(jax.grad(total)(params))['norm']['scale']
    expected = (x * x).sum((0, 1, 2)) / np.sqrt(1 + 1e-5) * jnp.array([-1.0, 1.0, 1.0])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_leaky_relu_has_the_slope_of_inplace_abn():
    norm = ActivatedNorm(1, 'leaky_relu', dtype=jnp.float32, rngs=nnx.Rngs(0))
    y = norm(jnp.full((1, 1, 1, 1), -1.0), train=False)
    np.testing.assert_allclose(y, -0.01, rtol=1e-4)


def test_inputs_of_published_weights():
    image = jnp.array([[[[10, 20, 30]]]], jnp.uint8)
    caffe = INPUTS['caffe'](image)[0, 0, 0]
    np.testing.assert_allclose(caffe, [30 - 102.9801, 20 - 115.9465, 10 - 122.7717], rtol=1e-6)
    rgb = INPUTS['imagenet'](image)[0, 0, 0]
    expected = (np.array([10, 20, 30]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(rgb, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['wide_resnet38', 'mobilenet_v2', 'resnet50', 'convnext_tiny'])
def test_network_of_each_backbone(tiny_config, name):
    tiny_config.model.backbone.name = name
    tiny_config.model.norm = 'abs_gamma'
    graphdef, params, stats = models.abstract(tiny_config, 5)

    def run(params, stats, images, key):
        model = nnx.merge(graphdef, params, stats, copy=True)
        return model(images), model(images, train=True, key=key)

    images = jax.ShapeDtypeStruct((2, 33, 40, 3), jnp.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))
    (logits, none), training = jax.eval_shape(run, params, stats, images, key)
    assert none is None and [x.shape for x in (logits, *training)] == [(2, 5, 5, 5)] * 3


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'name': 'mobilenet_v2', 'multi_grid': (1, 2)}, r'multi_grid=\(1, 2\) is not supported'),
        (
            {'name': 'wide_resnet38', 'first_dilation': 'half'},
            "'half' is not supported by wide_res",
        ),
        (
            {'name': 'resnet18', 'drop_path': 0.1},
            'drop_path=0.1 is not supported by resnet18; use 0',
        ),
        ({'name': 'wide_resnet38', 'multi_grid': (1, 2, 4)}, 'backbone.multi_grid=.* the 2 blocks'),
        (
            {'name': 'convnext_tiny', 'activation': 'relu'},
            "'relu' is not .* convnext_tiny; use 'gelu",
        ),
        ({'name': 'swin_tiny', 'first_dilation': 'half'}, "'half' is not .* swin_tiny; use 'full'"),
        ({'name': 'convnext_tiny', 'statistics': 'running'}, 'convnext_tiny has no running'),
        ({'stride': 4}, r'config.model.backbone.stride=4 is not one of 8, 16, 32'),
    ],
)
def test_options_that_a_backbone_does_not_have(tiny_config, change, message):
    tiny_config.model.backbone.update(change)
    with pytest.raises(InputError, match=message):
        models.abstract(tiny_config, 5)
