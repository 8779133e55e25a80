"""Plain PyTorch WideResNet-38 (A2) whose modules are named as in InPlace-ABN's files."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional


class AbsNorm(nn.BatchNorm2d):
    """InPlace-ABN: scales by |weight| + eps, then leaky ReLU."""

    def forward(self, x):
        scale = self.weight.abs() + self.eps
        y = functional.batch_norm(
            x, self.running_mean, self.running_var, scale, self.bias, False, 0.0, self.eps
        )
        return functional.leaky_relu(y, 0.01)


class _Block(nn.Module):
    def __init__(self, inputs, channels, stride, dilation):
        super().__init__()
        self.bn1 = AbsNorm(inputs)
        layers = OrderedDict()
        for i, (n, m) in enumerate(zip((inputs, *channels), channels), 1):
            kernel = 3 if len(channels) == 2 or i == 2 else 1
            if i > 1:
                layers[f'bn{i}'] = AbsNorm(n)
            padding = dilation if kernel == 3 else 0
            layers[f'conv{i}'] = nn.Conv2d(
                n, m, kernel, stride if i == 1 else 1, padding, dilation, bias=False
            )
        self.convs = nn.Sequential(layers)
        if stride > 1 or inputs != channels[-1]:
            self.proj_conv = nn.Conv2d(inputs, channels[-1], 1, stride, bias=False)

    def forward(self, x):
        y = self.bn1(x)
        return self.convs(y) + (self.proj_conv(y) if hasattr(self, 'proj_conv') else x)


class WideResNet38(nn.Module):
    """`modules` lists (blocks, channels, stride, dilations) of mod2 to mod7."""

    def __init__(self, width, strides, dilations, classes=7):
        super().__init__()
        w = width
        structure = [
            (3, (2 * w, 2 * w)),
            (3, (4 * w, 4 * w)),
            (6, (8 * w, 8 * w)),
            (3, (8 * w, 16 * w)),
            (1, (8 * w, 16 * w, 32 * w)),
            (1, (16 * w, 32 * w, 64 * w)),
        ]
        self.mod1 = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, w, 3, 1, 1, bias=False)))
        inputs = w
        for i, (depth, channels) in enumerate(structure):
            blocks = OrderedDict()
            for j in range(depth):
                stride = strides[i] if j == 0 else 1
                blocks[f'block{j + 1}'] = _Block(inputs, channels, stride, dilations[i])
                inputs = channels[-1]
            setattr(self, f'mod{i + 2}', nn.Sequential(blocks))
        self.bn_out = AbsNorm(inputs)
        self.classifier = nn.Sequential(OrderedDict(fc=nn.Linear(inputs, classes)))

    def forward(self, x):
        x = self.mod1(x)
        outputs = []
        for i in range(2, 8):
            if i < 4:
                x = functional.max_pool2d(x, 3, 2, 1)
            x = getattr(self, f'mod{i}')(x)
            outputs.append(x)
        _, mod3, mod4, _, mod6, mod7 = outputs
        return [mod3, mod4, mod6, self.bn_out(mod7)]


def negative_scales(network: nn.Module) -> None:
    """Flips the sign of every other scale, which this form of the norm ignores."""
    for module in network.modules():
        if isinstance(module, AbsNorm):
            module.weight.data[::2] *= -1


def count_parameters() -> int:
    """Parameters of the published network without classifier."""
    with torch.device('meta'):
        network = WideResNet38(64, (1,) * 6, (1,) * 6)
    del network.classifier
    return sum(parameter.numel() for parameter in network.parameters())
