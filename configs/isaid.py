"""iSAID, 15 classes of objects and background, with the network of configs/folder.py.

    python main.py --config=configs/isaid.py --config.data.manual_dir=DIR

Images are those of DOTA v1.0 (https://captain-whu.github.io/DOTA), labels those of
https://captain-whu.github.io/iSAID. Variants, written --config=configs/isaid.py:VARIANT, and what
DIR holds:

    patches   iSAID_patches (the default), as preprocess/split.py of iSAID_Devkit cuts images and
              labels:
                  train/images/P0002_0_0_800_800.png
                  train/images/P0002_0_0_800_800_instance_color_RGB.png    colours
                  val/images/...
              *_instance_id_RGB.png may lie beside them. The folder iSAID, before it is cut, is
              read as well, but its images are too large to be evaluated whole
    cut       pieces of 896 x 896, as tools/dataset_converters/isaid.py of mmsegmentation writes
              them, with ids 0 to 15 and 255:
                  img_dir/train/P0002_0_896_0_896.png
                  ann_dir/train/P0002_0_896_0_896_instance_color_RGB.png
                  img_dir/val, ann_dir/val

mIoU over the 16 classes, background included, is the measure of mmsegmentation
(configs/_base_/datasets/isaid.py); the benchmark of the data set itself is one of instances.

Sources: CAPTAIN-WHU/iSAID_Devkit: README.md (files); open-mmlab/mmsegmentation:
mmseg/datasets/isaid.py (names), tools/dataset_converters/isaid.py (colours, ids).
"""

from ml_collections import ConfigDict

from configs import folder
from ggcf_jax.errors import InputError


def _patches(split: str) -> str:
    """Images end in a digit, the two kinds of labels do not."""
    return f'{split}/images/P*[0-9].png,{split}/images/P*[0-9]_instance_color_RGB.png'


def patches(config: ConfigDict) -> None:
    config.data.label_form = 'colors'
    config.data.splits.train = _patches('train')
    config.data.splits.validation = _patches('val')


def cut(config: ConfigDict) -> None:
    config.data.label_form = 'ids'
    config.data.label_endings = '_instance_color_RGB'
    config.data.splits.train = 'img_dir/train,ann_dir/train'
    config.data.splits.validation = 'img_dir/val,ann_dir/val'


VARIANTS = {'patches': patches, 'cut': cut}


def get_config(variant: str = 'patches') -> ConfigDict:
    if variant not in VARIANTS:
        raise InputError(f'configs/isaid.py:{variant} is not one of {", ".join(VARIANTS)}')
    config = folder.get_config()
    config.data.classes = 'published:isaid'
    config.data.ignore = (255,)
    config.eval.metrics = 'miou,pixel_accuracy'
    VARIANTS[variant](config)
    return config
