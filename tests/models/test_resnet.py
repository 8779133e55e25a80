import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax.models.resnet import BACKBONES


def _build(name, width=4, stem='7x7', seed=0, **options):
    arguments = dict(width=width, stem=stem, activation='relu', dtype=jnp.float32) | options
    return BACKBONES[name](rngs=nnx.Rngs(seed), **arguments)


def _apply(model, x, train=False):
    """The model's outputs, compiled: op by op a network takes long to run."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True)(x, train))(state, x)


def _count(model):
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize('name', ['resnet10', 'resnet18', 'resnet50'])
@pytest.mark.parametrize('size', [(33, 48), (17, 9)])
def test_shapes(name, size):
    model = _build(name)
    outputs = jax.eval_shape(lambda x: model(x, False), jnp.zeros((2, *size, 3)))
    quarter, eighth = ([-(-length // s) for length in size] for s in (4, 8))
    assert [list(x.shape[1:3]) for x in outputs] == [quarter, eighth, eighth, eighth]
    assert tuple(x.shape[3] for x in outputs) == model.features


@pytest.mark.parametrize(
    ('name', 'published'),
    [('resnet18', 11_689_512), ('resnet34', 21_797_672), ('resnet50', 25_557_032),
     ('resnet101', 44_549_160)],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(name, published):
    """torchvision's counts, less the 1000-way classifier."""
    model = nnx.eval_shape(lambda: _build(name, width=64))
    features = model.features[-1]
    assert _count(model) == published - (features + 1) * 1000


def test_repeated_blocks_equal_their_sequence(rng):
    """The scan over stacked blocks against the blocks one by one, in values and statistics."""
    model = _build('resnet50', width=2)
    x = jnp.float32(rng.normal(size=(2, 5, 6, model.features[2])))
    stage = model.stages[2]
    graphdef, state = nnx.split(stage[1].blocks)

    @jax.jit
    def one_block(state, x):
        block = nnx.merge(graphdef, state, copy=True)
        return block(x, True), nnx.as_pure(nnx.state(block, nnx.BatchStat))

    @jax.jit
    def scanned(x):
        repeated = copy.deepcopy(stage[1])
        return repeated(x, True), nnx.as_pure(nnx.state(repeated.blocks, nnx.BatchStat))

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


def test_repeated_blocks_start_from_different_parameters():
    kernel = _build('resnet50').stages[2][1].blocks.layers[1].conv.kernel[...]
    assert kernel.shape[0] == 5
    assert all((kernel[i] != kernel[j]).any() for i in range(5) for j in range(i))


@pytest.mark.parametrize('stem', ['7x7', 'deep'])
def test_features_lie_on_multiples_of_the_stride(rng, stem):
    """Shifting the image by 8 shifts the features by one, away from the border."""
    model = _build('resnet10', width=2, stem=stem)
    image = jnp.float32(rng.normal(size=(1, 128, 136, 3)))
    features = _apply(model, image)[1]
    shifted = _apply(model, image[:, 8:, 8:])[1]
    np.testing.assert_allclose(features[:, 5:-4, 5:-4], shifted[:, 4:-4, 4:-4], atol=1e-5)


def test_unknown_stem():
    with pytest.raises(ValueError, match="stem '3x3' is not one of 7x7, deep"):
        _build('resnet18', stem='3x3')


def test_deep_stem_has_twice_the_width():
    model = _build('resnet18', width=4, stem='deep')
    assert [layer.conv.kernel.shape[-1] for layer in model.stem] == [4, 4, 8]
    output = jax.eval_shape(lambda x: model(x, False), jnp.zeros((1, 16, 16, 3)))[-1]
    assert output.shape == (1, 2, 2, 32)
