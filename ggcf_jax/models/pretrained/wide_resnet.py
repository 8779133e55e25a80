"""Names of InPlace-ABN's WideResNet-38: classification and Mapillary Vistas segmentation."""

import re
from typing import Any

from ggcf_jax.models.pretrained.layout import Layout, Tensors

_BLOCK = re.compile(r'mods\.(\d+)\.(\d+)\.(convs|norms|skip)(?:\.(\d+))?(?:\.norm)?')


def _module(path: str) -> str:
    """Our module path -> the file's, e.g. mods.0.2.norms.1.norm -> mod2.block3.convs.bn2.

    A path of another network stays as it is, and will be missing in the file.
    """
    if path == 'stem':
        return 'mod1.conv1'
    if path == 'norm.norm':
        return 'bn_out'
    if not (found := _BLOCK.fullmatch(path)):
        return path
    module, block, kind, number = found.groups()
    prefix = f'mod{int(module) + 2}.block{int(block) + 1}'
    if kind == 'skip':
        return f'{prefix}.proj_conv'
    if kind == 'convs':
        return f'{prefix}.convs.conv{int(number) + 1}'
    # The first norm is shared with the skip, so it stands outside of the sequence.
    return f'{prefix}.bn1' if number == '0' else f'{prefix}.convs.bn{int(number) + 1}'


def _describe(tensors: Tensors) -> dict[str, Any]:
    return {
        'backbone.name': 'wide_resnet38',
        'backbone.width': tensors['mod1.conv1.weight'].shape[-1],
    }


LAYOUTS = [
    Layout(
        name='inplace_abn WideResNet-38',
        source='github.com/mapillary/inplace_abn, scripts/models/wider_resnet.py',
        marks=(r'mod1\.conv1\.weight', r'mod7\.block1\.convs\.conv3\.weight'),
        absent=(),
        module=_module,
        heads=r'classifier\.',
        describe=_describe,
        norm='abs_gamma',
        inputs=('imagenet', 'vistas'),
        trained_input=None,  # classification or segmentation
        activation='leaky_relu',
    )
]
