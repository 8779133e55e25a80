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

For few images there is a variant whose backbone stays as published:

    python main.py --config=configs/folder.py:dinov2_s --config.data.manual_dir=DIR \
        --config.model.backbone.weights=dinov2_vits14_pretrain.pth

`dinov2_s` trains a linear classifier on DINOv2's ViT-S/14 (docs/pretrained.md has the file);
--config.model.context=ggcf puts the paper's heads between. The authors report 47.2 mIoU on ADE20K
(MODEL_CARD.md of facebookresearch/dinov2) for a linear classifier of the last four blocks of this
frozen backbone at several image scales. It has not been measured here.
"""

from ml_collections import ConfigDict

from ggcf_jax import config as config_lib
from ggcf_jax.errors import InputError


def r18(config: ConfigDict) -> None:
    """A ResNet-18, all of which is trained."""
    config.data.crop_size = (513, 513)
    config.model.backbone.name = 'resnet18'
    config.model.aux_channels = 128
    config.train.steps = 20_000
    config.train.learning_rate = 0.02


def dinov2_s(config: ConfigDict) -> None:
    """A frozen DINOv2 ViT-S/14 below a linear classifier.

    Optimiser, schedule, crops and windows are those of the authors' linear heads on ADE20K and VOC
    as Jiawei-Yang/Denoising-ViT has them (evaluation/configs/vitb_voc2012_linear_config.py), with
    40,000 steps of 16 images; the number of steps here, for few images, is ours.
    """
    config.data.crop_size = (512, 512)  # 37 patches, as many as there are trained positions
    config.model.backbone.name = 'dinov2_small'
    config.model.backbone.expected_weights = 'DINOv2 ViT-S/14'
    config.model.backbone.stride = 14
    config.model.context = 'linear'
    config.model.heads = 'local:5,9,14,grid:5,9,14'  # as many pixels as the paper's at stride 8
    config.model.dropout = 0.0
    config.train.frozen = 'backbone'
    config.train.aux_weight = 0.0  # stage 3 is frozen, too
    config.train.steps = 5_000
    config.train.warmup_steps = 500
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 1e-3
    config.train.weight_decay = 1e-4
    config.train.poly_power = 1.0
    config.eval.window = (512, 512)
    config.eval.stride = (341, 341)


VARIANTS = {'r18': r18, 'dinov2_s': dinov2_s}


def get_config(variant: str = 'r18') -> ConfigDict:
    if variant not in VARIANTS:
        raise InputError(f'configs/folder.py:{variant} is not one of {", ".join(VARIANTS)}')
    config = config_lib.default()

    config.data.name = 'folder'
    config.data.classes = 'classes.csv'
    config.data.ignore = (255,)
    config.data.splits.train = 'train/images,train/labels'
    config.data.splits.validation = 'validation/images,validation/labels'
    config.data.scale_range = (0.5, 2.0)
    config.data.max_class_share = 0.75  # mmseg
    config.data.photometric = 1.0  # mmseg
    config.data.threads = 8

    config.model.ggcf.key_channels = 64
    config.model.ggcf.value_channels = 64

    config.train.batch_size = 8
    config.train.log_every = 20
    config.train.eval_every = 1_000
    config.train.checkpoint_every = 500
    config.train.max_skipped = 20
    VARIANTS[variant](config)
    return config
