"""MiT in plain PyTorch, under the names of SegFormer's authors, and these under others' names."""

import re

import torch
from torch import nn
from torch.nn import functional

HEADS = (1, 2, 5, 8)
RATIOS = (8, 4, 2, 1)


class _Attention(nn.Module):
    def __init__(self, channels, heads, ratio):
        super().__init__()
        self.heads, self.ratio = heads, ratio
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if ratio > 1:
            self.sr = nn.Conv2d(channels, channels, ratio, ratio)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x, size):
        b, n, c = x.shape
        own = x
        if self.ratio > 1:
            own = self.sr(x.mT.reshape(b, c, *size)).flatten(2).mT
            own = self.norm(own)
        split = lambda y: y.view(b, -1, self.heads, c // self.heads).transpose(1, 2)  # noqa: E731
        q, k, v = map(split, (self.q(x), *self.kv(own).chunk(2, -1)))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class _Convolution(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)

    def forward(self, x, size):
        return self.dwconv(x.mT.reshape(len(x), -1, *size)).flatten(2).mT


class _Perceptron(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.dwconv = _Convolution(4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x, size):
        return self.fc2(functional.gelu(self.dwconv(self.fc1(x), size)))


class _Block(nn.Module):
    def __init__(self, channels, heads, ratio):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = _Attention(channels, heads, ratio)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = _Perceptron(channels)

    def forward(self, x, size):
        x = x + self.attn(self.norm1(x), size)
        return x + self.mlp(self.norm2(x), size)


class _Embedding(nn.Module):
    def __init__(self, inputs, channels, side, stride):
        super().__init__()
        self.proj = nn.Conv2d(inputs, channels, side, stride, side // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):
        x = self.proj(x)
        return self.norm(x.flatten(2).mT), x.shape[2:]


class MiT(nn.Module):
    """`channels` are those of a head; files of classifiers have a head beside the encoder."""

    def __init__(self, channels, depths, classes=3):
        super().__init__()
        inputs = 3
        for i, (heads, ratio, depth) in enumerate(zip(HEADS, RATIOS, depths), 1):
            width = channels * heads
            embedding = _Embedding(inputs, width, *((7, 4) if i == 1 else (3, 2)))
            setattr(self, f'patch_embed{i}', embedding)
            blocks = nn.ModuleList([_Block(width, heads, ratio) for _ in range(depth)])
            setattr(self, f'block{i}', blocks)
            setattr(self, f'norm{i}', nn.LayerNorm(width, eps=1e-6))
            inputs = width
        self.head = nn.Linear(inputs, classes)

    def forward(self, x):
        outputs = []
        for i in range(1, 5):
            x, size = getattr(self, f'patch_embed{i}')(x)
            for block in getattr(self, f'block{i}'):
                x = block(x, size)
            x = getattr(self, f'norm{i}')(x).mT.reshape(len(x), -1, *size)
            outputs.append(x)
        return outputs


def as_mmseg(state):
    """The authors' tensors as tools/model_converters/mit2mmseg.py of mmsegmentation names them."""
    found = {}
    for name, x in state.items():
        first, stage, rest = re.match(r'(\D+)(\d?)\.(.+)', name).groups()
        stage = int(stage or 0) - 1
        if first == 'head':
            continue
        if first == 'patch_embed':
            found[f'layers.{stage}.0.{rest.replace("proj", "projection")}'] = x
        elif first == 'norm':
            found[f'layers.{stage}.2.{rest}'] = x
        else:
            block, rest = rest.split('.', 1)
            if rest.startswith('attn.q.'):
                own = state[name.replace('.q.', '.kv.')]
                rest = rest.replace('q.', 'attn.in_proj_')
                x = torch.cat([x, own])
            elif rest.startswith('attn.kv.'):
                continue
            elif rest.startswith('mlp.'):
                layer, kind = re.match(r'mlp\.(fc1|dwconv|fc2).*\.(\w+)', rest).groups()
                rest = f'ffn.layers.{dict(fc1=0, dwconv=1, fc2=4)[layer]}.{kind}'
                x = x[:, :, None, None] if x.ndim == 2 else x
            rest = rest.replace('attn.proj', 'attn.attn.out_proj')
            found[f'layers.{stage}.1.{block}.{rest}'] = x
    return found


def as_transformers(state):
    """The authors' tensors as Hugging Face's transformers name them in SegformerModel."""
    words = {
        'attn.q.': 'attention.self.query.',
        'attn.sr.': 'attention.self.sr.',
        'attn.norm.': 'attention.self.layer_norm.',
        'attn.proj.': 'attention.output.dense.',
        'norm1.': 'layer_norm_1.',
        'norm2.': 'layer_norm_2.',
        'fc': 'dense',
    }
    found = {}
    for name, x in state.items():
        first, stage, rest = re.match(r'(\D+)(\d?)\.(.+)', name).groups()
        place = {'patch_embed': 'patch_embeddings', 'norm': 'layer_norm', 'block': 'block'}
        if first == 'head':
            found[f'classifier.{rest}'] = x
            continue
        prefix = f'segformer.encoder.{place[first]}.{int(stage) - 1}.'
        if first == 'patch_embed':
            found[prefix + rest.replace('norm', 'layer_norm')] = x
        elif first == 'norm':
            found[prefix + rest] = x
        elif '.attn.kv.' in f'.{rest}':
            for part, y in zip(('key', 'value'), x.chunk(2)):
                found[prefix + rest.replace('attn.kv.', f'attention.self.{part}.')] = y.contiguous()
        else:
            for old, new in words.items():
                rest = rest.replace(old, new)
            found[prefix + rest] = x
    return found
