"""Backbones that are written in a published layout are read back as they were."""

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from ggcf_jax import config as config_lib
from ggcf_jax import models
from ggcf_jax.errors import InputError
from ggcf_jax.models import pretrained
from ggcf_jax.models.pretrained import writing


def _arrays(config, rng):
    """Random arrays for the backbone of a configuration, by their path in it."""
    _, params, stats = models.abstract(config, 2)
    shapes = {}
    for tree in (params, stats):
        shapes |= pretrained.shapes_of(nnx.to_pure_dict(tree)['backbone'])
    return {path: rng.normal(1, 0.1, shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.mark.parametrize(
    ('name', 'stem', 'norm', 'layout', 'kernel', 'shape'),
    [
        ('resnet18', '7x7', 'batch_norm', 'torchvision ResNet', 'conv1.weight', (8, 3, 7, 7)),
        ('resnet50', '7x7', 'abs_gamma', 'torchvision ResNet',
         'layer3.5.conv3.weight', (128, 32, 1, 1)),
        ('resnet18', '64-64-128', 'batch_norm', 'openseg deep-stem ResNet',
         'conv2.weight', (8, 8, 3, 3)),
        ('resnet18', '32-32-64', 'batch_norm', 'mmseg ResNet v1c', 'stem.3.weight', (4, 4, 3, 3)),
        pytest.param(
            'wide_resnet38', '7x7', 'abs_gamma', 'inplace_abn WideResNet-38',
            'mod1.conv1.weight', (8, 3, 3, 3), marks=pytest.mark.slow,
        ),
        pytest.param(
            'mobilenet_v2', '7x7', 'batch_norm', 'torchvision MobileNetV2',
            'features.0.0.weight', (8, 3, 3, 3), marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_written_backbones_are_read_back(tmp_path, rng, name, stem, norm, layout, kernel, shape):
    config = config_lib.default()
    config.model.backbone.name, config.model.backbone.stem = name, stem
    config.model.backbone.width, config.model.norm, config.model.context = 8, norm, 'none'
    arrays = _arrays(config, rng)

    tensors = writing.tensors(arrays, config.model)

    assert tensors[kernel].shape == shape
    safetensors.numpy.save_file(tensors, tmp_path / 'a.safetensors')
    shapes = {path: array.shape for path, array in arrays.items()}
    imported = pretrained.load(tmp_path / 'a.safetensors', shapes, norm)
    assert (imported.layout, imported.matched) == (layout, len(tensors))
    for path, array in arrays.items():
        np.testing.assert_allclose(imported.arrays[path], array, rtol=1e-6, err_msg=path)


def test_a_backbone_of_another_package_has_no_layout():
    config = config_lib.default()
    config.model.backbone.name = 'my_package.my_module:build'
    with pytest.raises(InputError, match=r"name='my_package.my_module:build' has no"):
        writing.layout_of(config.model.backbone)
