"""ISPRS Potsdam and Vaihingen, 6 classes, with the network of configs/folder.py.

    python main.py --config=configs/isprs.py:potsdam --config.data.manual_dir=DIR

The archives are requested at the contest's page,
https://www.isprs.org/education/benchmarks/UrbanSemLab. Variants, written
--config=configs/isprs.py:VARIANT, and what DIR holds:

    potsdam        2_Ortho_RGB.zip and 5_Labels_all_noBoundary.zip, unpacked:
                       2_Ortho_RGB/top_potsdam_2_10_RGB.tif
                       5_Labels_all_noBoundary/top_potsdam_2_10_label_noBoundary.tif
    vaihingen      ISPRS_semantic_labeling_Vaihingen.zip (its folder top) and, in the folder gts,
                   ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip:
                       top/top_mosaic_09cm_area1.tif
                       gts/top_mosaic_09cm_area1_noBoundary.tif
    cut            either of them in pieces of 512 x 512, as tools/dataset_converters/potsdam.py and
                   vaihingen.py of mmsegmentation write them:
                       img_dir/train, img_dir/val, ann_dir/train, ann_dir/val

Labels as published are colours; black, the eroded borders between objects, is no class. Pieces
hold ids 1 to 6, where 0 is no class. The splits are those of mmsegmentation's converters: 24 and
14 images of Potsdam, 16 and 17 of Vaihingen. Training evaluates whole images, 6000 x 6000 in
Potsdam: the doctor says whether one fits; if not, take 'cut'.

mIoU is the measure of mmsegmentation (configs/_base_/datasets/potsdam.py); mean F1 and pixel
accuracy are shown beside it. The contest's own rules could not be looked up; some published
figures leave 'clutter' out of their means.

Sources: open-mmlab/mmsegmentation: mmseg/datasets/potsdam.py and isprs.py (names, colours),
tools/dataset_converters/potsdam.py and vaihingen.py (files, splits, ids).
"""

from ml_collections import ConfigDict

from configs import folder
from ggcf_jax.errors import InputError

# Areas of Vaihingen.
_TRAINED = (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)
_VALIDATED = (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38)
_ROW = '[2-7]_*'  # of a tile of Potsdam


def _potsdam(last: str) -> str:
    """The tiles whose number ends in one of some digits."""
    return (
        f'2_Ortho_RGB/top_potsdam_{_ROW}[{last}]_RGB.tif,'
        f'5_Labels_all_noBoundary/top_potsdam_{_ROW}[{last}]_label_noBoundary.tif'
    )


def _vaihingen(areas: tuple[int, ...]) -> str:
    return 'top,gts,' + ' '.join(f'top_mosaic_09cm_area{area}' for area in areas)


def potsdam(config: ConfigDict) -> None:
    config.data.label_form = 'colors'
    config.data.splits.train = _potsdam('012789')
    config.data.splits.validation = _potsdam('345')


def vaihingen(config: ConfigDict) -> None:
    config.data.label_form = 'colors'
    config.data.label_endings = '_noBoundary'
    config.data.splits.train = _vaihingen(_TRAINED)
    config.data.splits.validation = _vaihingen(_VALIDATED)


def cut(config: ConfigDict) -> None:
    config.data.label_form = 'ids'
    config.data.splits.train = 'img_dir/train,ann_dir/train'
    config.data.splits.validation = 'img_dir/val,ann_dir/val'


VARIANTS = {'potsdam': potsdam, 'vaihingen': vaihingen, 'cut': cut}


def get_config(variant: str = 'potsdam') -> ConfigDict:
    if variant not in VARIANTS:
        raise InputError(f'configs/isprs.py:{variant} is not one of {", ".join(VARIANTS)}')
    config = folder.get_config()
    config.data.classes = 'published:isprs'
    config.data.ignore = (0, 255)
    config.eval.metrics = 'miou,mean_f1,pixel_accuracy'
    VARIANTS[variant](config)
    return config
