"""Parts of people, LIP and PASCAL-Person-Part, with the network of configs/folder.py.

    python main.py --config=configs/human_parts.py:lip --config.data.manual_dir=DIR

Variants, written --config=configs/human_parts.py:VARIANT, and what DIR holds:

    lip       TrainVal_images.zip and TrainVal_parsing_annotations.zip of
              https://lip.sysuhcp.com/overview.php, unpacked so that (the default)
                  train_images/*.jpg               val_images/*.jpg
                  train_segmentations/*.png        val_segmentations/*.png
    pascal    PASCAL-Person-Part in the layout of configs/folder.py, train/images, train/labels,
              validation/images and validation/labels, with the ids below: there are several
              distributions of it, which number the parts differently

Labels are ids from 0, the background; 255 is no class. The ids of 'pascal' are background, head,
torso, upper arms, lower arms, upper legs, lower legs. mIoU, mean and pixel accuracy are shown.
Training mirrors half of the crops and does not exchange LIP's left and right parts in them.

Sources: open-mmlab/mmsegmentation: mmseg/datasets/lip.py (names, colours),
docs/en/user_guides/2_dataset_prepare.md (folders); GoGoDuck912/Self-Correction-Human-Parsing:
simple_extractor.py (names and order of 'pascal').
"""

from ml_collections import ConfigDict

from configs import folder
from ggcf_jax.errors import InputError


def lip(config: ConfigDict) -> None:
    config.data.classes = 'published:lip'
    config.data.splits.train = 'train_images,train_segmentations'
    config.data.splits.validation = 'val_images,val_segmentations'


def pascal(config: ConfigDict) -> None:
    config.data.classes = 'published:person_part'


VARIANTS = {'lip': lip, 'pascal': pascal}


def get_config(variant: str = 'lip') -> ConfigDict:
    if variant not in VARIANTS:
        raise InputError(f'configs/human_parts.py:{variant} is not one of {", ".join(VARIANTS)}')
    config = folder.get_config()
    config.data.ignore = (255,)
    config.data.label_form = 'ids'
    config.eval.metrics = 'miou,mean_accuracy,pixel_accuracy'
    VARIANTS[variant](config)
    return config
