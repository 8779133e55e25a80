"""ADE20K scene parsing, 150 classes, with the paper's recipe (section 4.1): ResNet-50.

    python main.py --config=configs/ade20k.py --config.data.manual_dir=DIR

DIR holds ADEChallengeData2016.zip (0.97 GB) as downloaded from
http://sceneparsing.csail.mit.edu, or the folder that is in it. On first use its 20,210 training and
2,000 validation images are checked and written to --config.data.data_dir [~/tensorflow_datasets] as
ade20k (about 1 GB); the zip is not needed after that.

The paper reports 41.2 mIoU on the validation set for these heads, 40.3 for
--config.model.heads=full and 33.3 for --config.model.context=none (Table 2). We have not measured
them yet.

For ADE20K the paper gives only the power and the number of iterations; the other values are those
it gives for Cityscapes. Where it is silent the choice is ours and marked with its source.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import table1
from ggcf_jax import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.default()

    config.data.name = 'ade20k'
    config.data.crop_size = (513, 513)  # 8 n + 1 next to the 512 of openseg and mmseg
    config.data.scale_range = (0.5, 2.0)  # openseg, mmseg

    config.model.backbone.name = 'resnet50'
    config.model.backbone.expected_weights = 'a ResNet-50 trained on ImageNet'
    config.model.backbone.stem = '64-64-128'  # openseg
    config.model.activation = 'leaky_relu'  # InPlace-ABN
    config.model.aux_channels = 256  # mmseg
    config.model.dropout = 0.1  # mmseg
    config.model.dropout_of = 'channel'  # openseg, mmseg

    config.train.steps = 900_000
    config.train.batch_size = 8
    config.train.learning_rate = 0.02
    config.train.poly_power = 0.9
    config.train.remat = 'inplace_abn'
    config.train.eval_every = 50_000
    config.train.checkpoint_every = 5_000

    config.eval.size_multiple = 64  # images of many sizes
    config.eval.max_sizes = 8
    return config


def sweep() -> Iterator[table1.Row]:
    return table1.table2()


def peers() -> Iterator[table1.Row]:
    return table1.peers()
