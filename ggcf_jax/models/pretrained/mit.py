"""Names of published MiTs: those of SegFormer's authors, of mmseg and of Hugging Face."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ggcf_jax.models.backbones.mit import ARCHITECTURES
from ggcf_jax.models.pretrained.layout import Layout, Tensors, count

# The first item of every stage is its patch embedding.
_ITEM = re.compile(r'stages\.(\d+)\.(\d+)\.(.+)')
_LAYERS = {'fc1': 'mlp.fc1', 'dwconv': 'mlp.dwconv.dwconv', 'fc2': 'mlp.fc2'}

# The others' names -> the authors'. Stages are counted from 0 there, and from 1 here.
_MMSEG = (
    (r'layers\.(\d)\.0\.projection\.', 'patch_embed{}.proj.'),
    (r'layers\.(\d)\.0\.norm\.', 'patch_embed{}.norm.'),
    (r'layers\.(\d)\.2\.', 'norm{}.'),
    (r'layers\.(\d)\.1\.(\d+)\.attn\.attn\.out_proj\.', 'block{}.{}.attn.proj.'),
    (r'layers\.(\d)\.1\.(\d+)\.attn\.attn\.in_proj_', 'block{}.{}.attn.qkv.'),
    (r'layers\.(\d)\.1\.(\d+)\.ffn\.layers\.0\.', 'block{}.{}.mlp.fc1.'),
    (r'layers\.(\d)\.1\.(\d+)\.ffn\.layers\.1\.', 'block{}.{}.mlp.dwconv.dwconv.'),
    (r'layers\.(\d)\.1\.(\d+)\.ffn\.layers\.4\.', 'block{}.{}.mlp.fc2.'),
    (r'layers\.(\d)\.1\.(\d+)\.', 'block{}.{}.'),
)
_TRANSFORMERS = (
    (r'patch_embeddings\.(\d)\.proj\.', 'patch_embed{}.proj.'),
    (r'patch_embeddings\.(\d)\.layer_norm\.', 'patch_embed{}.norm.'),
    (r'layer_norm\.(\d)\.', 'norm{}.'),
    (r'block\.(\d)\.(\d+)\.layer_norm_1\.', 'block{}.{}.norm1.'),
    (r'block\.(\d)\.(\d+)\.layer_norm_2\.', 'block{}.{}.norm2.'),
    (r'block\.(\d)\.(\d+)\.attention\.self\.query\.', 'block{}.{}.attn.q.'),
    (r'block\.(\d)\.(\d+)\.attention\.self\.(key|value)\.', 'block{}.{}.attn.{}.'),
    (r'block\.(\d)\.(\d+)\.attention\.self\.sr\.', 'block{}.{}.attn.sr.'),
    (r'block\.(\d)\.(\d+)\.attention\.self\.layer_norm\.', 'block{}.{}.attn.norm.'),
    (r'block\.(\d)\.(\d+)\.attention\.output\.dense\.', 'block{}.{}.attn.proj.'),
    (r'block\.(\d)\.(\d+)\.mlp\.dense1\.', 'block{}.{}.mlp.fc1.'),
    (r'block\.(\d)\.(\d+)\.mlp\.dense2\.', 'block{}.{}.mlp.fc2.'),
    (r'block\.(\d)\.(\d+)\.', 'block{}.{}.'),
)


def _module(path: str) -> str:
    """Our module path -> the authors' name, e.g. stages.1.2.fc1 -> block2.1.mlp.fc1.

    A path of another network stays as it is, and will be missing in the file.
    """
    if found := re.fullmatch(r'norms\.(\d+)', path):
        return f'norm{int(found[1]) + 1}'
    if not (found := _ITEM.fullmatch(path)):
        return path
    stage, item, layer = int(found[1]) + 1, int(found[2]), found[3]
    if item == 0:
        return f'patch_embed{stage}.{"proj" if layer == "conv" else layer}'
    return f'block{stage}.{item - 1}.{_LAYERS.get(layer, layer)}'


def _renamed(tensors: Tensors, names: tuple[tuple[str, str], ...]) -> dict[str, np.ndarray]:
    """Tensors under the authors' names; those without one keep theirs, and will be unexpected."""
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, template in names:
            if found := re.match(pattern, name):
                stage, *others = found.groups()
                new = template.format(int(stage) + 1, *others) + name[found.end() :]
                break
        renamed[new] = tensor
    return renamed


def _of_mmseg(tensors: Tensors) -> dict[str, np.ndarray]:
    """mmseg joins queries, keys and values, and has 1x1 convolutions for linear layers."""
    found: dict[str, np.ndarray] = {}
    for name, tensor in _renamed(tensors, _MMSEG).items():
        if '.attn.qkv.' in name:
            channels = tensor.shape[-1] // 3
            found[name.replace('.qkv.', '.q.')] = tensor[..., :channels]
            found[name.replace('.qkv.', '.kv.')] = tensor[..., channels:]
        elif re.search(r'\.mlp\.fc\d\.weight', name) and tensor.shape[:2] == (1, 1):
            found[name] = tensor[0, 0]
        else:
            found[name] = tensor
    return found


def _of_transformers(tensors: Tensors) -> dict[str, np.ndarray]:
    """Hugging Face's transformers tell keys and values apart."""
    found = _renamed(tensors, _TRANSFORMERS)
    for name in [name for name in found if '.attn.key.' in name]:
        value = name.replace('.key.', '.value.')
        if value in found:
            joined = np.concatenate([found.pop(name), found.pop(value)], -1)
            found[name.replace('.key.', '.kv.')] = joined
    return found


def _describe(convert: Callable[[Tensors], Tensors], tensors: Tensors) -> dict[str, Any]:
    """The architecture from names and shapes."""
    tensors = convert(tensors)
    depths = tuple(count(tensors, rf'block{i}\.(\d+)\.') for i in range(1, 5))
    channels = tensors['patch_embed1.proj.weight'].shape[-1]
    fitting = [name for name, each in ARCHITECTURES.items() if each.depths == depths]
    fitting.sort(key=lambda name: ARCHITECTURES[name].head_channels != channels)
    if not fitting:
        return {'backbone.name': f'none: a MiT of {depths} blocks'}
    return {
        'backbone.name': fitting[0],
        'backbone.width': channels * 64 // ARCHITECTURES[fitting[0]].head_channels,
        'backbone.stride': 32,
    }


def _layout(
    name: str, source: str, marks: tuple[str, ...], convert: Callable[[Tensors], Tensors]
) -> Layout:
    return Layout(
        name=name,
        source=source,
        marks=marks,
        absent=(),
        module=_module,
        heads=r'(head|classifier)\.',
        describe=lambda tensors: _describe(convert, tensors),
        convert=convert,
        activation='gelu',
    )


LAYOUTS = [
    _layout(
        'SegFormer MiT',
        'github.com/NVlabs/SegFormer, mmseg/models/backbones/mix_transformer.py',
        (r'patch_embed1\.proj\.weight', r'block1\.0\.attn\.kv\.weight'),
        dict,
    ),
    _layout(
        'mmseg MiT',
        'github.com/open-mmlab/mmsegmentation, mmseg/models/backbones/mit.py',
        (r'layers\.0\.0\.projection\.weight', r'layers\.0\.1\.0\.attn\.attn\.in_proj_weight'),
        _of_mmseg,
    ),
    _layout(
        'transformers MiT',
        'github.com/huggingface/transformers, src/transformers/models/segformer/'
        'modeling_segformer.py',
        (r'patch_embeddings\.0\.proj\.weight', r'block\.0\.0\.attention\.self\.key\.weight'),
        _of_transformers,
    ),
]
