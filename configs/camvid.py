"""CamVid (Brostow et al., 2009), 11 classes, from scratch on two CPU cores.

    python main.py --config=configs/camvid.py --config.data.manual_dir=DIR

DIR is a copy of the SegNet tutorial's CamVid folder (train/, trainannot/, val/, valannot/).
Expect a validation mIoU of 0.563 (one run, seed 0; earlier versions gave 0.559 and 0.570, and 0.598
with --config.train.steps=3000) after 20 minutes on two AMD EPYC cores, in 1.7 GiB of memory.

The heads are the paper's {LOCAL, GRID}_{8,16,24}, made for feature maps of 128 x 256, scaled to the
45 x 60 of these images.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.data = data = ConfigDict()
    data.name = 'camvid'
    data.manual_dir = config_dict.placeholder(str)  # the images as downloaded
    data.data_dir = config_dict.placeholder(str)  # prepared data; None: ~/tensorflow_datasets
    data.train_split = 'train'
    data.storage = 'original'  # compact: decodes faster (docs/data.md)
    data.crop_size = (256, 256)
    data.scale_range = (0.5, 1.5)
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
    model.heads = 'local:3,6,9,grid:3,6,9'
    model.ggcf = ConfigDict()
    model.ggcf.channels = 96
    model.ggcf.key_channels = 24
    model.ggcf.value_channels = 48
    model.ggcf.scale = 1.0
    model.aspp = ConfigDict()
    model.aspp.channels = 96
    model.aspp.rates = (6, 12, 18)
    model.aux_channels = 48
    model.dropout = 0.0

    config.train = train = ConfigDict()
    train.steps = 2400
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
    # 1 / ln(1.1 + share of the training pixels), in the order of the classes: without weights a run
    # this short leaves out the thin and rare ones.
    train.class_weights = '4.1,3.4,9.6,2.8,7.3,5.5,9.4,9.4,6.7,9.9,10.2'
    train.dtype = 'float32'
    train.remat = 'none'  # inplace_abn or block: less memory, slower
    train.log_every = 20
    train.eval_every = 600
    train.checkpoint_every = 250
    train.max_skipped = 20

    config.mesh = ConfigDict()
    config.mesh.space = 1  # devices that share the rows of an image (docs/pods.md)

    config.eval = ConfigDict()
    config.eval.batch_size = 4
    config.eval.size_multiple = 8  # images are padded to multiples of this
    config.eval.max_sizes = 1  # and to so many sizes at most, one compilation each
    config.eval.panels = 4  # images shown after each evaluation
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
    return config


def sweep():
    """The rows of Table 1 under the paper's names, sizes scaled as the heads above (10 to 4)."""
    yield 'Baseline', {'model.context': 'none'}
    yield 'ASPP', {'model.context': 'aspp'}
    for name, heads in (
        ('FULL', 'full'),
        ('{LOCAL, GRID}_{8,16,24}', 'local:3,6,9,grid:3,6,9'),
        ('GRID_{8,16,24}', 'grid:3,6,9'),
        ('LOCAL_{8,16,24}', 'local:3,6,9'),
        ('FULL, {LOCAL, GRID}_{8,16,24}', 'full,local:3,6,9,grid:3,6,9'),
        ('FULL, LOCAL_{8,16,24}', 'full,local:3,6,9'),
        ('FULL, GRID_{8,16,24}', 'full,grid:3,6,9'),
        ('GRID_{10,10,10}', 'grid:4,4,4'),
        ('GRID_10', 'grid:4'),
        ('LOCAL_10', 'local:4'),
        ('FULL, FULL', 'full,full'),
        ('FULL, LOCAL_10', 'full,local:4'),
        ('FULL, GRID_10', 'full,grid:4'),
        ('Trainable E', 'learned'),
    ):
        yield name, {'model.heads': heads}
    # Evaluations of runs above. The paper took the drop rate that was best on the images it reports
    # (experiments/figures/fig4_pruning.py finds that one); half is a guess.
    rates = (
        ('FULL', 'full', 'full:drop=0.5'),
        ('{LOCAL, GRID}_{8,16,24}', 'local:3,6,9,grid:3,6,9', 'local:drop=0.5,grid:drop=0.5'),
    )
    for name, heads, pruning in rates:
        yield f'{name} + ContextPruning', {'model.heads': heads, 'eval.pruning': pruning}
