"""Plain PyTorch ResNets whose modules are named as in the published files."""

import torch
from torch import nn

DEPTHS = {
    'resnet18': (False, (2, 2, 2, 2)),
    'resnet50': (True, (3, 4, 6, 3)),
    'resnet101': (True, (3, 4, 23, 3)),
}


def randomise(network: nn.Module, seed: int) -> nn.Module:
    """Random weights and statistics, of a size that keeps deep features finite; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 1.0, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)
            nn.init.normal_(module.running_mean, 0.0, 0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=generator)
    return network.eval()


class _Block(nn.Module):
    def __init__(self, inputs, width, bottleneck, stride, first, dilation, activation):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, first, first, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        else:
            self.conv1 = nn.Conv2d(inputs, width, 3, stride, first, first, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.activation = activation

    def forward(self, x):
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if hasattr(self, 'conv3'):
            y = self.bn3(self.conv3(self.activation(y)))
        return self.activation(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Four stages; `dilations` has (first, others) of each block, strides are 1 where dilated."""

    def __init__(self, name, width, stem, strides, dilations, activation, classes=7):
        super().__init__()
        bottleneck, depths = DEPTHS[name]
        layout, *channels = stem
        pairs = list(zip((3, *channels), channels))
        convs = [
            nn.Conv2d(n, m, 7, 2, 3, bias=False) if len(pairs) == 1
            else nn.Conv2d(n, m, 3, 2 if i == 0 else 1, 1, bias=False)
            for i, (n, m) in enumerate(pairs)
        ]  # fmt: skip
        norms = [nn.BatchNorm2d(m) for m in channels]
        if layout == 'numbered':
            for i, (conv, norm) in enumerate(zip(convs, norms), 1):
                setattr(self, f'conv{i}', conv)
                setattr(self, f'bn{i}', norm)
            self.steps = lambda: [(getattr(self, f'conv{i}'), getattr(self, f'bn{i}'))
                                  for i in range(1, len(convs) + 1)]  # fmt: skip
        elif layout == 'resinit':
            self.resinit = nn.Module()
            for i, (conv, norm) in enumerate(zip(convs, norms), 1):
                setattr(self.resinit, f'conv{i}', conv)
                setattr(self.resinit, f'bn{i}', norm)
            self.steps = lambda: list(zip(convs, norms))
        elif layout == 'mmseg':
            layers = [m for pair in zip(convs, norms) for m in (*pair, nn.ReLU())]
            self.stem = nn.Sequential(*layers)
            self.steps = lambda: list(zip(convs, norms))
        elif layout == 'timm':
            layers = [m for pair in zip(convs, norms) for m in (*pair, nn.ReLU())]
            self.conv1, self.bn1 = nn.Sequential(*layers[:-2]), norms[-1]
            self.steps = lambda: list(zip(convs, norms))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = channels[-1]
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                first, other = dilations[i][j]
                stride = strides[i] if j == 0 else 1
                blocks.append(
                    _Block(inputs, width * 2**i, bottleneck, stride, first, other, activation)
                )
                inputs = width * 2**i * (4 if bottleneck else 1)
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)
        self.activation = activation

    def forward(self, x):
        for conv, norm in self.steps():
            x = self.activation(norm(conv(x)))
        x = self.maxpool(x)
        features = []
        for i in range(1, 5):
            x = getattr(self, f'layer{i}')(x)
            features.append(x)
        return features
