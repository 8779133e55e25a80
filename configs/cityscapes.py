"""Cityscapes with the paper's recipe (section 4.1): ResNet-101, {LOCAL, GRID}_{8,16,24}.

    python main.py --config=configs/cityscapes.py --config.data.manual_dir=DIR

DIR holds leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (0.25 GB) as downloaded
from https://www.cityscapes-dataset.com (free after registration), or the folders that are in
them. For the split train_extra also leftImg8bit_trainextra.zip (44 GB) and gtCoarse.zip (1.3 GB).

On first use the images are checked and written to --config.data.data_dir [~/tensorflow_datasets]
as cityscapes/semantic_segmentation (train, validation and test, about 12 GB), and once train_extra
is asked for as cityscapes/semantic_segmentation_extra (about 55 GB: that config holds the coarse
labels of train and validation, too). The zips are not needed after that. What TFDS prepared there
itself as array_record is read as it is, and plain TFDS reads what is prepared here. Of train_extra
troisdorf_000000_000073 is left out, whose published image is all black.

The paper reports 79.6 mIoU on the validation set for these heads, 78.8 for
--config.model.heads=full and 76.0 for --config.model.context=none (Table 1). We have not measured
them yet.

Where the paper is silent the choice is ours and marked with its source. Variants, written
--config=configs/cityscapes.py:VARIANT,

    r101      the paper's (the default)
    r50       with ResNet-50
    wr38      with the WideResNet-38 of InPlace-ABN
    ocnet     the choices of OCNet where they differ
    ccnet     those of CCNet
    openseg   those of openseg (ISA, OCNet)
    mmseg     those of mmsegmentation's 80,000 iterations

are for comparing with those code bases; their values are from the configuration files published
there. Backbone weights are a file of yours, see docs/pretrained.md:
--config.model.backbone.weights=FILE.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import table1
from ggcf_jax import config as config_lib
from ggcf_jax.errors import InputError


def r101(config: ConfigDict) -> None:
    """The paper's network."""


def r50(config: ConfigDict) -> None:
    config.model.backbone.name = 'resnet50'
    config.model.backbone.expected_weights = 'a ResNet-50 trained on ImageNet'


def wr38(config: ConfigDict) -> None:
    config.model.backbone.name = 'wide_resnet38'
    config.model.backbone.expected_weights = 'a WideResNet-38 trained on ImageNet'
    config.model.norm = 'abs_gamma'  # as its published weights


def ocnet(config: ConfigDict) -> None:
    """Of github.com/openseg-group/OCNet.pytorch."""
    # dataset/cityscapes.py, generate_scale_label: 0.5 + randint(0, 16) / 10
    config.data.scale_range = (0.5, 2.1)
    config.data.scale_step = 0.1
    config.model.input = 'ocnet'  # dataset/cityscapes.py
    config.model.backbone.activation = 'relu'  # utils/resnet_block.py
    config.model.activation = 'leaky_relu'  # InPlaceABNSync of network/resnet101_base_oc.py
    config.model.aux_channels = 512  # network/resnet101_base_oc.py
    config.model.dropout = 0.05  # the same
    # run_resnet101_base_oc.sh
    config.train.steps = 40_000
    config.train.learning_rate = 0.01
    config.train.class_weights = 'cityscapes'
    config.train.poly_power = 0.9  # lr_poly of train.py


def ccnet(config: ConfigDict) -> None:
    """Of github.com/speedinghzl/CCNet."""
    # dataset/datasets.py, CSDataSet.generate_scale_label: 0.7 + randint(0, 14) / 10
    config.data.scale_range = (0.7, 2.1)
    config.data.scale_step = 0.1
    config.model.input = 'ccnet'  # IMG_MEAN of train.py
    config.model.backbone.activation = 'relu'  # Bottleneck of networks/ccnet.py
    config.model.activation = 'leaky_relu'  # InPlaceABNSync of networks/ccnet.py
    config.model.aux_channels = 512  # networks/ccnet.py
    config.model.dropout = 0.1  # the same
    # The command in README.md
    config.train.steps = 60_000
    config.train.learning_rate = 0.01
    config.train.weight_decay = 1e-4
    config.train.poly_power = 0.9  # POWER of train.py


def openseg(config: ConfigDict) -> None:
    """configs/cityscapes/R_101_D_8.json of openseg.pytorch, with the batch of its scripts."""
    config.data.crop_size = (512, 1024)
    config.data.scale_range = (0.5, 2.0)
    config.data.aspect_jitter = 0.1  # its random brightness of +-10 is left out
    config.model.backbone.first_dilation = 'half'
    config.model.input = 'caffe'
    config.model.activation = 'relu'
    config.model.aux_channels = 512
    config.model.dropout = 0.05
    config.train.steps = 40_000
    config.train.learning_rate = 0.01
    config.train.poly_power = 0.9
    config.train.class_weights = 'cityscapes'


def mmseg(config: ConfigDict) -> None:
    """_base_/datasets/cityscapes.py, models/nonlocal_r50-d8.py and schedules/schedule_80k.py.

    One thing differs: mmseg divides the loss by the number of all pixels, ignored ones included
    (avg_non_ignore=False in models/losses/cross_entropy_loss.py), the other sources and we by that
    of the labelled ones; where a share p is labelled its gradients are p times ours.
    --config.train.loss_average=all does as mmseg.
    """
    config.data.crop_size = (512, 1024)
    config.data.scale_range = (0.5, 2.0)
    config.data.max_class_share = 0.75
    config.data.photometric = 1.0
    config.model.backbone.stem = '32-32-64'  # ResNet v1c
    config.model.backbone.first_dilation = 'half'
    config.model.activation = 'relu'
    config.train.steps = 80_000
    config.train.learning_rate = 0.01
    config.train.end_learning_rate = 1e-4
    config.train.poly_power = 0.9


VARIANTS = {
    'r101': r101,
    'r50': r50,
    'wr38': wr38,
    'ocnet': ocnet,
    'ccnet': ccnet,
    'openseg': openseg,
    'mmseg': mmseg,
}


def get_config(variant: str = 'r101') -> ConfigDict:
    if variant not in VARIANTS:
        raise InputError(f'configs/cityscapes.py:{variant} is not one of {", ".join(VARIANTS)}')
    config = config_lib.default()

    config.data.name = 'cityscapes'
    config.data.crop_size = (769, 769)
    config.data.scale_range = (0.5, 1.5)

    config.model.backbone.name = 'resnet101'
    config.model.backbone.expected_weights = 'a ResNet-101 trained on ImageNet'
    config.model.backbone.stem = '64-64-128'  # openseg, OCNet, CCNet
    config.model.backbone.first_dilation = 'full'  # OCNet, CCNet; 'half': openseg, mmseg
    config.model.activation = 'leaky_relu'  # InPlace-ABN
    config.model.aux_channels = 256  # openseg 512, OCNet 512, mmseg 256
    config.model.dropout = 0.1  # before the classifiers: OCNet 0.05, mmseg 0.1
    config.model.dropout_of = 'channel'  # OCNet, CCNet, openseg, mmseg

    config.train.steps = 50_000
    config.train.batch_size = 8
    config.train.learning_rate = 0.02
    config.train.poly_power = 2.0
    config.train.momentum = 0.9
    config.train.weight_decay = 5e-4
    config.train.aux_weight = 0.4  # the paper has an auxiliary loss and no weight: PSPNet, OCNet
    config.train.remat = 'inplace_abn'
    config.train.eval_every = 5_000
    config.train.checkpoint_every = 1_000

    config.eval.size_multiple = 8  # all images have one size
    config.eval.max_sizes = 1
    VARIANTS[variant](config)
    return config


def sweep() -> Iterator[table1.Row]:
    return table1.table1()


def peers() -> Iterator[table1.Row]:
    return table1.peers()
