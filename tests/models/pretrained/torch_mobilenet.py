"""Plain PyTorch MobileNetV2 whose modules are named as in the published files."""

from torch import nn

# expansion, channels at multiplier 1, blocks, stride
SETTINGS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _Block(nn.Module):
    def __init__(self, inputs, outputs, expansion, stride, dilation, grouped):
        super().__init__()
        hidden = inputs * expansion
        steps = []
        if expansion > 1:
            steps.append([nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden)])
        depthwise = nn.Conv2d(
            hidden, hidden, 3, stride, dilation, dilation, groups=hidden, bias=False
        )
        steps.append([depthwise, nn.BatchNorm2d(hidden)])
        linear = [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        if grouped:
            layers = [nn.Sequential(*step, nn.ReLU6()) for step in steps]
        else:
            layers = [layer for step in steps for layer in (*step, nn.ReLU6())]
        self.conv = nn.Sequential(*layers, *linear)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """`channels` and `dilations` are those of the 17 blocks; strides past `stride` become 1."""

    def __init__(self, stem, channels, stride, dilations, grouped, last=24, classes=7):
        super().__init__()
        features = [
            nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU6())
        ]
        inputs, reached = stem, 2
        for expansion, _, count, step in SETTINGS:
            for i in range(count):
                own = step if i == 0 and reached * step <= stride else 1
                reached *= own
                n = len(features) - 1
                features.append(_Block(inputs, channels[n], expansion, own, dilations[n], grouped))
                inputs = channels[n]
        features.append(
            nn.Sequential(nn.Conv2d(inputs, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6())
        )
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x):
        """Features after blocks 3, 6, 13 and 17."""
        outputs = []
        for i, layer in enumerate(self.features[:-1]):
            x = layer(x)
            if i in (3, 6, 13, 17):
                outputs.append(x)
        return outputs
