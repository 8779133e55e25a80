"""Names of published ResNets: blocks are named alike, stems differ."""

import functools
import re
from collections.abc import Callable
from typing import Any

from ggcf_jax.models.backbones.resnet import ARCHITECTURES, Bottleneck
from ggcf_jax.models.pretrained.layout import Layout, Tensors, count

_BLOCK = re.compile(r'stages\.(\d+)\.(\d+)\.(?:layers\.(\d+)|skip)\.(conv|norm\.norm)')
_STEM = re.compile(r'stem\.(\d+)\.(conv|norm\.norm)')
_HEADS = r'(fc|classifier|head|last_linear)\.'

# (number, whether it is a convolution or its norm) of a layer of the stem -> the file's name.
_Stem = Callable[[int, bool], str]


def _module(stem: _Stem, path: str) -> str:
    """Our module path -> the file's, e.g. stages.0.2.layers.0.conv -> layer1.2.conv1.

    A path of another network stays as it is, and will be missing in the file.
    """
    if found := _STEM.fullmatch(path):
        return stem(int(found[1]), found[2] == 'conv')
    if not (found := _BLOCK.fullmatch(path)):
        return path
    stage, block, layer, kind = found.groups()
    prefix = f'layer{int(stage) + 1}.{block}'
    if layer is None:
        return f'{prefix}.downsample.{0 if kind == "conv" else 1}'
    return f'{prefix}.{"conv" if kind == "conv" else "bn"}{int(layer) + 1}'


def _numbered(i: int, is_conv: bool) -> str:
    return f'{"conv" if is_conv else "bn"}{i + 1}'


def _sequential(i: int, is_conv: bool) -> str:
    """stem.0 conv, .1 norm, .2 ReLU, .3 conv, ..."""
    return f'stem.{3 * i + (0 if is_conv else 1)}'


def _timm(i: int, is_conv: bool) -> str:
    """As `_sequential` under conv1, but the last norm is bn1."""
    return 'bn1' if i == 2 and not is_conv else f'conv1.{3 * i + (0 if is_conv else 1)}'


def _describe(first: str, tensors: Tensors) -> dict[str, Any]:
    """The architecture from names and shapes; `first` names the first convolution."""
    depths = tuple(count(tensors, rf'layer{stage}\.(\d+)\.') for stage in range(1, 5))
    bottleneck = 'layer1.0.conv3.weight' in tensors
    names = [
        name
        for name, architecture in ARCHITECTURES.items()
        if architecture.depths == depths and (architecture.block is Bottleneck) == bottleneck
    ]
    kernel = tensors[first]
    width = tensors['layer1.0.conv1.weight'].shape[-1]
    deep = '64-64-128' if kernel.shape[-1] == width else '32-32-64'
    return {
        'backbone.name': names[0] if names else f'none: a ResNet of {depths} blocks',
        'backbone.width': width,
        'backbone.stem': '7x7' if kernel.shape[0] == 7 else deep,
    }


def _layout(
    name: str,
    source: str,
    *,
    first: str,
    stem: _Stem,
    marks: tuple[str, ...] = (),
    absent: tuple[str, ...] = (),
    inputs: tuple[str, ...] = ('imagenet',),
    trained_input: str = 'imagenet',
) -> Layout:
    """A layout of a ResNet; `first` names the kernel of its first convolution."""
    return Layout(
        name=name,
        source=source,
        marks=(re.escape(first), r'layer1\.0\.conv1\.weight', *marks),
        absent=absent,
        module=functools.partial(_module, stem),
        heads=_HEADS,
        describe=functools.partial(_describe, first),
        inputs=inputs,
        trained_input=trained_input,
    )


LAYOUTS = [
    _layout(
        'torchvision ResNet',
        'github.com/pytorch/vision, torchvision/models/resnet.py; the same names in timm',
        first='conv1.weight',
        stem=_numbered,
        absent=(r'conv2\.weight',),
    ),
    _layout(
        'timm deep-stem ResNet',
        'github.com/huggingface/pytorch-image-models, timm/models/resnet.py (resnet*c, resnet*s)',
        first='conv1.0.weight',
        stem=_timm,
    ),
    _layout(
        'openseg deep-stem ResNet',
        'github.com/CSAILVision/semantic-segmentation-pytorch, mit_semseg/models/resnet.py; with '
        'resinit. in github.com/openseg-group/openseg.pytorch, resnet_models.py',
        first='conv1.weight',
        stem=_numbered,
        marks=(r'conv2\.weight', r'conv3\.weight'),
        inputs=('caffe', 'ocnet', 'ccnet'),
        trained_input='caffe',  # CSAIL's data loader
    ),
    _layout(
        'mmseg ResNet v1c',
        'github.com/open-mmlab/mmsegmentation, mmseg/models/backbones/resnet.py; the same names '
        'in mmcls, under backbone.',
        first='stem.0.weight',
        stem=_sequential,
    ),
]
