"""BDD100K semantic segmentation, 19 classes, with the network of configs/folder.py.

    python main.py --config=configs/bdd100k.py --config.data.manual_dir=DIR

DIR is the folder bdd100k of '10K Images' and 'Semantic Segmentation' from
https://dl.cv.ethz.ch/bdd100k/data (free after registration):

    images/10k/train/*.jpg                       images/10k/val/*.jpg
    labels/sem_seg/masks/train/*.png             labels/sem_seg/masks/val/*.png

Labels are the train ids of Cityscapes, 255 is no class. The official measure is mIoU; its devkit
also gives pixel accuracy and frequency-weighted IoU (bdd100k/bdd100k: bdd100k/eval/seg.py).

Sources: bdd100k/bdd100k: bdd100k/label/label.py, doc/source/download.rst, doc/source/format.rst;
folders and table of classes also in open-mmlab/mmsegmentation: mmseg/datasets/bdd100k.py and
configs/_base_/datasets/bdd100k.py.
"""

from ml_collections import ConfigDict

from configs import folder


def get_config() -> ConfigDict:
    config = folder.get_config()
    config.data.classes = 'published:bdd100k'
    config.data.ignore = (255,)
    config.data.splits.train = 'images/10k/train,labels/sem_seg/masks/train'
    config.data.splits.validation = 'images/10k/val,labels/sem_seg/masks/val'
    config.eval.metrics = 'miou,pixel_accuracy,frequency_weighted_iou'
    return config
