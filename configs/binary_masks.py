"""Masks of 0 and 255, one class and its background, in the layout of configs/folder.py.

    python main.py --config=configs/binary_masks.py --config.data.manual_dir=DIR

    train/images/a.jpg                           validation/images/...
    train/labels/a.png, or a_mask.png            0 background, 255 object; every pixel counts

The class has the name 'object'; a classes.csv of your own gives it another:
--config.data.classes=classes.csv, with the lines 'name,ids', 'background,0', 'crack,255'. mIoU
and mean F1, the mean of the Dice coefficients of object and background, are shown;
--mode=evaluate shows those of each class. Masks of 0 and 1 need a classes.csv with 'crack,1'.
"""

from ml_collections import ConfigDict

from configs import folder


def get_config() -> ConfigDict:
    config = folder.get_config()
    config.data.classes = 'published:binary_mask'
    config.data.ignore = ()
    config.data.label_form = 'ids'
    config.eval.metrics = 'miou,mean_f1,pixel_accuracy'
    return config
