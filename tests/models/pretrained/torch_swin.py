"""Swin in plain torch for the parity tests: windows by cyclic shifts, masks and a table of biases.

Written from the paper (section 3) and the names of github.com/microsoft/Swin-Transformer,
models/swin_transformer.py; padding as in mmseg/models/backbones/swin.py of mmsegmentation. Dilated
stages take every d-th row and column of a map as a map of its own.
"""

import torch
import torch.nn.functional as F
from torch import nn

WINDOW = 7


class Attention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        place = torch.stack(
            torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing='ij'), -1
        ).reshape(-1, 2)
        offset = place[:, None] - place[None] + WINDOW - 1  # of the query from the key
        index = offset[..., 0] * (2 * WINDOW - 1) + offset[..., 1]
        self.register_buffer('relative_position_index', index)

    def forward(self, windows, mask):
        """windows [images, windows, positions, channels], mask [windows, positions, positions]."""
        n, count, length, channels = windows.shape
        qkv = self.qkv(windows).reshape(n, count, length, 3, self.heads, -1)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(
            2, 0, 1
        )
        scores = scores + mask[:, None]
        out = (scores.softmax(-1) @ v).transpose(2, 3).reshape(n, count, length, channels)
        return self.proj(out)


def cut(x):
    """[n, h, w, c] in windows: [n, windows, positions, c]."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c)
    return x.transpose(2, 3).reshape(n, -1, WINDOW * WINDOW, c)


def glue(windows, h, w):
    n, _, _, c = windows.shape
    x = windows.reshape(n, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c)
    return x.transpose(2, 3).reshape(n, h, w, c)


def attend(attention, x, shift):
    """One map without dilation: zeros up to whole windows, a cyclic shift, a mask of its seams."""
    _, h, w, _ = x.shape
    x = F.pad(x, (0, 0, 0, -w % WINDOW, 0, -h % WINDOW))
    rows, columns = x.shape[1:3]
    x = torch.roll(x, (-shift, -shift), (1, 2))
    region = torch.zeros(rows, columns)
    if shift:  # what wraps around is of another region than what it meets
        region[rows - shift :] += 1
        region[:, columns - shift :] += 2
        last = torch.zeros_like(region)
        last[rows - WINDOW :] += 4
        last[:, columns - WINDOW :] += 8
        region = region + last
    region = cut(region[None, :, :, None])[0, :, :, 0]
    mask = (region[:, :, None] != region[:, None]).float() * -100.0
    out = torch.roll(glue(attention(cut(x), mask), rows, columns), (shift, shift), (1, 2))
    return out[:, :h, :w]


class Layer(nn.Module):
    def __init__(self, channels, heads, shift, dilation):
        super().__init__()
        self.shift, self.dilation = shift, dilation
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = Attention(channels, heads)
        self.mlp = nn.ModuleDict(
            {'fc1': nn.Linear(channels, 4 * channels), 'fc2': nn.Linear(4 * channels, channels)}
        )
        if shift:
            self.register_buffer('attn_mask', torch.zeros(4, WINDOW**2, WINDOW**2))

    def forward(self, x):
        y, d = self.norm1(x), self.dilation
        out = torch.zeros_like(x)
        for i in range(d):
            for j in range(d):
                out[:, i::d, j::d] = attend(self.attn, y[:, i::d, j::d], self.shift)
        x = x + out
        return x + self.mlp['fc2'](F.gelu(self.mlp['fc1'](self.norm2(x))))


class Merging(nn.Module):
    """`apart` None: stride 2; else stride 1 and positions so far from each other."""

    def __init__(self, channels, apart):
        super().__init__()
        self.apart = apart
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x):
        _, h, w, _ = x.shape
        if self.apart is None:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
            parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        else:
            d, before = self.apart, self.apart // 2
            x = F.pad(x, (0, 0, before, d - before, before, d - before))
            parts = [x[:, i : i + h, j : j + w] for j in (0, d) for i in (0, d)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    """Features of four stages; `dilations` has for each (that of the merging, of the windows)."""

    def __init__(self, channels, heads, depths, dilations, *, timm, norms, classes=10):
        super().__init__()
        self.norms, self.timm = norms, timm
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, channels, 4, 4)
        self.patch_embed.norm = nn.LayerNorm(channels)
        widths = [channels * 2**i for i in range(4)]
        self.layers = nn.ModuleList()
        for i in range(4):
            stage = nn.Module()
            stage.blocks = nn.ModuleList(
                Layer(widths[i], heads * 2**i, WINDOW // 2 if j % 2 else 0, dilations[i][1])
                for j in range(depths[i])
            )
            self.layers.append(stage)
        for i in range(1, 4):
            self.layers[i if timm else i - 1].downsample = Merging(widths[i - 1], dilations[i][0])
        for i in range(4 if norms else 0):
            setattr(self, f'norm{i}', nn.LayerNorm(widths[i]))
        if not norms:
            self.norm = nn.LayerNorm(widths[-1])
            head = nn.Linear(widths[-1], classes)
            self.head = nn.ModuleDict({'fc': head}) if timm else head

    def forward(self, x):
        x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        x = self.patch_embed.norm(self.patch_embed.proj(x).permute(0, 2, 3, 1))
        outputs = []
        for i in range(4):
            if i:
                x = self.layers[i if self.timm else i - 1].downsample(x)
            for block in self.layers[i].blocks:
                x = block(x)
            own = F.layer_norm(x, x.shape[-1:])
            y = getattr(self, f'norm{i}')(x) if self.norms else own
            outputs.append(y.permute(0, 3, 1, 2))
        return outputs
