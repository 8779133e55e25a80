"""Writing a backbone that was trained here into a file of a published layout, for PyTorch.

The opposite of `pretrained.load`: names of the layout, PyTorch's order of axes. Files are
safetensors; torch is not needed.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32
from ml_collections import ConfigDict

from ggcf_jax.errors import InputError
from ggcf_jax.models import pretrained
from ggcf_jax.models.backbones.convnext import ARCHITECTURES as CONVNEXTS
from ggcf_jax.models.backbones.dinov2 import ARCHITECTURES as DINOV2S
from ggcf_jax.models.backbones.mit import ARCHITECTURES as MITS
from ggcf_jax.models.backbones.resnet import ARCHITECTURES
from ggcf_jax.models.backbones.swin import ARCHITECTURES as SWINS
from ggcf_jax.models.pretrained import layouts, slots
from ggcf_jax.models.pretrained.layout import Layout

# Layout that a network is written in: the stem of a ResNet, or another backbone -> its name.
_RESNETS = {
    '7x7': 'torchvision ResNet',
    '64-64-128': 'openseg deep-stem ResNet',
    '32-32-64': 'mmseg ResNet v1c',
}
_OTHERS = {
    'wide_resnet38': 'inplace_abn WideResNet-38',
    'mobilenet_v2': 'torchvision MobileNetV2',
    **dict.fromkeys(CONVNEXTS, 'ConvNeXt'),
    **dict.fromkeys(DINOV2S, 'DINOv2'),
    **dict.fromkeys(MITS, 'SegFormer MiT'),
    **dict.fromkeys(SWINS, 'Swin'),
}


def layout_of(backbone: ConfigDict) -> Layout:
    """Returns the published layout that a backbone is written in.

    Args:
        backbone: `config.model.backbone`.

    Raises:
        InputError: there is none for this backbone.
    """
    known = _OTHERS.get(backbone.name)
    name = _RESNETS[backbone.stem] if backbone.name in ARCHITECTURES else known
    for layout in layouts.LAYOUTS:
        if layout.name == name:
            return layout
    raise InputError(
        f'config.model.backbone.name={backbone.name!r} has no published layout; those that have '
        f'are ResNets, {", ".join(_OTHERS)}'
    )


def tensors(
    arrays: Mapping[str, Float32[np.ndarray, '...']], model: ConfigDict
) -> dict[str, Float32[np.ndarray, '...']]:
    """Returns the tensors of a backbone under their published names.

    Args:
        arrays: path in the backbone -> array, parameters and running statistics.
        model: `config.model`.

    Raises:
        InputError: there is no layout for this backbone, or it cannot express the scales.
    """
    layout = layout_of(model.backbone)
    converted = pretrained.convert_scales(
        {path: np.asarray(array, np.float32) for path, array in arrays.items()},
        source=model.norm,
        target=layout.norm,
        where='the backbone',
    )
    shapes = {path: array.shape for path, array in converted.items()}
    found = {}
    for name, slot in slots.expand(shapes).items():
        array = converted[slot.path][slot.index]
        if array.ndim == 4:  # [h, w, in, out] -> PyTorch's [out, in, h, w]
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2 and name.endswith('.kernel'):  # [in, out] -> [out, in]
            array = array.T
        found[layout.rename(name)] = np.ascontiguousarray(array)
    return found
