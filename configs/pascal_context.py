"""PASCAL Context with 59 or 60 classes and the network of configs/folder.py.

    python main.py --config=configs/pascal_context.py:59 --config.data.manual_dir=DIR

DIR is VOCdevkit/VOC2010 of
http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar, with the labels and
lists that tools/dataset_converters/pascal_context.py of mmsegmentation writes into it from
trainval_merged.json:

    JPEGImages/*.jpg
    SegmentationClassContext/*.png               ids 0 (background) to 59
    ImageSets/SegmentationContext/train.txt, val.txt

Variants, written --config=configs/pascal_context.py:VARIANT,

    59        without background (the default): 0 is no class
    60        with background

The measure is mIoU. The labels of all 459 categories, .mat files, are not read.

Sources: open-mmlab/mmsegmentation: mmseg/datasets/pascal_context.py (names, colours),
configs/_base_/datasets/pascal_context.py and pascal_context_59.py (folders, lists).
"""

from ml_collections import ConfigDict

from configs import folder
from ggcf_jax.errors import InputError

IGNORED = {'59': (0, 255), '60': (255,)}


def get_config(variant: str = '59') -> ConfigDict:
    if variant not in IGNORED:
        raise InputError(f'configs/pascal_context.py:{variant} is not one of {", ".join(IGNORED)}')
    config = folder.get_config()
    config.data.classes = f'published:pascal_context_{variant}'
    config.data.ignore = IGNORED[variant]
    config.data.label_form = 'ids'
    labels = 'JPEGImages,SegmentationClassContext,ImageSets/SegmentationContext'
    config.data.splits.train = f'{labels}/train.txt'
    config.data.splits.validation = f'{labels}/val.txt'
    config.eval.metrics = 'miou,pixel_accuracy'
    return config
