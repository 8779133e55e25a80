"""Painted street scenes, 19 Cityscapes classes: the demo, no data and no accelerator needed.

    python main.py --config=configs/street_scenes.py

paints 500 scenes, trains a small network from scratch and evaluates it: 3 minutes on two AMD EPYC
cores (Zen 5), 5 on older ones. Expect a validation mIoU of 0.45 (one run, seed 0): walls, fences,
poles and what rides are still often missed.

The heads are the paper's {LOCAL, GRID}_{8,16,24}, made for feature maps of 128 x 256, scaled to the
32 x 64 of these images.

--config=configs/street_scenes.py:small is a narrower network for the tables and figures of
docs/results.md: 3 to 6 minutes of one such core, and 0.259 (mean of three seeds).
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import table1
from ggcf_jax import config as config_lib
from ggcf_jax.errors import InputError


def demo(config: ConfigDict) -> None:
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 0.002
    config.train.warmup_steps = 40
    config.train.class_weights = 'data'  # for walls, fences, riders and motorcycles
    config.train.steps = 800
    config.train.eval_every = 200
    config.train.checkpoint_every = 100


def small(config: ConfigDict) -> None:
    config.model.backbone.width = 16
    config.model.ggcf.channels = 64
    config.model.ggcf.key_channels = 16
    config.model.ggcf.value_channels = 32
    config.model.aspp.channels = 64
    config.model.psp.channels = 64
    config.model.non_local.channels = 64
    config.model.isa.channels = 64
    config.model.isa.key_channels = 32
    config.model.ccnet.channels = 64
    config.model.aux_channels = 32
    config.train.learning_rate = 0.05
    config.train.steps = 300
    config.train.eval_every = 300
    config.train.checkpoint_every = 100
    config.train.class_weights = 'data'  # or the rare classes are left out, as in CamVid


VARIANTS = {'demo': demo, 'small': small}


def get_config(variant: str = 'demo') -> ConfigDict:
    if variant not in VARIANTS:
        raise InputError(f'configs/street_scenes.py:{variant} is not one of {", ".join(VARIANTS)}')
    config = config_lib.default()

    config.data.name = 'street_scenes'
    config.data.image_size = (256, 512)
    config.data.num_images = (400, 50, 50)
    config.data.crop_size = (256, 256)
    config.data.scale_range = (0.75, 1.5)
    config.data.threads = 2
    config.data.cache_mib = 256  # all training images

    config.model.backbone.name = 'resnet10'
    config.model.backbone.width = 24
    config.model.heads = 'local:2,4,6,grid:2,4,6'
    config.model.ggcf.channels = 96
    config.model.ggcf.key_channels = 24
    config.model.ggcf.value_channels = 48
    config.model.aspp.channels = 96
    config.model.aspp.rates = (3, 6, 9)
    config.model.psp.channels = 96
    config.model.non_local.channels = 96
    config.model.isa.channels = 96
    config.model.isa.key_channels = 48
    config.model.isa.partition = (2, 2)
    config.model.ccnet.channels = 96
    config.model.aux_channels = 48
    config.model.dropout = 0.0

    config.train.batch_size = 4
    config.train.dtype = 'float32'
    config.train.log_every = 10
    config.train.max_skipped = 20

    config.eval.batch_size = 4
    config.eval.size_multiple = 8  # all images have one size
    config.eval.max_sizes = 1
    config.eval.panels = 6
    VARIANTS[variant](config)
    return config


def sweep() -> Iterator[table1.Row]:
    """The rows of Table 1, sizes scaled as the heads above (10 to 3)."""
    return table1.table1(sizes=(2, 4, 6), single=3)


def peers() -> Iterator[table1.Row]:
    return table1.peers(sizes=(2, 4, 6))
