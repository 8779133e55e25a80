"""Names of published DINOv2s without registers; the authors' and timm's are the same."""

import re
from typing import Any

from ggcf_jax.models.backbones.dinov2 import ARCHITECTURES, PATCH
from ggcf_jax.models.pretrained.layout import Layout, Tensors, count

_BLOCK = re.compile(r'stages\.0\.(\d+)\.(\w+(?:\.\w+)?)')
_OUTSIDE = {'stem': '', 'stem.conv': 'patch_embed.proj', 'norm': 'norm'}


def _module(path: str) -> str:
    """Our module path -> the file's, e.g. stages.0.2.attn.qkv -> blocks.2.attn.qkv.

    A path of another network stays as it is, and will be missing in the file.
    """
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    if not (found := _BLOCK.fullmatch(path)):
        return path
    block, layer = found.groups()
    return f'blocks.{block}.{f"mlp.{layer}" if layer in ("fc1", "fc2") else layer}'


def _describe(tensors: Tensors) -> dict[str, Any]:
    """The architecture. Heads are not in the file: of two that fit, that of the published width."""
    depth = count(tensors, r'blocks\.(\d+)\.')
    channels = tensors['cls_token'].shape[-1]
    fitting = [name for name, each in ARCHITECTURES.items() if each.depth == depth]
    fitting.sort(key=lambda name: 64 * ARCHITECTURES[name].heads != channels)
    if not fitting:
        return {'backbone.name': f'none: a DINOv2 of {depth} blocks'}
    return {
        'backbone.name': fitting[0],
        'backbone.width': channels // ARCHITECTURES[fitting[0]].heads,
        'backbone.stride': PATCH,
    }


LAYOUTS = [
    Layout(
        name='DINOv2',
        source=(
            'github.com/facebookresearch/dinov2, dinov2/models/vision_transformer.py; the same '
            'names in timm (vit_*_patch14_dinov2)'
        ),
        marks=(r'cls_token', r'pos_embed', r'patch_embed\.proj\.weight', r'blocks\.0\.ls1\.gamma'),
        absent=(),
        module=_module,
        heads=r'(mask_token|head\.)',
        describe=_describe,
        activation='gelu',
    )
]
