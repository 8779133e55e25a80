"""Names of published ConvNeXts: the authors' and timm's."""

import re
from collections.abc import Callable
from typing import Any

from ggcf_jax.models.backbones.convnext import ARCHITECTURES
from ggcf_jax.models.pretrained.layout import Layout, Tensors, count

# The first item of every stage but the first one is its downsampling.
_ITEM = re.compile(r'stages\.(\d+)\.(\d+)\.(\w+)')
# Layer of a block -> (the authors' name, timm's); '' for the parameter of the block itself.
_LAYERS = {
    'depthwise': ('dwconv', 'conv_dw'),
    'norm': ('norm', 'norm'),
    'expand': ('pwconv1', 'mlp.fc1'),
    'reduce': ('pwconv2', 'mlp.fc2'),
    'layer_scale': ('', ''),
}
_DOWNSAMPLING = {'norm': 0, 'conv': 1}
_STEM = {'stem.conv': 0, 'stem.norm': 1}


def _authors(path: str) -> str:
    """Our module path -> the authors' name, e.g. stages.1.2.expand -> stages.1.1.pwconv1.

    A path of another network stays as it is, and will be missing in the file.
    """
    if path in _STEM:
        return f'downsample_layers.0.{_STEM[path]}'
    return _inside(path, lambda stage: f'downsample_layers.{stage}', lambda stage: f'{stage}', 0)


def _timm(path: str) -> str:
    """Our module path -> timm's name, e.g. stages.1.2.expand -> stages.1.blocks.1.mlp.fc1."""
    if path in _STEM:
        return f'stem.{_STEM[path]}'
    return _inside(
        path, lambda stage: f'stages.{stage}.downsample', lambda stage: f'{stage}.blocks', 1
    )


def _inside(
    path: str, downsampling: Callable[[int], str], blocks: Callable[[int], str], column: int
) -> str:
    if found := re.fullmatch(r'norms\.(\d+)', path):
        return f'norm{found[1]}'
    if not (found := _ITEM.fullmatch(path)):
        return path
    stage, item, layer = int(found[1]), int(found[2]), found[3]
    if stage and not item:
        return f'{downsampling(stage)}.{_DOWNSAMPLING.get(layer, layer)}'
    name = _LAYERS.get(layer, (layer, layer))[column]
    return f'stages.{blocks(stage)}.{item - (stage > 0)}' + (f'.{name}' if name else '')


def _describe(first: str, blocks: str, tensors: Tensors) -> dict[str, Any]:
    """The architecture from names and shapes.

    Args:
        first: name of the first kernel.
        blocks: what stands between the number of a stage and that of a block.
        tensors: tensors of the backbone.
    """
    depths = tuple(count(tensors, rf'stages\.{i}\.{blocks}(\d+)\.') for i in range(4))
    channels = tensors[first].shape[-1]
    fitting = [name for name, each in ARCHITECTURES.items() if each.depths == depths]
    # Those of the published width first, then those of which it is a whole number of 64ths.
    fitting.sort(
        key=lambda name: (
            ARCHITECTURES[name].channels != channels,
            channels * 64 % ARCHITECTURES[name].channels,
        )
    )
    if not fitting:
        return {'backbone.name': f'none: a ConvNeXt of {depths} blocks'}
    return {
        'backbone.name': fitting[0],
        'backbone.width': channels * 64 // ARCHITECTURES[fitting[0]].channels,
    }


LAYOUTS = [
    Layout(
        name='ConvNeXt',
        source=(
            'github.com/facebookresearch/ConvNeXt, models/convnext.py and '
            'semantic_segmentation/backbone/convnext.py'
        ),
        marks=(r'downsample_layers\.0\.0\.weight', r'stages\.0\.0\.dwconv\.weight'),
        absent=(),
        module=_authors,
        heads=r'(norm|head)\.',
        describe=lambda tensors: _describe('downsample_layers.0.0.weight', '', tensors),
        fresh=r'norms\..*',
        activation='gelu',
    ),
    Layout(
        name='timm ConvNeXt',
        source='github.com/huggingface/pytorch-image-models, timm/models/convnext.py',
        marks=(r'stem\.0\.weight', r'stages\.0\.blocks\.0\.conv_dw\.weight'),
        absent=(),
        module=_timm,
        heads=r'head\.',
        describe=lambda tensors: _describe('stem.0.weight', r'blocks\.', tensors),
        fresh=r'norms\..*',
        activation='gelu',
    ),
]
