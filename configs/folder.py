"""Your own images and label PNGs: no code to write.

    python main.py --mode=doctor --config=configs/folder.py --config.data.manual_dir=DIR
    python main.py --config=configs/folder.py --config.data.manual_dir=DIR

With the values below DIR holds

    classes.csv                         or a text file with one class name a line
    train/images/a/b.jpg                any folders inside, jpg, png, bmp, webp or tiff
    train/labels/a/b.png                8-bit PNG of class ids, grey or palette
    validation/images/ and validation/labels/

Other folders, or list files with one 'image label' pair a line, go into data.splits. classes.csv:

    name, red, green, blue, ids
    road, 128, 64, 128, 7 8
    car, 0, 0, 142, 26

Colours and ids may be left out; without ids the n-th class is label value n. Values that are
neither ids nor in data.ignore are errors: the doctor lists the files that have them.

The recipe is a middle-sized network for one GPU, a place to start from; nothing was measured with
it. On a few CPU cores take the network of configs/camvid.py. The heads are the paper's, made for
feature maps of 128 x 256; scale them to yours (image size / 8).
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.data = data = ConfigDict()
    data.name = 'folder'
    data.manual_dir = config_dict.placeholder(str)
    data.data_dir = config_dict.placeholder(str)  # what is derived; None: ~/tensorflow_datasets
    data.classes = 'classes.csv'
    data.ignore = (255,)  # label values that are neither trained on nor counted
    data.splits = ConfigDict()
    data.splits.train = 'train/images,train/labels'
    data.splits.validation = 'validation/images,validation/labels'
    data.splits.test = ''
    data.train_split = 'train'
    data.storage = 'original'  # compact: decodes faster (docs/data.md)
    data.crop_size = (513, 513)
    data.scale_range = (0.5, 2.0)
    data.scale_step = 0.0
    data.aspect_jitter = 0.0
    data.max_class_share = 0.75
    data.photometric = 1.0
    data.class_uniform = 0.0
    data.threads = 8
    data.workers = 0  # processes; 0: only threads

    config.model = model = ConfigDict()
    model.backbone = ConfigDict()
    model.backbone.name = 'resnet18'
    model.backbone.width = 64
    model.backbone.stem = '7x7'
    model.backbone.stride = 8
    model.backbone.first_dilation = 'full'
    model.backbone.multi_grid = ()
    model.backbone.multi_grid_kind = 'multiplier'
    model.backbone.weights = config_dict.placeholder(str)  # docs/pretrained.md
    model.backbone.statistics = 'batch'  # or running: normalise with those of the weights
    model.input = 'imagenet'
    model.activation = 'relu'
    model.norm = 'batch_norm'
    model.context = 'ggcf'
    model.heads = 'local:8,16,24,grid:8,16,24'
    model.ggcf = ConfigDict()
    model.ggcf.channels = 256
    model.ggcf.key_channels = 64
    model.ggcf.value_channels = 64
    model.ggcf.scale = 1.0
    model.aspp = ConfigDict()
    model.aspp.channels = 256
    model.aspp.rates = (12, 24, 36)
    model.aux_channels = 128
    model.dropout = 0.1

    config.train = train = ConfigDict()
    train.steps = 20_000
    train.batch_size = 8
    train.accumulate = 1
    train.optimizer = 'sgd'
    train.learning_rate = 0.02
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
    train.dtype = 'bfloat16'
    train.remat = 'none'  # inplace_abn or block: less memory, slower
    train.log_every = 20
    train.eval_every = 1_000
    train.checkpoint_every = 500
    train.max_skipped = 20

    config.mesh = ConfigDict()
    config.mesh.space = 1  # devices that share the rows of an image (docs/pods.md)

    config.eval = ConfigDict()
    config.eval.batch_size = 8
    config.eval.size_multiple = 64  # images are padded to multiples of this
    config.eval.max_sizes = 8  # and to so many sizes at most, one compilation each
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
