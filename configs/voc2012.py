"""PASCAL VOC 2012, 21 classes, with the network of configs/folder.py.

    python main.py --config=configs/voc2012.py --config.data.manual_dir=DIR

DIR is VOCdevkit/VOC2012 of
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar:

    JPEGImages/*.jpg
    SegmentationClass/*.png                      palette PNGs
    ImageSets/Segmentation/train.txt, val.txt    names without extension

Variants, written --config=configs/voc2012.py:VARIANT,

    train     the images of train.txt (the default)
    trainaug  also those of SBD (Hariharan et al., 2011), 10,582 images in all:
              SegmentationClassAug/*.png and ImageSets/Segmentation/aug.txt, which
              tools/dataset_converters/voc_aug.py of mmsegmentation makes from SBD's .mat files

255 is the border of objects, no class. The measure is mIoU over the 21 classes, background
included.

Sources: open-mmlab/mmsegmentation: mmseg/datasets/voc.py (names, colours),
configs/_base_/datasets/pascal_voc12.py and pascal_voc12_aug.py (folders, lists),
tools/dataset_converters/voc_aug.py (aug.txt: the images of SBD's train.txt and val.txt that are in
neither list of VOC; AUG_LEN, 10582, is checked there). tensorflow/models:
research/deeplab/datasets/data_generator.py counts 1,464, 10,582 and 1,449 (train, train_aug, val).
"""

from ml_collections import ConfigDict

from configs import folder
from ggcf_jax.errors import InputError

_OWN = 'JPEGImages,SegmentationClass,ImageSets/Segmentation'
TRAINING = {
    'train': f'{_OWN}/train.txt',
    'trainaug': (
        f'{_OWN}/train.txt;JPEGImages,SegmentationClassAug,ImageSets/Segmentation/aug.txt'
    ),
}


def get_config(variant: str = 'train') -> ConfigDict:
    if variant not in TRAINING:
        raise InputError(f'configs/voc2012.py:{variant} is not one of {", ".join(TRAINING)}')
    config = folder.get_config()
    config.data.classes = 'published:voc2012'
    config.data.ignore = (255,)
    config.data.label_form = 'ids'
    config.data.splits.train = TRAINING[variant]
    config.data.splits.validation = f'{_OWN}/val.txt'
    config.eval.metrics = 'miou,pixel_accuracy'
    return config
