"""LoveDA, 7 classes of land cover, urban and rural, with the network of configs/folder.py.

    python main.py --config=configs/loveda.py --config.data.manual_dir=DIR

DIR holds Train.zip and Val.zip of https://doi.org/10.5281/zenodo.5706578, unpacked:

    Train/Urban/images_png/*.png                 Train/Urban/masks_png/*.png
    Train/Rural/images_png/*.png                 Train/Rural/masks_png/*.png
    Val/Urban/..., Val/Rural/...

Labels are 1 to 7, 0 is no class. The labels of Test are withheld. Variants, written
--config=configs/loveda.py:VARIANT,

    all       both scenes (the default)
    urban, rural
              one scene

The measure is mIoU over the 7 classes, background included.

Sources: Junjue-Wang/LoveDA: Semantic_Segmentation/data/loveda.py (names, colours);
open-mmlab/mmsegmentation: mmseg/datasets/loveda.py (0 is ignored),
tools/dataset_converters/loveda.py (folders), configs/_base_/datasets/loveda.py (measure).
"""

from ml_collections import ConfigDict

from configs import folder
from ggcf_jax.errors import InputError

SCENES = {'all': '*', 'urban': 'Urban', 'rural': 'Rural'}


def get_config(variant: str = 'all') -> ConfigDict:
    if variant not in SCENES:
        raise InputError(f'configs/loveda.py:{variant} is not one of {", ".join(SCENES)}')
    config = folder.get_config()
    scene = SCENES[variant]
    config.data.classes = 'published:loveda'
    config.data.ignore = (0,)
    config.data.label_form = 'ids'
    config.data.splits.train = f'Train/{scene}/images_png/*.png,Train/{scene}/masks_png/*.png'
    config.data.splits.validation = f'Val/{scene}/images_png/*.png,Val/{scene}/masks_png/*.png'
    config.eval.metrics = 'miou,pixel_accuracy'
    return config
