"""Mapillary Vistas with the network of configs/folder.py.

    python main.py --config=configs/mapillary.py:v1.2 --config.data.manual_dir=DIR

DIR is the unpacked archive from https://www.mapillary.com/dataset/vistas (free after
registration):

    training/images/*.jpg                        validation/images/*.jpg
    training/v1.2/labels/*.png                   validation/v1.2/labels/*.png
    training/v2.0/labels/*.png                   validation/v2.0/labels/*.png

Labels are palette PNGs, whose indices are the places of the labels in config_v1.2.json and
config_v2.0.json. Variants, written --config=configs/mapillary.py:VARIANT,

    v1.2      65 classes (the default); 65, 'Unlabeled', is no class
    v2.0      123 classes; 123, 'Unlabeled', is no class

The measure is mIoU over the labels whose field 'evaluate' in config_v1.2.json or config_v2.0.json
is true (mapillary/mapillary_vistas: mapillary_vistas/evaluation/confusion_matrix.py). In v1.2 those
are all but 'Unlabeled'; the fields of v2.0 are in the download alone, which needs a registration:
look at them before you compare figures.

Sources: open-mmlab/mmsegmentation: mmseg/datasets/mapillary.py (both tables);
openvinotoolkit/datumaro: src/datumaro/plugins/data_formats/mapillary_vistas/format.py (order and
colours of the same 66 and 124 labels); open-mmlab/mmsegmentation:
configs/_base_/datasets/mapillary_v1_65.py (the 65 evaluated classes),
docs/en/user_guides/2_dataset_prepare.md (folders).
"""

from ml_collections import ConfigDict

from configs import folder
from ggcf_jax.errors import InputError

UNLABELED = {'v1.2': 65, 'v2.0': 123}


def get_config(variant: str = 'v1.2') -> ConfigDict:
    if variant not in UNLABELED:
        raise InputError(f'configs/mapillary.py:{variant} is not one of {", ".join(UNLABELED)}')
    config = folder.get_config()
    config.data.classes = f'published:mapillary_{variant}'
    config.data.ignore = (UNLABELED[variant],)
    config.data.splits.train = f'training/images,training/{variant}/labels'
    config.data.splits.validation = f'validation/images,validation/{variant}/labels'
    config.eval.metrics = 'miou,pixel_accuracy'
    return config
