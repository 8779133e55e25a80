"""Audi's A2D2 semantic segmentation, 38 classes, with the network of configs/folder.py.

    python main.py --config=configs/a2d2.py --config.data.manual_dir=DIR

DIR is camera_lidar_semantic of https://www.a2d2.audi, unpacked:

    20180807_145028/camera/cam_front_center/20180807145028_camera_frontcenter_000000091.png
    20180807_145028/label/cam_front_center/20180807145028_label_frontcenter_000000091.png

Labels are the 55 colours of class_list.json. 'Car 1' to 'Car 4' tell neighbouring cars apart, and
so do the other numbered ones: each group is one class, which leaves 38. Every pixel has a class.

The data set's own description (README-SemSeg.txt: 41,277 frames in 23 recordings) names no split:
the recordings of December are our validation split, those before it are trained on. mIoU is shown.

Sources: README-SemSeg.txt beside the archives
(https://aev-autonomous-driving-dataset.s3.eu-central-1.amazonaws.com/README-SemSeg.txt: folders,
names of files); class_list.json of the data set, copies of which are in
jprusakiewicz/A2D2_semantic_segmentation: data/class_list.json (names) and
Fudan-Autonomous-Driving-Perception/STDC-Seg-A2D2: class_list.json (the same colours in the same
38 groups); aws-samples/sagemaker-a2d2-segmentation-pytorch: 2D-Segmentation-Audi-A2D2.ipynb
(folders).
"""

from ml_collections import ConfigDict

from configs import folder


def _files(recordings: str) -> str:
    return f'{recordings}/camera/*/*_camera_*.png,{recordings}/label/*/*_label_*.png'


def get_config() -> ConfigDict:
    config = folder.get_config()
    config.data.classes = 'published:a2d2'
    config.data.ignore = ()
    config.data.label_form = 'colors'
    config.data.splits.train = _files('2018[01][!2]*')
    config.data.splits.validation = _files('201812*')
    config.eval.metrics = 'miou,pixel_accuracy'
    return config
