"""An image's result does not depend on how far it is padded, nor on what else is in the batch."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax import models
from ggcf_jax.errors import InputError
from ggcf_jax.models.backbones import convnext, swin
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.layers import extent as extent_lib
from ggcf_jax.models.layers import pool
from tests.helpers import shorten

CLASSES = 5
PADDED = (53, 70)
SIZES = ((29, 43), (53, 9), (1, 1))


def noisy(config):
    """The network of a configuration as (graphdef, state), every number of it drawn."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: models.build(config, CLASSES)))
    rng = np.random.default_rng(0)

    def draw(path, x):
        if 'var' in jax.tree_util.keystr(path):
            return jnp.float32(rng.uniform(0.5, 2, x.shape))
        spread = 1 / np.sqrt(max(np.prod(x.shape[:-1]), 1)) if x.ndim > 1 else 0.5
        return jnp.float32(rng.normal(scale=spread, size=x.shape))

    return graphdef, jax.tree_util.tree_map_with_path(draw, nnx.as_pure(state))


@functools.partial(jax.jit, static_argnums=(0, 1))
def pixel_logits(graphdef, rules, state, images, sizes=None):
    """Logits at every pixel; of padded images of these sizes, if they are given."""
    model = pruning_rules.pruned(nnx.merge(graphdef, state, copy=True), rules)
    extent = None if sizes is None else extent_lib.of_sizes(sizes)
    logits = model(images, extent=extent)[0]
    return model.upsample(logits, images.shape[1:3], extent)


def padded(rng, sizes=SIZES, size=PADDED):
    """Images in a batch that is noise where they are not."""
    batch = rng.integers(0, 256, (len(sizes), *size, 3), dtype=np.uint8)
    return batch, np.int32(sizes), [image[:h, :w] for image, (h, w) in zip(batch, sizes)]


def check(config, rng, sizes=SIZES, rules=''):
    graphdef, state = noisy(config)
    run = functools.partial(pixel_logits, graphdef, pruning_rules.parse(rules), state)
    batch, sizes, images = padded(rng, sizes)
    found = run(batch, sizes)
    for logits, image in zip(found, images):
        h, w, _ = image.shape
        alone = run(image[None])[0]
        assert h * w == 1 or alone.std() > 0.05  # there is something to compare
        np.testing.assert_allclose(logits[:h, :w], alone, atol=1e-4, rtol=1e-4)


BACKBONES = {
    'resnet10': {},
    'resnet18': {'backbone.stem': '32-32-64', 'backbone.stride': 16, 'activation': 'leaky_relu'},
    'resnet50': {'backbone.multi_grid': (1, 2, 4), 'backbone.first_dilation': 'half'},
    'wide_resnet38': {'activation': 'leaky_relu', 'norm': 'abs_gamma'},
    'mobilenet_v2': {'backbone.width': 8},
    'convnext_tiny': {'backbone.stride': 16},
    'swin_tiny': {'backbone.stride': 16},
    'tests.models.backbones.tiny:dinov2': {'backbone.width': 2, 'backbone.stride': 14},
    'tests.models.backbones.tiny:mit': {'backbone.width': 2, 'backbone.stride': 32},
}


@pytest.mark.slow
@pytest.mark.parametrize('name', BACKBONES)
def test_every_backbone(tiny_config, rng, name, monkeypatch):
    if name == 'convnext_tiny':
        shorten(monkeypatch, convnext, name, (1, 1, 2, 1))
    if name == 'swin_tiny':
        shorten(monkeypatch, swin, name, (2, 2, 2, 2))
    tiny_config.model.update_from_flattened_dict({'context': 'none', **BACKBONES[name]})
    tiny_config.model.backbone.name = name
    check(tiny_config, rng, SIZES[:2])


@pytest.mark.slow
@pytest.mark.parametrize(
    'fields',
    [
        {'context': 'aspp', 'aspp.rates': (2, 3)},
        {'context': 'psp', 'psp.channels': 4},
        {'context': 'psp', 'psp.channels': 4, 'psp.align_corners': False},
        {'context': 'nonlocal', 'non_local.channels': 4},
        {'context': 'linear'},
        {'heads': 'full,learned'},
        {'heads': 'local:1,local:2@2,grid:2,block:3,row,column,cross'},
        {'heads': 'local:3:shift,local:1@2:shift,local:1:shift|cross'},
    ],
    ids=str,
)
def test_every_context(tiny_config, rng, fields):
    tiny_config.model.update_from_flattened_dict(fields)
    check(tiny_config, rng)


@pytest.mark.slow
def test_pruned_heads(tiny_config, rng):
    tiny_config.model.heads = 'full,local:2,grid:2,row,learned'
    rules = 'full:drop=0.5:random,local:drop=0.4,grid:keep=3:random=2,row:keep=2,learned:drop=0.3'
    check(tiny_config, rng, ((1, 1), *SIZES[:2]), rules)


def test_pooling(rng):
    x = jnp.float32(rng.normal(size=(2, 9, 8, 3)))
    extent = extent_lib.of_sizes(jnp.array([[5, 7], [0, 0]]))  # the second entry has no image
    spoiled = jnp.where(extent.mask(9, 8)[..., None], x, jnp.nan)
    np.testing.assert_allclose(
        pool.mean(spoiled, extent)[0], pool.mean(x[:1, :5, :7])[0], atol=1e-6
    )
    found = pool.max_pool(spoiled - 9, extent)
    np.testing.assert_array_equal(found[:1, :3, :4], pool.max_pool(x[:1, :5, :7] - 9))
    assert not np.asarray(found[0, 3:]).any() and not np.asarray(found[0, :, 4:]).any()
    np.testing.assert_array_equal(pool.mean(spoiled, extent)[1, 0, 0], x[1, 0, 0])


def test_without_an_extent_nothing_is_masked(tiny_config):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: models.build(tiny_config, CLASSES)))

    def comparisons(*sizes):
        def run(state, images, *sizes):
            model = nnx.merge(graphdef, state)
            extent = extent_lib.of_sizes(*sizes) if sizes else None
            return model.backbone(images, train=False, key=None, extent=extent)

        images = jax.ShapeDtypeStruct((2, 24, 40, 3), jnp.float32)
        # Of positions, not of channels: those are activations.
        text = str(jax.make_jaxpr(run)(state, images, *sizes))
        return len(re.findall(r':bool\[\d+,\d+,\d+\] = lt ', text))

    assert comparisons() == 0
    # Rows and columns, before each of nine convolutions and the maxima, and after these.
    assert comparisons(jax.ShapeDtypeStruct((2, 2), jnp.int32)) == 2 * (9 + 2)


class _Unaware(nnx.Module):
    features = 3

    def __call__(self, x, *, train):
        return x


def unaware(model, in_features, *, dtype, rngs):
    return _Unaware()


def test_a_part_that_knows_no_padding_is_refused(tiny_config):
    tiny_config.model.context = f'{__name__}:unaware'
    with pytest.raises(
        InputError, match=r"context='.*:unaware': its __call__ has no argument extent"
    ):
        models.abstract(tiny_config, CLASSES)


def test_training_knows_no_padding(tiny_config):
    model = nnx.eval_shape(lambda: models.build(tiny_config, CLASSES))
    with pytest.raises(ValueError, match='padded images are for inference'):
        extent = extent_lib.of_sizes(jnp.array([[8, 8]]))
        model(jnp.zeros((1, 8, 8, 3), jnp.uint8), train=True, extent=extent)
