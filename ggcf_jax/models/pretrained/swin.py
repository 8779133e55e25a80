"""Names of published Swins: the authors' and timm's."""

import functools
import re
from typing import Any

from ggcf_jax.models.backbones.swin import ARCHITECTURES
from ggcf_jax.models.pretrained.layout import Layout, Tensors, count

# The first item of every stage but the first one merges patches; the others are pairs of layers.
_LAYER = re.compile(r'stages\.(\d+)\.(\d+)\.(regular|shifted)\.(.+)')
_MERGING = re.compile(r'stages\.(\d+)\.0\.(norm|reduction)')
_NAMES = {
    'norm1': 'norm1',
    'attention': 'attn',
    'attention.qkv': 'attn.qkv',
    'attention.project': 'attn.proj',
    'norm2': 'norm2',
    'expand': 'mlp.fc1',
    'reduce': 'mlp.fc2',
}
_STEM = {'stem.conv': 'patch_embed.proj', 'stem.norm': 'patch_embed.norm'}
_TABLE = 'layers.0.blocks.0.attn.relative_position_bias_table'


def _module(path: str, *, merging: int) -> str:
    """Our module path -> the file's, e.g. stages.2.1.shifted.expand -> layers.2.blocks.1.mlp.fc1.

    A path of another network stays as it is, and will be missing in the file.

    Args:
        path: path of a layer.
        merging: number of the layer that merges the patches of stage 1: 0 where it ends a stage
            (the authors), 1 where it begins one (timm).
    """
    if path in _STEM:
        return _STEM[path]
    if found := re.fullmatch(r'norms\.(\d+)', path):
        return f'norm{found[1]}'
    if found := _MERGING.fullmatch(path):
        return f'layers.{int(found[1]) - 1 + merging}.downsample.{found[2]}'
    if not (found := _LAYER.fullmatch(path)):
        return path
    stage, item = int(found[1]), int(found[2])
    block = 2 * (item - (stage > 0)) + (found[3] == 'shifted')
    return f'layers.{stage}.blocks.{block}.{_NAMES.get(found[4], found[4])}'


def _describe(tensors: Tensors) -> dict[str, Any]:
    depths = tuple(count(tensors, rf'layers\.{i}\.blocks\.(\d+)\.') for i in range(4))
    channels = tensors['patch_embed.proj.weight'].shape[-1]
    heads = tensors[_TABLE].shape[-1]
    for name, each in ARCHITECTURES.items():
        if (each.depths, each.heads) == (depths, heads) and not channels * 64 % each.channels:
            return {'backbone.name': name, 'backbone.width': channels * 64 // each.channels}
    return {'backbone.name': f'none: a Swin of {depths} layers, {channels} channels, {heads} heads'}


def _layout(name: str, source: str, *, merging: int) -> Layout:
    return Layout(
        name=name,
        source=source,
        marks=(
            re.escape(_TABLE),
            rf'layers\.{merging}\.downsample\.reduction\.weight',
            rf'layers\.{merging + 2}\.downsample\.reduction\.weight',
        ),
        absent=(),
        module=functools.partial(_module, merging=merging),
        # Buffers follow from the size of windows and images.
        heads=r'(norm|head)\.|.*\.(relative_position_index|attn_mask)$',
        describe=_describe,
        fresh=r'norms\..*',
        activation='gelu',
    )


LAYOUTS = [
    _layout(
        'Swin',
        'github.com/microsoft/Swin-Transformer, models/swin_transformer.py; the same names in timm '
        'before 0.9',
        merging=0,
    ),
    _layout(
        'timm Swin',
        'github.com/huggingface/pytorch-image-models, timm/models/swin_transformer.py',
        merging=1,
    ),
]
