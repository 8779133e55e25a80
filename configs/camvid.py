r"""CamVid (Brostow et al., 2009), 11 classes, on two CPU cores.

    python main.py --config=configs/camvid.py --config.data.manual_dir=DIR

DIR is a copy of the SegNet tutorial's CamVid folder (train/, trainannot/, val/, valannot/).
Expect a validation mIoU of 0.574 (one run, seed 0; versions that round differently gave 0.552 to
0.572, and 0.598 with --config.train.steps=3000) after 6 minutes on two AMD EPYC cores (Zen 5), 10
on older ones, in 2 GiB of memory.

The heads are the paper's {LOCAL, GRID}_{8,16,24}, made for feature maps of 128 x 256, scaled to the
45 x 60 of these images.

    python main.py --config=configs/camvid.py:mobilenet_v2 --config.data.manual_dir=DIR \
        --config.model.backbone.weights=FILE

fine-tunes MobileNetV2 with published ImageNet weights (docs/pretrained.md), for comparisons of many
rows: 4 minutes of one core (Zen 5), and a validation mIoU of 0.453 (mean of five seeds).
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import table1
from ggcf_jax import config as config_lib
from ggcf_jax.errors import InputError


def resnet10(config: ConfigDict) -> None:
    config.model.backbone.name = 'resnet10'
    config.model.backbone.width = 24
    config.data.crop_size = (256, 256)
    config.train.steps = 2400
    config.train.learning_rate = 0.05
    config.train.eval_every = 600
    config.train.checkpoint_every = 250


def mobilenet_v2(config: ConfigDict) -> None:
    config.model.backbone.name = 'mobilenet_v2'
    config.model.backbone.width = 32
    config.data.crop_size = (192, 192)
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 0.001
    config.train.head_multiplier = 2.0  # all but the backbone starts from scratch
    config.train.warmup_steps = 30
    config.train.steps = 400
    config.train.eval_every = 400
    config.train.checkpoint_every = 200


VARIANTS = {'resnet10': resnet10, 'mobilenet_v2': mobilenet_v2}


def get_config(variant: str = 'resnet10') -> ConfigDict:
    if variant not in VARIANTS:
        raise InputError(f'configs/camvid.py:{variant} is not one of {", ".join(VARIANTS)}')
    config = config_lib.default()

    config.data.name = 'camvid'
    config.data.scale_range = (0.5, 1.5)
    config.data.threads = 2
    config.data.cache_mib = 256  # all training images

    config.model.heads = 'local:3,6,9,grid:3,6,9'
    config.model.ggcf.channels = 96
    config.model.ggcf.key_channels = 24
    config.model.ggcf.value_channels = 48
    config.model.aspp.channels = 96
    config.model.aspp.rates = (6, 12, 18)
    config.model.psp.channels = 96
    config.model.non_local.channels = 96
    config.model.isa.channels = 96
    config.model.isa.key_channels = 48
    config.model.isa.partition = (3, 3)
    config.model.ccnet.channels = 96
    config.model.aux_channels = 48
    config.model.dropout = 0.0

    config.train.batch_size = 4
    # 1 / ln(1.1 + share of the training pixels), in the order of the classes: without weights a run
    # this short leaves out the thin and rare ones.
    config.train.class_weights = '4.1,3.4,9.6,2.8,7.3,5.5,9.4,9.4,6.7,9.9,10.2'
    config.train.dtype = 'float32'
    config.train.log_every = 20
    config.train.max_skipped = 20

    config.eval.batch_size = 4
    config.eval.size_multiple = 8  # all images have one size
    config.eval.max_sizes = 1
    VARIANTS[variant](config)
    return config


def sweep() -> Iterator[table1.Row]:
    """The rows of Table 1, sizes scaled as the heads above (10 to 4)."""
    return table1.table1(sizes=(3, 6, 9), single=4)


def peers() -> Iterator[table1.Row]:
    return table1.peers(sizes=(3, 6, 9))


def contexts() -> Iterator[table1.Row]:
    """The rows of docs/results.md on CamVid, from scratch and for the variant mobilenet_v2.

    The drop rate is the one of 30, 50 and 70 % that costs {LOCAL, GRID} least on the training
    images, with published features FULL as well (docs/results.md).
    """
    both = '{LOCAL, GRID}_{8,16,24}'
    pruned = ('FULL', 'LOCAL_{8,16,24}', 'GRID_{8,16,24}', both, f'FULL, {both}')
    return table1.contexts(sizes=(3, 6, 9), drop_rates=dict.fromkeys(pruned, 0.3))
