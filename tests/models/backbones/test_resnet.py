import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax.models.backbones import dilation
from ggcf_jax.models.backbones.resnet import ARCHITECTURES, ResNet
from ggcf_jax.models.layers.repeat import Repeated
from tests.helpers import compiled


def _build(name, width=4, stem='7x7', seed=0, **dilations):
    architecture = ARCHITECTURES[name]
    stages = dilation.plan(architecture.depths, **{'stride': 8} | dilations)
    arguments = dict(width=width, stem=stem, activation='relu', dtype=jnp.float32)
    return ResNet(architecture, stages, rngs=nnx.Rngs(seed), **arguments)


def _apply(model, x, train=False):
    """The model's outputs, compiled: op by op a network takes long to run."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True)(x, train=train))(state, x)


def _count(model):
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ('name', 'stride', 'strides'),
    [
        ('resnet10', 8, (4, 8, 8, 8)),
        ('resnet18', 8, (4, 8, 8, 8)),
        ('resnet50', 16, (4, 8, 16, 16)),
        ('resnet18', 32, (4, 8, 16, 32)),
    ],
)
@pytest.mark.parametrize('size', [(33, 48), (17, 9)])
def test_shapes(name, stride, strides, size):
    model = nnx.eval_shape(lambda: _build(name, stride=stride))
    assert model.stride == stride
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    outputs = nnx.eval_shape(lambda model, x: model(x, train=False), model, x)
    for x, s, features in zip(outputs, strides, model.features):
        assert x.shape == (2, *(-(-length // s) for length in size), features)


@pytest.mark.parametrize(
    ('name', 'published'),
    [('resnet18', 11_689_512), ('resnet34', 21_797_672), ('resnet50', 25_557_032),
     ('resnet101', 44_549_160), ('resnet152', 60_192_808)],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(name, published):
    """torchvision's counts, less the 1000-way classifier."""
    model = nnx.eval_shape(lambda: _build(name, width=64))
    features = model.features[-1]
    assert _count(model) == published - (features + 1) * 1000
    # Without classifier, as segmentation papers count.
    trunks = {'resnet50': 23_508_032, 'resnet101': 42_500_160}
    assert _count(model) == trunks.get(name, _count(model))


@pytest.fixture(scope='module')
def resnet50():
    """Only read."""
    return compiled(lambda: _build('resnet50', width=2))


@pytest.mark.slow
def test_repeated_blocks_equal_their_sequence(rng, resnet50):
    """The scan over stacked blocks against the blocks one by one, in values and statistics."""
    model = resnet50
    x = jnp.float32(rng.normal(size=(2, 5, 6, model.features[2])))
    stage = model.stages[2]
    graphdef, state = nnx.split(stage[1].blocks)

    @jax.jit
    def one_block(state, x):
        block = nnx.merge(graphdef, state, copy=True)
        return block(x, train=True), nnx.as_pure(nnx.state(block, nnx.BatchStat))

    @jax.jit
    def scanned(x):
        repeated = copy.deepcopy(stage[1])
        return repeated(x, train=True), nnx.as_pure(nnx.state(repeated.blocks, nnx.BatchStat))

    expected, stats = x, []
    for i in range(5):
        block_state = jax.tree.map(lambda leaf: leaf[i], state)  # noqa: B023
        expected, block_stats = one_block(block_state, expected)
        stats.append(block_stats)
    output, updated = scanned(x)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stats)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), updated, stacked
    )


@pytest.mark.slow
def test_repeated_blocks_start_from_different_parameters(resnet50):
    kernel = resnet50.stages[2][1].blocks.layers[1].conv.kernel[...]
    assert kernel.shape[0] == 5
    assert all((kernel[i] != kernel[j]).any() for i in range(5) for j in range(i))


@pytest.mark.parametrize('stem', ['7x7', '64-64-128'])
def test_features_lie_on_multiples_of_the_stride(rng, stem):
    """Shifting the image by 8 shifts the features by one, away from the border."""
    model = compiled(lambda: _build('resnet10', width=2, stem=stem))
    image = jnp.float32(rng.normal(size=(1, 128, 136, 3)))
    features = _apply(model, image)[1]
    shifted = _apply(model, image[:, 8:, 8:])[1]
    np.testing.assert_allclose(features[:, 5:-4, 5:-4], shifted[:, 4:-4, 4:-4], atol=1e-5)


def test_unknown_stem():
    with pytest.raises(ValueError, match="stem '3x3' is not one of 7x7, 64-64-128, 32-32-64"):
        _build('resnet18', stem='3x3')


@pytest.mark.parametrize(
    ('stem', 'channels'), [('7x7', [4]), ('64-64-128', [4, 4, 8]), ('32-32-64', [2, 2, 4])]
)
def test_stem_channels_are_those_of_width_64(stem, channels):
    model = nnx.eval_shape(lambda: _build('resnet18', width=4, stem=stem))
    assert [layer.conv.kernel.shape[-1] for layer in model.stem] == channels
    x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    output = nnx.eval_shape(lambda model, x: model(x, train=False), model, x)[-1]
    assert output.shape == (1, 2, 2, 32)


def test_only_equal_blocks_are_scanned():
    plain = nnx.eval_shape(lambda: _build('resnet50')).stages[3]
    assert len(plain) == 2 and isinstance(plain[1], Repeated)
    multi_grid = nnx.eval_shape(lambda: _build('resnet50', multi_grid=(1, 2, 4))).stages[3]
    assert [block.layers[1].conv.kernel_dilation for block in multi_grid] == [4, 8, 16]
    half = nnx.eval_shape(lambda: _build('resnet50', first_dilation='half')).stages[2]
    assert half[0].layers[1].conv.kernel_dilation == 1
    assert half[1].blocks.layers[1].conv.kernel_dilation == 2
