"""The paper's best model (Table 4): Cityscapes fine and coarse, WideResNet-38, OHEM, multi-grid.

    python main.py --config=configs/cityscapes_sota.py --config.data.manual_dir=DIR \\
        --config.model.backbone.weights=wide_resnet38_deeplab_vistas.pth.tar

DIR holds the four zips named in configs/cityscapes.py. The weights are those that InPlace-ABN
trained on Mapillary Vistas (docs/pretrained.md says where they are published). The paper reports
83.2 mIoU on the test set, with multi-scale inputs and Context Pruning; we have not measured it.

The paper names backbone, data, rescaling, aspect, crop, OHEM and multi-grid. The other values are
those it gives for its other models, or ours, marked with their source.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import table1
from ggcf_jax import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.default()

    config.data.name = 'cityscapes'
    config.data.train_split = (
        'train:0.5,train_extra:0.5'  # the paper does not say how it mixes them
    )
    config.data.crop_size = (1024, 1024)
    config.data.scale_range = (0.7, 2.0)
    config.data.aspect_jitter = 0.1

    config.model.backbone.name = 'wide_resnet38'
    config.model.backbone.expected_weights = 'a WideResNet-38 trained on Mapillary Vistas'
    config.model.backbone.multi_grid = (1, 2)  # of mod6 and mod7; the paper gives no numbers
    config.model.input = 'vistas'  # as its published weights
    config.model.activation = 'leaky_relu'  # InPlace-ABN
    config.model.norm = 'abs_gamma'  # as its published weights
    config.model.aux_channels = 256  # openseg 512, OCNet 512, mmseg 256
    config.model.dropout = 0.1  # before the classifiers: OCNet 0.05, mmseg 0.1
    config.model.dropout_of = 'channel'  # OCNet, CCNet, openseg, mmseg

    config.train.steps = 50_000
    config.train.batch_size = 8
    config.train.learning_rate = 0.02
    config.train.poly_power = 2.0
    config.train.loss = 'ohem'
    config.train.ohem.threshold = 0.7  # openseg
    config.train.ohem.min_kept = 100_000  # openseg
    config.train.aux_weight = 0.4  # the paper has an auxiliary loss and no weight: PSPNet, OCNet
    config.train.remat = 'inplace_abn'
    config.train.eval_every = 5_000
    config.train.checkpoint_every = 1_000

    config.eval.size_multiple = 8  # all images have one size
    config.eval.max_sizes = 1
    return config


def sweep() -> Iterator[table1.Row]:
    """The paper's row of Table 4, on the validation images, whose labels are public."""
    yield 'Ours', {}
    # "multiscale inputs and Context Pruning": scales of mmseg; half of the contexts is a guess.
    yield (
        'Ours, multi-scale + ContextPruning',
        {
            'eval.scales': '(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)',
            'eval.flip': True,
            'eval.pruning': 'local:drop=0.5,grid:drop=0.5',
        },
    )
