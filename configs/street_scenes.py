"""Painted street scenes, 19 Cityscapes classes: the demo, no data and no accelerator needed.

    python main.py --config=configs/street_scenes.py

paints 500 scenes, trains a small network from scratch and evaluates it: 5 minutes on two AMD EPYC
cores. Expect a validation mIoU of 0.258 (one run, seed 0): the street is sorted out, the rare
classes are not.

The heads are the paper's {LOCAL, GRID}_{8,16,24}, made for feature maps of 128 x 256, scaled to the
32 x 64 of these images.

--config=configs/street_scenes.py:small is a narrower network for the tables and figures of
docs/results.md: 3 to 6 minutes of one such core, and 0.259 (mean of three seeds).
"""

from ml_collections import ConfigDict, config_dict

from ggcf_jax.errors import InputError


def demo(config: ConfigDict) -> None:
    """The demo's network."""


def small(config: ConfigDict) -> None:
    config.model.backbone.width = 16
    config.model.ggcf.channels = 64
    config.model.ggcf.key_channels = 16
    config.model.ggcf.value_channels = 32
    config.model.aspp.channels = 64
    config.model.aux_channels = 32
    config.train.steps = 300
    config.train.eval_every = 300
    config.train.checkpoint_every = 100
    config.train.class_weights = 'data'  # or the rare classes are left out, as in CamVid


VARIANTS = {'demo': demo, 'small': small}


def get_config(variant: str = 'demo') -> ConfigDict:
    if variant not in VARIANTS:
        raise InputError(f'configs/street_scenes.py:{variant} is not one of {", ".join(VARIANTS)}')
    config = ConfigDict()
    config.seed = 0

    config.data = data = ConfigDict()
    data.name = 'street_scenes'
    data.data_dir = config_dict.placeholder(str)  # prepared data; None: ~/tensorflow_datasets
    data.image_size = (256, 512)
    data.num_images = (400, 50, 50)  # train, validation, test
    data.train_split = 'train'
    data.storage = 'original'  # compact: decodes faster (docs/data.md)
    data.crop_size = (256, 256)
    data.scale_range = (0.75, 1.5)
    data.scale_step = 0.0
    data.aspect_jitter = 0.0
    data.max_class_share = 1.0
    data.photometric = 0.0
    data.class_uniform = 0.0
    data.threads = 2
    data.workers = 0  # processes; 0: only threads

    config.model = model = ConfigDict()
    model.backbone = ConfigDict()
    model.backbone.name = 'resnet10'
    model.backbone.width = 24
    model.backbone.stem = '7x7'
    model.backbone.stride = 8
    model.backbone.first_dilation = 'full'
    model.backbone.multi_grid = ()
    model.backbone.multi_grid_kind = 'multiplier'
    model.backbone.weights = config_dict.placeholder(str)
    model.backbone.statistics = 'batch'  # or running: normalise with those of the weights
    model.input = 'imagenet'  # normalisation that the weights were trained with
    model.activation = 'relu'
    model.norm = 'batch_norm'
    model.context = 'ggcf'
    model.heads = 'local:2,4,6,grid:2,4,6'
    model.ggcf = ConfigDict()
    model.ggcf.channels = 96
    model.ggcf.key_channels = 24
    model.ggcf.value_channels = 48
    model.ggcf.scale = 1.0
    model.aspp = ConfigDict()
    model.aspp.channels = 96
    model.aspp.rates = (3, 6, 9)
    model.aux_channels = 48
    model.dropout = 0.0

    config.train = train = ConfigDict()
    train.steps = 360
    train.batch_size = 4
    train.accumulate = 1
    train.optimizer = 'sgd'
    train.learning_rate = 0.05
    train.end_learning_rate = 0.0
    train.warmup_steps = 0
    train.poly_power = 0.9
    train.momentum = 0.9
    train.weight_decay = 5e-4
    train.decay = 'all'  # or kernels: not biases and scales of norms
    train.head_multiplier = 1.0  # of the learning rate outside of the backbone
    train.clip_norm = 0.0  # of the gradients; 0: not
    train.ema_decay = 0.0  # evaluate averaged parameters; 0: not
    train.loss = 'cross_entropy'  # or ohem
    train.ohem = ConfigDict()
    train.ohem.threshold = 0.7  # openseg
    train.ohem.min_kept = 100_000  # pixels of a batch, openseg
    train.aux_weight = 0.4
    train.class_weights = 'none'
    train.dtype = 'float32'
    train.remat = 'none'  # inplace_abn or block: less memory, slower
    train.log_every = 10
    train.eval_every = 180
    train.checkpoint_every = 60
    train.max_skipped = 20

    config.mesh = ConfigDict()
    config.mesh.space = 1  # devices that share the rows of an image (docs/pods.md)

    config.eval = ConfigDict()
    config.eval.batch_size = 4
    config.eval.size_multiple = 8  # images are padded to multiples of this
    config.eval.max_sizes = 1  # and to so many sizes at most, one compilation each
    config.eval.panels = 6  # images shown after each evaluation
    # --mode=evaluate and --mode=predict; training evaluates whole images once (docs/inference.md).
    config.eval.window = ()  # (height, width) of sliding windows; (): the whole image
    config.eval.stride = ()  # from window to window; (): two thirds of the window
    config.eval.windows_at_once = 4  # of each image
    config.eval.scales = (1.0,)
    config.eval.flip = False
    config.eval.average = 'probabilities'  # or logits: over scales and flip
    config.eval.pruning = ''  # such as full:drop=0.5,local:keep=200
    config.eval.worst = 4  # images with the lowest mIoU, shown as panels

    config.predict = ConfigDict()
    config.predict.overlays = True
    config.predict.probabilities = False
    config.predict.label_ids = 'train'  # or server: what the evaluation server of the data expects
    config.predict.max_side = 2048  # larger images go through the network in parts of this size
    VARIANTS[variant](config)
    return config


def sweep():
    """The rows of Table 1 under the paper's names, sizes scaled as the heads above (10 to 3)."""
    yield 'Baseline', {'model.context': 'none'}
    yield 'ASPP', {'model.context': 'aspp'}
    for name, heads in (
        ('FULL', 'full'),
        ('{LOCAL, GRID}_{8,16,24}', 'local:2,4,6,grid:2,4,6'),
        ('GRID_{8,16,24}', 'grid:2,4,6'),
        ('LOCAL_{8,16,24}', 'local:2,4,6'),
        ('FULL, {LOCAL, GRID}_{8,16,24}', 'full,local:2,4,6,grid:2,4,6'),
        ('FULL, LOCAL_{8,16,24}', 'full,local:2,4,6'),
        ('FULL, GRID_{8,16,24}', 'full,grid:2,4,6'),
        ('GRID_{10,10,10}', 'grid:3,3,3'),
        ('GRID_10', 'grid:3'),
        ('LOCAL_10', 'local:3'),
        ('FULL, FULL', 'full,full'),
        ('FULL, LOCAL_10', 'full,local:3'),
        ('FULL, GRID_10', 'full,grid:3'),
        ('Trainable E', 'learned'),
    ):
        yield name, {'model.heads': heads}
    # Evaluations of runs above. The paper took the drop rate that was best on the images it reports
    # (experiments/figures/fig4_pruning.py finds that one); half is a guess.
    rates = (
        ('FULL', 'full', 'full:drop=0.5'),
        ('{LOCAL, GRID}_{8,16,24}', 'local:2,4,6,grid:2,4,6', 'local:drop=0.5,grid:drop=0.5'),
    )
    for name, heads, pruning in rates:
        yield f'{name} + ContextPruning', {'model.heads': heads, 'eval.pruning': pruning}
