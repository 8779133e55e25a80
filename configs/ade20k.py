"""ADE20K scene parsing, 150 classes.

    python main.py --config=configs/ade20k.py --config.data.manual_dir=DIR

Variants, --config=configs/ade20k.py:VARIANT: `r50` (the default), the paper's recipe (section 4.1)
with a ResNet-50; `convnext_t` and `swin_t`, the heads on a ConvNeXt-T or a Swin-T that is trained
as published; `mit_b0`, SegFormer's smallest encoder with the heads instead of its decoder;
`dinov2_s`, a linear classifier on a frozen DINOv2 ViT-S/14.

DIR holds ADEChallengeData2016.zip (0.97 GB) as downloaded from
http://sceneparsing.csail.mit.edu, or the folder that is in it. On first use its 20,210 training and
2,000 validation images are checked and written to --config.data.data_dir [~/tensorflow_datasets] as
ade20k (about 1 GB); the zip is not needed after that.

The paper reports 41.2 mIoU on the validation set for these heads, 40.3 for
--config.model.heads=full and 33.3 for --config.model.context=none (Table 2). We have not measured
them yet.

For ADE20K the paper gives only the power and the number of iterations; the other values of `r50`
are those it gives for Cityscapes. Where it is silent the choice is ours and marked with its source.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import table1
from ggcf_jax import config as config_lib
from ggcf_jax.errors import InputError


def r50(config: ConfigDict) -> None:
    """The paper's recipe."""
    del config


def convnext_t(config: ConfigDict) -> None:
    """ConvNeXt-T as its authors and mmsegmentation train it, with the heads at output stride 16.

    Data, optimiser, schedule and stochastic depth are those of
    configs/convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py in
    github.com/open-mmlab/mmsegmentation (at e81b0f3) and of semantic_segmentation/configs/convnext/
    upernet_convnext_tiny_512_160k_ade20k_ss.py in github.com/facebookresearch/ConvNeXt (at
    dcb9287), which have UPerNet for a head: 46.0 mIoU in the authors' README, 46.1 in
    mmsegmentation's. What these heads reach has not been measured. Start from
    --config.model.backbone.weights=convnext_tiny_1k_224_ema.pth (docs/pretrained.md).

    The learning rate of each stage is that of their decay_type='stage_wise' (num_layers 6):
    0.9 ** 3 in the last stage to 0.9 ** 6 in the first one, 0.9 ** 7 in all layers that lower the
    resolution.
    """
    _modern(config, 'convnext_tiny', 'a ConvNeXt-T trained on ImageNet')
    config.model.backbone.drop_path = 0.4
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 0.05
    factors = {'stem': 0.9**7} | {f'stages.{i}': 0.9 ** (6 - i) for i in range(4)}
    factors |= {f'stages.{i}.0': 0.9**7 for i in range(1, 4)}
    config.train.multipliers = ','.join(f'backbone.{n}:{x:.6g}' for n, x in factors.items())
    config.eval.window = (512, 512)
    config.eval.stride = (341, 341)


def swin_t(config: ConfigDict) -> None:
    """Swin-T as mmsegmentation trains it, with the heads at output stride 16.

    Optimiser, schedule and stochastic depth are those of
    configs/swin/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K.py in
    github.com/open-mmlab/mmsegmentation (at 08e92e6), which has UPerNet for a head: 44.41 mIoU in
    the README beside it. What these heads reach has not been measured. There biases decay, too,
    norms and position biases do not. Start from
    --config.model.backbone.weights=swin_tiny_patch4_window7_224.pth (docs/pretrained.md).
    """
    _modern(config, 'swin_tiny', 'a Swin-T trained on ImageNet')
    config.model.backbone.drop_path = 0.3
    config.train.learning_rate = 6e-5
    config.train.weight_decay = 0.01


def mit_b0(config: ConfigDict) -> None:
    """MiT-B0 as SegFormer's authors train it, with the heads at output stride 32.

    Optimiser, schedule and the ten times higher rate of the head are those of
    local_configs/segformer/B0/segformer.b0.512x512.ade.160k.py in github.com/NVlabs/SegFormer (at
    073b02d), stochastic depth that of mit_b0 in mmseg/models/backbones/mix_transformer.py there.
    Their decoder reads all four stages, these heads the last one. With that decoder
    configs/segformer/README.md of github.com/open-mmlab/mmsegmentation (at 02e04cc) has 37.41 mIoU,
    38.1 with images resized to multiples of 32. What these heads reach has not been measured.
    There biases decay, too, norms do not. Start from
    --config.model.backbone.weights=mit_b0.pth (docs/pretrained.md).
    """
    _modern(config, 'mit_b0', 'a MiT-B0 trained on ImageNet')
    config.model.backbone.drop_path = 0.1
    config.model.backbone.stride = 32
    config.model.heads = 'local:2,4,6,grid:2,4,6'  # as many pixels as the paper's at stride 8
    config.train.learning_rate = 6e-5
    config.train.weight_decay = 0.01
    config.train.head_multiplier = 10.0


def dinov2_s(config: ConfigDict) -> None:
    """A linear classifier on a frozen DINOv2 ViT-S/14, the linear head of its authors.

    Data, optimiser and schedule are those of vitb_voc2012_linear_config.py in evaluation/configs/
    of Jiawei-Yang/Denoising-ViT, which follows the authors' configurations. The authors report 47.2
    mIoU (MODEL_CARD.md of facebookresearch/dinov2) for their multi-scale head: a linear classifier
    of the last four blocks, at several image scales. It has not been measured here. Start from
    --config.model.backbone.weights=dinov2_vits14_pretrain.pth (docs/pretrained.md).
    """
    _modern(config, 'dinov2_small', 'DINOv2 ViT-S/14')
    config.model.backbone.stride = 14
    config.model.context = 'linear'
    config.model.dropout = 0.0
    config.train.frozen = 'backbone'
    config.train.aux_weight = 0.0  # stage 3 is frozen, too
    config.train.steps = 40_000
    config.train.learning_rate = 1e-3
    config.train.weight_decay = 1e-4
    config.train.decay = 'all'
    config.train.eval_every = 10_000
    config.eval.window = (512, 512)
    config.eval.stride = (341, 341)


def _modern(config: ConfigDict, backbone: str, weights: str) -> None:
    """What mmsegmentation's recipes for modern backbones have in common."""
    config.data.crop_size = (512, 512)
    config.data.max_class_share = 0.75
    config.data.photometric = 1.0
    config.model.backbone.name = backbone
    config.model.backbone.expected_weights = weights
    config.model.backbone.stem = '7x7'
    config.model.backbone.stride = 16  # UPerNet reads the stages at 4, 8, 16 and 32
    config.model.activation = 'relu'
    config.model.heads = 'local:4,8,12,grid:4,8,12'  # as many pixels as the paper's at stride 8
    config.train.steps = 160_000
    config.train.batch_size = 16
    config.train.optimizer = 'adamw'
    config.train.decay = 'kernels'  # neither norms nor biases, layer scales and positions
    config.train.warmup_steps = 1_500
    config.train.poly_power = 1.0
    config.train.remat = 'none'
    config.train.eval_every = 16_000
    config.eval.batch_size = 16


VARIANTS = {
    'r50': r50,
    'convnext_t': convnext_t,
    'swin_t': swin_t,
    'mit_b0': mit_b0,
    'dinov2_s': dinov2_s,
}


def get_config(variant: str = 'r50') -> ConfigDict:
    if variant not in VARIANTS:
        raise InputError(f'configs/ade20k.py:{variant} is not one of {", ".join(VARIANTS)}')
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
    VARIANTS[variant](config)
    return config


def sweep() -> Iterator[table1.Row]:
    return table1.table2()


def peers() -> Iterator[table1.Row]:
    return table1.peers()


def modern() -> Iterator[table1.Row]:
    """The same at the output stride of `convnext_t` and `swin_t`, with as many pixels."""
    return table1.peers((4, 8, 12))
