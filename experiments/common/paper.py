"""What the paper and others report, to print beside what was measured: mIoU and IoU in percent."""

import dataclasses

TABLE1 = {  # Cityscapes, ResNet-101
    'Baseline': 76.0,
    'ASPP': 77.8,
    'FULL': 78.8,
    'FULL + ContextPruning': 79.1,
    'FULL, FULL': 78.7,
    'FULL, LOCAL_10': 78.9,
    'FULL, LOCAL_{8,16,24}': 79.3,
    'FULL, GRID_10': 78.9,
    'FULL, GRID_{8,16,24}': 78.3,
    'LOCAL_10': 76.2,
    'LOCAL_{8,16,24}': 76.2,
    'GRID_10': 77.6,
    'GRID_{10,10,10}': 78.7,
    'GRID_{8,16,24}': 79.4,
    '{LOCAL, GRID}_{8,16,24}': 79.6,
    '{LOCAL, GRID}_{8,16,24} + ContextPruning': 79.9,
    'FULL, {LOCAL, GRID}_{8,16,24}': 79.0,
    'Trainable E': 78.9,
}

TABLE2 = {  # ADE20K, ResNet-50
    'Baseline': 33.3,
    'FULL': 40.3,
    '{LOCAL, GRID}_{8,16,24}': 41.2,
    '{LOCAL, GRID}_{8,16,24} + ContextPruning': 41.3,
}

TABLE4 = 83.2  # Cityscapes test set, WideResNet-38, fine and coarse labels


@dataclasses.dataclass(frozen=True)
class Published:
    """A validation result of another project, one model and one scale unless it says otherwise.

    Attributes:
        what: context module and recipe.
        miou: mIoU in percent; several are runs of one recipe.
        source: file that has the number.
    """

    what: str
    miou: tuple[float, ...]
    source: str


_MMSEG = 'open-mmlab/mmsegmentation configs'
# Cityscapes, ResNet-101 at output stride 8, 769 x 769.
PEERS_CITYSCAPES = (
    Published('Non-local, 80,000 steps', (79.40,), f'{_MMSEG}/nonlocal_net/README.md'),
    Published('ISA, 80,000 steps', (80.61,), f'{_MMSEG}/isanet/README.md'),
    Published('CCNet, 80,000 steps', (79.45,), f'{_MMSEG}/ccnet/README.md'),
    Published('CCNet, 60,000 steps', (79.74, 79.22, 78.40), 'speedinghzl/CCNet README.md'),
    Published(
        'CCNet with OHEM, 60,000 steps', (78.67, 80.00, 79.83), 'speedinghzl/CCNet README.md'
    ),
)
# ADE20K, ResNet-50 at output stride 8, 512 x 512.
PEERS_ADE20K = (
    Published('Non-local, 160,000 steps of 16', (42.03,), f'{_MMSEG}/nonlocal_net/README.md'),
    Published('ISA, 160,000 steps of 16', (42.59,), f'{_MMSEG}/isanet/README.md'),
    Published('CCNet, 160,000 steps of 16', (42.08,), f'{_MMSEG}/ccnet/README.md'),
)

# Cityscapes, ResNet-101. Table 1 has 76.0 for the Baseline; the mean of these IoUs is 76.3.
_CLASSES = (
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light', 'traffic sign',
    'vegetation', 'terrain', 'sky', 'person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle',
    'bicycle',
)  # fmt: skip
TABLE3 = {
    name: dict(zip(_CLASSES, values))
    for name, values in {
        'Baseline': (98.3, 85.9, 92.8, 52.3, 59.7, 66.7, 72.8, 80.4, 92.7, 64.6, 94.8, 83.5, 65.4,
                     95.0, 67.6, 80.9, 59.0, 59.3, 78.8),
        'FULL': (98.4, 86.5, 92.8, 54.2, 60.2, 66.4, 72.7, 80.7, 92.7, 65.5, 94.9, 83.6, 65.6, 95.5,
                 78.9, 89.6, 75.3, 64.5, 79.1),
        '{LOCAL, GRID}_{8,16,24}': (98.4, 86.6, 93.0, 58.4, 60.7, 66.7, 72.9, 80.5, 92.9, 66.2,
                                    94.8, 83.2, 65.0, 95.6, 82.7, 90.6, 79.8, 65.5, 79.1),
        '{LOCAL, GRID}_{8,16,24} + ContextPruning': (98.4, 86.7, 93.1, 60.1, 60.7, 66.4, 72.7, 80.1,
                                                     92.9, 66.6, 95.0, 83.2, 65.0, 95.6, 83.6, 90.7,
                                                     79.9, 67.8, 78.9),
    }.items()
}  # fmt: skip

# "Efficiency": FLOPs of a module in Gi (2^30), for a map of 128 x 256.
EFFICIENCY = {'full': 520, 'local:8,16,24,grid:8,16,24': 63}
