"""The paper's best model (Table 4): Cityscapes fine and coarse, WideResNet-38, OHEM, multi-grid.

    python main.py --config=configs/cityscapes_sota.py --config.data.manual_dir=DIR \\
        --config.model.backbone.weights=wide_resnet38_deeplab_vistas.pth.tar

DIR holds the four zips named in configs/cityscapes.py. The weights are those that InPlace-ABN was
trained to on Mapillary Vistas (docs/pretrained.md says where they are published). The paper reports
83.2 mIoU on the test set, with multi-scale inputs and Context Pruning; nothing was measured by us.

The paper names backbone, data, rescaling, aspect, crop, OHEM and multi-grid. The other values are
those it gives for its other models, or ours, marked with their source.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.data = data = ConfigDict()
    data.name = 'cityscapes'
    data.manual_dir = config_dict.placeholder(str)  # the files as downloaded
    data.data_dir = config_dict.placeholder(str)  # prepared data; None: ~/tensorflow_datasets
    data.train_split = 'train:0.5,train_extra:0.5'  # the paper does not say how it mixes them
    data.storage = 'original'  # compact: decodes faster (docs/data.md)
    data.crop_size = (1024, 1024)
    data.scale_range = (0.7, 2.0)
    data.scale_step = 0.0
    data.aspect_jitter = 0.1
    data.max_class_share = 1.0
    data.photometric = 0.0
    data.class_uniform = 0.0
    data.threads = 16
    data.workers = 0  # processes; 0: only threads

    config.model = model = ConfigDict()
    model.backbone = ConfigDict()
    model.backbone.name = 'wide_resnet38'
    model.backbone.width = 64
    model.backbone.stem = '7x7'  # not read: WideResNet-38 has one of its own
    model.backbone.stride = 8
    model.backbone.first_dilation = 'full'
    model.backbone.multi_grid = (1, 2)  # of mod6 and mod7; the paper gives no numbers
    model.backbone.multi_grid_kind = 'multiplier'  # of the dilation; or 'absolute'
    model.backbone.weights = config_dict.placeholder(str)
    model.backbone.statistics = 'batch'  # or running: normalise with those of the weights
    model.input = 'vistas'  # as its published weights
    model.activation = 'leaky_relu'  # InPlace-ABN
    model.norm = 'abs_gamma'  # as its published weights
    model.context = 'ggcf'
    model.heads = 'local:8,16,24,grid:8,16,24'
    model.ggcf = ConfigDict()
    model.ggcf.channels = 256  # with key + value channels 256 the paper's 520 GFLOPs of FULL
    model.ggcf.key_channels = 128
    model.ggcf.value_channels = 128
    model.ggcf.scale = 1.0
    model.aspp = ConfigDict()
    model.aspp.channels = 256
    model.aspp.rates = (12, 24, 36)  # DeepLab v3 at output stride 8
    model.aux_channels = 256  # openseg 512, OCNet 512, mmseg 256
    model.dropout = 0.1  # before the classifiers: OCNet 0.05, mmseg 0.1

    config.train = train = ConfigDict()
    train.steps = 50_000
    train.batch_size = 8
    train.accumulate = 1
    train.optimizer = 'sgd'
    train.learning_rate = 0.02
    train.end_learning_rate = 0.0
    train.warmup_steps = 0
    train.poly_power = 2.0
    train.momentum = 0.9
    train.weight_decay = 5e-4
    train.decay = 'all'  # or kernels: not biases and scales of norms
    train.head_multiplier = 1.0  # of the learning rate outside of the backbone
    train.clip_norm = 0.0  # of the gradients; 0: not
    train.ema_decay = 0.0  # evaluate averaged parameters; 0: not
    train.loss = 'ohem'
    train.ohem = ConfigDict()
    train.ohem.threshold = 0.7  # openseg
    train.ohem.min_kept = 100_000  # pixels of a batch, openseg
    train.aux_weight = 0.4  # the paper has an auxiliary loss and no weight: PSPNet, OCNet
    train.class_weights = 'none'
    train.dtype = 'bfloat16'
    train.remat = 'inplace_abn'  # as the paper; none or block: more or less memory
    train.log_every = 50
    train.eval_every = 5_000
    train.checkpoint_every = 1_000
    train.max_skipped = 50

    config.mesh = ConfigDict()
    config.mesh.space = 1  # devices that share the rows of an image (docs/pods.md)

    config.eval = ConfigDict()
    config.eval.batch_size = 8
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
