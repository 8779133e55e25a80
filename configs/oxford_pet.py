"""Trimaps of the Oxford-IIIT Pets, with the network of configs/folder.py.

    python main.py --config=configs/oxford_pet.py --config.data.manual_dir=DIR

DIR holds images.tar.gz and annotations.tar.gz of https://www.robots.ox.ac.uk/~vgg/data/pets,
unpacked:

    images/Abyssinian_1.jpg
    annotations/trimaps/Abyssinian_1.png         1 foreground, 2 background, 3 not classified
    annotations/trainval.txt, test.txt           the name at the start of each line

Variants, written --config=configs/oxford_pet.py:VARIANT,

    trimap    foreground and background (the default); 3, the border, is no class
    border    all three are classes, as in TensorFlow's tutorial

The test split is our validation split. mIoU and mean F1 are shown; the data set has no official
measure of segmentation.

Sources: pytorch/vision: torchvision/datasets/oxford_iiit_pet.py (files, lists);
keras-team/keras-io: examples/vision/md/oxford_pets_image_segmentation.md (three classes); the
meaning of the values from annotations/README in the archive, as quoted by several of its users.
"""

from ml_collections import ConfigDict

from configs import folder
from ggcf_jax.errors import InputError


def trimap(config: ConfigDict) -> None:
    config.data.classes = 'published:oxford_pet'
    config.data.ignore = (3,)


def border(config: ConfigDict) -> None:
    config.data.classes = 'published:oxford_pet_border'
    config.data.ignore = ()


VARIANTS = {'trimap': trimap, 'border': border}


def get_config(variant: str = 'trimap') -> ConfigDict:
    if variant not in VARIANTS:
        raise InputError(f'configs/oxford_pet.py:{variant} is not one of {", ".join(VARIANTS)}')
    config = folder.get_config()
    config.data.label_form = 'ids'
    config.data.splits.train = 'images,annotations/trimaps,annotations/trainval.txt'
    config.data.splits.validation = 'images,annotations/trimaps,annotations/test.txt'
    config.eval.metrics = 'miou,mean_f1,pixel_accuracy'
    VARIANTS[variant](config)
    return config
