"""COCO-Stuff 164k, 171 classes, with the network of configs/folder.py.

    python main.py --config=configs/coco_stuff.py --config.data.manual_dir=DIR

DIR holds train2017.zip and val2017.zip of http://images.cocodataset.org/zips, unpacked in images,
and stuffthingmaps_trainval2017.zip (github.com/nightrome/cocostuff), unpacked in annotations:

    images/train2017/*.jpg                       images/val2017/*.jpg
    annotations/train2017/*.png                  annotations/val2017/*.png

Labels are as published: 0 to 181 are the ids of labels.txt less one, 255 is no class. The 11 ids
of things without any segmentation (labels.txt: street sign, hat, shoe, eye glasses, plate,
mirror, window, desk, door, blender, hair brush) do not occur. The authors report class accuracy,
pixel accuracy, mIoU and frequency-weighted IoU on val2017.

Sources: nightrome/cocostuff: labels.txt (names, ids), README.md (files, measures);
open-mmlab/mmsegmentation: tools/dataset_converters/coco_stuff164k.py (the 171 ids),
mmseg/datasets/coco_stuff.py (colours, some of which several classes share).
"""

from ml_collections import ConfigDict

from configs import folder


def get_config() -> ConfigDict:
    config = folder.get_config()
    config.data.classes = 'published:coco_stuff'
    config.data.ignore = (255,)
    config.data.label_form = 'ids'
    config.data.splits.train = 'images/train2017,annotations/train2017'
    config.data.splits.validation = 'images/val2017,annotations/val2017'
    config.eval.metrics = 'miou,mean_accuracy,pixel_accuracy,frequency_weighted_iou'
    return config
