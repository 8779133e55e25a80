"""ConvNeXt in plain torch, channels last as in the paper's code, for the parity tests.

Written from the paper and the names in github.com/facebookresearch/ConvNeXt,
semantic_segmentation/backbone/convnext.py, and timm/models/convnext.py.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, dilation, names):
        super().__init__()
        self.names = names
        depthwise = nn.Conv2d(
            channels, channels, 7, padding=3 * dilation, dilation=dilation, groups=channels
        )
        setattr(self, names[0], depthwise)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        first, second = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        if names[1] == 'mlp':
            self.mlp = nn.ModuleDict({'fc1': first, 'fc2': second})
        else:
            self.pwconv1, self.pwconv2 = first, second
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        y = self.norm(getattr(self, self.names[0])(x).permute(0, 2, 3, 1))
        layers = self.mlp if self.names[1] == 'mlp' else {'fc1': self.pwconv1, 'fc2': self.pwconv2}
        y = self.gamma * layers['fc2'](F.gelu(layers['fc1'](y)))
        return x + y.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-6)

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class WholePatches(nn.Conv2d):
    """A convolution whose stride is its side, behind zeros up to whole patches."""

    def forward(self, x):
        side = self.kernel_size[0]
        rest = [-length % side for length in x.shape[2:]]
        return super().forward(F.pad(x, (0, rest[1], 0, rest[0])))


class SamePatches(nn.Conv2d):
    """Stride 1 and 'same' padding of a 2x2 kernel: an odd number has one more at the far side."""

    def forward(self, x):
        reach = self.dilation[0]
        before, after = reach // 2, reach - reach // 2
        return super().forward(F.pad(x, (before, after, before, after)))


class ConvNeXt(nn.Module):
    """Features of four stages, under the authors' names or timm's.

    `dilations` has for each stage (that of the 2x2 convolution; None: it has stride 2, that of the
    blocks).
    """

    def __init__(self, channels, depths, dilations, *, timm, norms, classes=10):
        super().__init__()
        self.timm = timm
        widths = [channels * 2**i for i in range(4)]
        downs = [nn.Sequential(WholePatches(3, channels, 4, 4), ChannelNorm(channels))]
        for i in range(1, 4):
            own = dilations[i][0]
            conv = WholePatches(widths[i - 1], widths[i], 2, 2)
            if own is not None:
                conv = SamePatches(widths[i - 1], widths[i], 2, dilation=own)
            downs.append(nn.Sequential(ChannelNorm(widths[i - 1]), conv))
        names = ('conv_dw', 'mlp') if timm else ('dwconv', 'pwconv')
        stages = [
            nn.Sequential(*(Block(widths[i], dilations[i][1], names) for _ in range(depths[i])))
            for i in range(4)
        ]
        head = nn.Linear(widths[-1], classes)
        if timm:
            self.stem = downs[0]
            self.stages = nn.ModuleList()
            for i in range(4):
                stage = nn.Module()
                if i:
                    stage.downsample = downs[i]
                stage.blocks = stages[i]
                self.stages.append(stage)
            self.head = nn.ModuleDict({'norm': ChannelNorm(widths[-1]), 'fc': head})
        else:
            self.downsample_layers, self.stages = nn.ModuleList(downs), nn.ModuleList(stages)
            if not norms:
                self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
                self.head = head
        self.norms = norms
        for i in range(4 if norms else 0):
            setattr(self, f'norm{i}', ChannelNorm(widths[i]))
        self.eps_only = [ChannelNorm(n).requires_grad_(False) for n in widths]

    def forward(self, x):
        outputs = []
        for i in range(4):
            if self.timm:
                down = self.stages[i].downsample if i else self.stem
                x = self.stages[i].blocks(down(x))
            else:
                x = self.stages[i](self.downsample_layers[i](x))
            norm = getattr(self, f'norm{i}') if self.norms else self.eps_only[i]
            outputs.append(norm(x))
        return outputs
