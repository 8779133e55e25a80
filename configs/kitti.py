"""KITTI semantic segmentation 2015, 19 classes, with the network of configs/folder.py.

    python main.py --config=configs/kitti.py --config.data.manual_dir=DIR

DIR is data_semantics.zip of https://www.cvlibs.net/datasets/kitti/eval_semseg.php, unpacked:

    training/image_2/000000_10.png               200 images
    training/semantic/000000_10.png              label ids of Cityscapes

There is no official validation split: every fifth image, whose number ends in 0 or 5, is ours.
The measure of the benchmark is that of Cityscapes, mIoU. Weights of configs/cityscapes.py fit
(--config.train.start_from=WORKDIR): the classes are the same.

Sources: the devkit's readme, a copy of which is in stevenwudi/6DVNET:
maskrcnn_benchmark/data/datasets/devkit_semantics/README.md (files, ids);
mcordts/cityscapesScripts: cityscapesscripts/helpers/labels.py (names, colours, ids);
andrijazz/playground: projects/datasets/download_kitti.sh (files of the unpacked archive:
training/image_2/000160_10.png).
"""

from ml_collections import ConfigDict

from configs import folder


def _files(last: str) -> str:
    """The images whose number ends in one of some digits."""
    return f'training/image_2/*[{last}]_10.png,training/semantic/*[{last}]_10.png'


def get_config() -> ConfigDict:
    config = folder.get_config()
    config.data.classes = 'published:kitti'
    # Label ids that cityscapesscripts does not train on; 255 is its -1 in 8 bits.
    config.data.ignore = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255)
    config.data.label_form = 'ids'
    config.data.splits.train = _files('1-46-9')
    config.data.splits.validation = _files('05')
    config.eval.metrics = 'miou,pixel_accuracy'
    return config
