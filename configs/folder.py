"""Your own images and labels: no code to write.

    python main.py --mode=doctor --config=configs/folder.py --config.data.manual_dir=DIR
    python main.py --config=configs/folder.py --config.data.manual_dir=DIR

With the values below DIR holds

    classes.csv                         names, colours and label values, or one name a line
    train/images/a/b.jpg                any folders inside; PNG, JPEG, TIFF, WebP, BMP or GIF
    train/labels/a/b.png                ids or colours; also b_mask.png, b_gt.tif, b.npy, ...
    validation/images/ and validation/labels/

Other folders, one folder of images and labels, or list files with one 'image label' pair a line, go
into data.splits. classes.csv:

    name, red, green, blue, ids
    road, 128, 64, 128, 7 8
    car, 0, 0, 142, 26
    void, 0, 0, 0, ignore

Colours and ids are optional; without ids the n-th class is label value n, data.ignore left out.
Values that are neither ids nor in data.ignore are errors: the doctor lists the files with them.
docs/data.md has all forms of labels, names and class files.

The recipe is a medium-sized network for one GPU, a place to start from; we have not measured it. On
a few CPU cores take the network of configs/camvid.py. The heads are the paper's, made for
feature maps of 128 x 256; scale them to yours (image size / 8).
"""

from ml_collections import ConfigDict

from ggcf_jax import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.default()

    config.data.name = 'folder'
    config.data.classes = 'classes.csv'
    config.data.ignore = (255,)
    config.data.splits.train = 'train/images,train/labels'
    config.data.splits.validation = 'validation/images,validation/labels'
    config.data.crop_size = (513, 513)
    config.data.scale_range = (0.5, 2.0)
    config.data.max_class_share = 0.75  # mmseg
    config.data.photometric = 1.0  # mmseg
    config.data.threads = 8

    config.model.backbone.name = 'resnet18'
    config.model.ggcf.key_channels = 64
    config.model.ggcf.value_channels = 64
    config.model.aux_channels = 128

    config.train.steps = 20_000
    config.train.batch_size = 8
    config.train.learning_rate = 0.02
    config.train.log_every = 20
    config.train.eval_every = 1_000
    config.train.checkpoint_every = 500
    config.train.max_skipped = 20
    return config
