"""DINOv2 in plain PyTorch, without registers, whose modules are named as in the published files."""

import torch
from torch import nn
from torch.nn import functional

PATCH = 14


class _Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * self.gamma


class _Attention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class _Perceptron(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = _Attention(channels, heads)
        self.ls1 = _Scale(channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = _Perceptron(channels)
        self.ls2 = _Scale(channels)

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Patches(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, PATCH, PATCH)


class DINOv2(nn.Module):
    """Returns the patches behind the last four blocks, each after the norm of the network.

    Images are padded with zeros at the bottom and on the right, as ours.
    """

    def __init__(self, channels, heads, depth, grid):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, channels))
        self.mask_token = nn.Parameter(torch.zeros(1, channels))
        self.patch_embed = _Patches(channels)
        self.blocks = nn.ModuleList([_Block(channels, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.grid = grid

    def positions(self, rows, columns):
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if (rows, columns) == (self.grid, self.grid):
            return first, rest
        table = rest.view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        factors = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        table = functional.interpolate(table, scale_factor=factors, mode='bicubic')
        assert table.shape[2:] == (rows, columns)
        return first, table.flatten(2).mT

    def forward(self, x):
        x = functional.pad(x, (0, -x.shape[3] % PATCH, 0, -x.shape[2] % PATCH))
        x = self.patch_embed.proj(x)
        b, c, rows, columns = x.shape
        first, rest = self.positions(rows, columns)
        x = torch.cat(((self.cls_token + first).expand(b, -1, -1), x.flatten(2).mT + rest), 1)
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i >= len(self.blocks) - 4:
                outputs.append(self.norm(x)[:, 1:].mT.reshape(b, c, rows, columns))
        return outputs
