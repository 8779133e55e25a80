"""The configuration: `default()` has every field once, `check()` refuses impossible values.

docs/configuration.md is made from the source of `default()`: run `python -m docs.configuration`
after a change.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict, config_dict

from ggcf_jax import registry
from ggcf_jax.data import STORAGES, class_weights, mixture
from ggcf_jax.data.records.codec import LABEL_FORMS
from ggcf_jax.errors import InputError

# Fields that hold a path, which `places.expand` reads, on this machine ...
PLACES = ('data.manual_dir', 'data.data_dir', 'model.backbone.weights', 'train.start_from')
# ... and, unless it is absolute, inside of `data.manual_dir`.
FILES_OF_DATA = (
    'data.classes', 'data.splits.train', 'data.splits.validation', 'data.splits.test',
)  # fmt: skip


def default() -> ConfigDict:
    """Returns a configuration with every field that the package reads.

    A recipe starts from it and sets what differs (`configs/`). It is locked, so that a misspelt
    field is an error; fields for code of your own are added inside `with config.unlocked():`.

    Runs that were started before a field existed get its value from here: it must describe what
    the code did until then.
    """
    config = ConfigDict()
    config.seed = 0  # Seed of the initial parameters, dropout, shuffling and augmentation.

    # Data set, augmentation and loading of the images (docs/data.md).
    config.data = ConfigDict()
    # Data set: 'ade20k', 'camvid', 'cityscapes', 'folder' (your own images), 'street_scenes'
    # (painted), or 'my_package.my_module:build' for your own code.
    config.data.name = 'folder'
    # Folder with your images, or with the files as downloaded (docs/data.md names them).
    config.data.manual_dir = config_dict.placeholder(str)
    # Folder for prepared data and other derived files, written on first use; None:
    # ~/tensorflow_datasets.
    config.data.data_dir = config_dict.placeholder(str)
    # Images to train on: a split ('train'), a union ('train+validation') or a mixture with the
    # share of each part ('train:0.5,train_extra:0.5').
    config.data.train_split = 'train'
    # Form of the training images: 'original', or 'compact' (a copy that decodes faster, made on
    # first use).
    config.data.storage = 'original'
    config.data.crop_size = (513, 513)  # (height, width) of training crops, in pixels.
    config.data.scale_range = (0.5, 1.5)  # Random rescaling: (smallest, largest) factor (paper).
    config.data.scale_step = 0.0  # Step between the factors of scale_range; 0: any factor.
    # Largest relative change of the aspect ratio, in [0, 1); 0: none. The paper's best model: 0.1.
    config.data.aspect_jitter = 0.0
    # Crops are drawn anew, up to 10 times, while one class has more than this share of their
    # labelled pixels; 1: never. 0.75 in mmseg (cat_max_ratio).
    config.data.max_class_share = 1.0
    # Strength of random brightness, contrast, saturation and hue; 0: none, 1: as SSD and mmseg.
    config.data.photometric = 0.0
    # Share of the samples, in [0, 1], that are drawn by class: a class, an image that has it, a
    # crop that shows it. 0.5 in Zhu et al., 2019.
    config.data.class_uniform = 0.0
    # Number of threads that decode images, of each worker if there are any.
    config.data.threads = 16
    config.data.workers = 0  # Number of worker processes that load images; 0: threads only.
    # MiB of decoded training images and labels that are kept in memory, by each process or, if
    # there are any, by each worker; 0: every epoch decodes anew.
    config.data.cache_mib = 0
    # Bits that the samples of 16-bit images use, 8 to 16, such as 12 where their largest values are
    # 4095; also of the images of the modes predict and serve. --mode=doctor finds the number.
    config.data.image_bits = 16
    # Only 'folder' reads this: file inside manual_dir with the class names (configs/folder.py), or
    # 'published:NAME', a table of a published data set (docs/data.md).
    config.data.classes = 'classes.csv'
    # Only 'folder' reads this: label values that are neither trained on nor counted; '()': none.
    config.data.ignore = (255,)
    # Only 'folder' reads this: what labels hold, 'ids', or the 'colors' of the class file; 'auto':
    # what each file shows.
    config.data.label_form = 'auto'
    # Only 'folder' reads this: endings that names of images may have and their labels have not,
    # separated by commas; equal names are paired first.
    config.data.image_endings = '_leftImg8bit,_image,_img,_rgb,_sat'
    # Only 'folder' reads this: endings that names of labels may have and their images have not.
    config.data.label_endings = (
        '_gtFine_labelIds,_gtCoarse_labelIds,_mask,_label,_labels,_gt,_seg,_segmentation,_L,_P'
    )
    # Only 'folder' reads these: the images and labels of each split inside manual_dir, as two
    # folders or patterns of paths 'IMAGES,LABELS', with the names of those that are used
    # 'IMAGES,LABELS,NAMES', as one folder that holds both, or as a list file with an image and a
    # label on each line; several with semicolons between them (docs/data.md).
    config.data.splits = ConfigDict()
    config.data.splits.train = 'train/images,train/labels'  # Training images.
    config.data.splits.validation = 'validation/images,validation/labels'  # Validation images.
    config.data.splits.test = ''  # Test images; '': none.
    # Only 'street_scenes' reads this: (height, width) of the painted images, in pixels.
    config.data.image_size = (256, 512)
    # Only 'street_scenes' reads this: number of (train, validation, test) images.
    config.data.num_images = (400, 50, 50)

    # The network. A checkpoint is only used with the values that it was trained with.
    config.model = ConfigDict()
    # The backbone and the weights that it starts from (docs/pretrained.md).
    config.model.backbone = ConfigDict()
    # Architecture: 'resnet10', 'resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152',
    # 'wide_resnet38', 'mobilenet_v2', 'convnext_tiny', 'convnext_small', 'convnext_base',
    # 'swin_tiny', 'swin_small', 'dinov2_small', 'dinov2_base', 'dinov2_large', 'mit_b0' to
    # 'mit_b5', or 'my_package.my_module:build'.
    config.model.backbone.name = 'resnet50'
    # Channels of the first stage (mobilenet_v2: of the first convolution; dinov2_*: of each head;
    # convnext_*, swin_*, mit_*: in units of which the published number is 64), to which all others
    # are in proportion. Published networks: 64; mobilenet_v2: 32.
    config.model.backbone.width = 64
    # First convolutions of a ResNet: '7x7' (torchvision), '64-64-128' (openseg, OCNet, CCNet) or
    # '32-32-64' (ResNet v1c of mmseg), 'auto': that of the weights. Other backbones have one stem.
    config.model.backbone.stem = '7x7'
    # Output stride, the pixels between two positions of the feature map: 8, 16 or 32; dinov2_*: 14,
    # mit_*: 32.
    config.model.backbone.stride = 8
    # Dilation of the convolution that loses its stride: that of its stage ('full': OCNet, CCNet)
    # or of the stage before ('half': openseg, mmseg). Always that of convnext_*, swin_*.
    config.model.backbone.first_dilation = 'full'
    # Multi-grid: a number for each block of the last stage (wide_resnet38: for each of the last two
    # modules); (): none.
    config.model.backbone.multi_grid = ()
    # Whether the multi-grid numbers are factors of the stage's dilation ('multiplier': OCNet,
    # openseg) or dilations ('absolute': mmseg).
    config.model.backbone.multi_grid_kind = 'multiplier'
    # Stochastic depth, in [0, 1): how often the last block leaves out its branches while training;
    # the rates of the blocks before rise to that from 0. convnext_*, swin_*, dinov2_* and mit_*
    # have it.
    config.model.backbone.drop_path = 0.0
    # File of published weights, or workdir of a run, to start from; None: random parameters.
    config.model.backbone.weights = config_dict.placeholder(str)
    # What the published figures of a recipe start from; training says it where `weights` is None.
    config.model.backbone.expected_weights = ''
    # Activation of the backbone; None: `model.activation`; 'auto': that of the weights. OCNet,
    # CCNet: 'relu' below heads of 'leaky_relu'. mobilenet_v2 always has relu6;
    # convnext_*, swin_*, dinov2_* and mit_* gelu.
    config.model.backbone.activation = config_dict.placeholder(str)
    # Batch norm in training: statistics of the batch ('batch'), or frozen at those that come with
    # the weights ('running').
    config.model.backbone.statistics = 'batch'
    # Normalisation of the images, the one the weights were trained with: 'imagenet' (torchvision,
    # mmseg), 'caffe' (openseg), 'ocnet', 'ccnet' or 'vistas' (InPlace-ABN on Mapillary Vistas);
    # 'auto': the one of the weights.
    config.model.input = 'imagenet'
    # Activation of context module and heads, and of the backbone unless it has its own: 'relu',
    # 'relu6', 'leaky_relu' (InPlace-ABN), 'gelu' or 'identity'.
    config.model.activation = 'relu'
    # 'batch_norm', or 'abs_gamma': batch norm with positive scales (weights of InPlace-ABN).
    config.model.norm = 'batch_norm'
    # Context module (docs/contexts.md): 'ggcf', 'aspp' (DeepLab v3), 'psp' (PSPNet), 'nonlocal',
    # 'ccnet', 'isa', 'none', 'linear' (DINOv2's linear head), or 'my_package.my_module:build'.
    config.model.context = 'ggcf'
    # Graphs of the heads of 'ggcf' (docs/attention.md): 'full', 'local:8' (8 positions to each
    # side), 'grid:8' (every 8th position), 'local:4x12' (4 for rows, 12 for columns), 'local:3@4'
    # (every 4th position, 3 to each side), 'local:3:shift' (windows moved inward at the border),
    # 'row', 'column', 'cross', 'block:8' (non-overlapping windows), 'block:8+4' (shifted by 4),
    # 'local:8|cross' (either), 'local:12&grid:4' (both), 'learned', or
    # 'my_package.my_module:Class:8' for a graph of your own. 'local:8,16' is two heads. The default
    # is the paper's {LOCAL, GRID}_{8,16,24}, made for feature maps of 128 x 256.
    config.model.heads = 'local:8,16,24,grid:8,16,24'
    # The paper's context module (sections 3.2 to 3.5).
    config.model.ggcf = ConfigDict()
    # Channels of x and y (Eq. 3). With 256 key and value channels, 256 gives the 520 GFLOPs
    # that the paper states for FULL.
    config.model.ggcf.channels = 256
    config.model.ggcf.key_channels = 128  # Channels of the queries and keys of each head.
    config.model.ggcf.value_channels = 128  # Channels of the values, which all heads share.
    config.model.ggcf.scale = 1.0  # Factor on the affinities, before the softmax; 1 in the paper.
    # DeepLab v3's context module, a baseline of Table 1.
    config.model.aspp = ConfigDict()
    config.model.aspp.channels = 256  # Channels of each branch and of the output (DeepLab v3).
    config.model.aspp.rates = (12, 24, 36)  # Dilations (DeepLab v3 at output stride 8).
    # PSPNet's context module.
    config.model.psp = ConfigDict()
    config.model.psp.channels = 512  # Channels of each branch and of the output (PSPNet, mmseg).
    config.model.psp.pool_scales = (1, 2, 3, 6)  # Bins of each branch, down and across (PSPNet).
    # Whether the outermost bins lie on the outermost positions of the map (PSPNet, CCNet; mmseg for
    # crops of 769), or the edges of the bins on its edges (mmseg for others).
    config.model.psp.align_corners = True
    # mmseg's non-local context module ('nonlocal' is a keyword of Python).
    config.model.non_local = ConfigDict()
    config.model.non_local.channels = 512  # Channels of the block and of the output (mmseg).
    # Channels of the block over those of its queries, keys and values (mmseg).
    config.model.non_local.reduction = 2
    # Whether affinities are divided by the square root of the channels of the keys (mmseg).
    config.model.non_local.use_scale = True
    # Whether the backbone's features are joined behind the block (mmseg).
    config.model.non_local.concat_input = True
    # Context module of Interlaced Sparse Self-Attention.
    config.model.isa = ConfigDict()
    config.model.isa.channels = 512  # Channels of the attention and of the output (openseg, mmseg).
    config.model.isa.key_channels = 256  # Channels of the queries and keys (openseg, mmseg).
    # (height, width) of a block in positions: the short range attends inside the blocks, the long
    # range among equal places of all blocks (openseg, mmseg).
    config.model.isa.partition = (8, 8)
    # CCNet's context module.
    config.model.ccnet = ConfigDict()
    config.model.ccnet.channels = 512  # Channels of the attention and of the output (CCNet, mmseg).
    # Channels of the attention over those of its queries and keys (CCNet, mmseg).
    config.model.ccnet.reduction = 8
    config.model.ccnet.recurrence = 2  # Steps of criss-cross attention (CCNet, mmseg).
    # What computes the attention (docs/attention.md): 'auto' (the fastest for the device), 'xla',
    # 'cudnn', 'pallas', 'reference'. Results differ by rounding only.
    config.model.attention = 'auto'
    # Channels of the auxiliary head, which reads stage 3. openseg, OCNet: 512; mmseg: 256.
    config.model.aux_channels = 256
    # Dropout rate before the classifiers, in [0, 1). mmseg: 0.1; OCNet, openseg: 0.05.
    config.model.dropout = 0.1
    # What dropout sets to zero: 'value' (each by itself), or 'channel' (whole channels of an image:
    # Dropout2d of OCNet, CCNet, openseg and mmseg).
    config.model.dropout_of = 'value'

    # Optimiser, schedule, loss, precision and logging of the training.
    config.train = ConfigDict()
    config.train.steps = 50_000  # Number of parameter updates.
    # Workdir of a run whose best checkpoint training starts from, or a model that --mode=export
    # --format=folder wrote: its whole network, without the classifiers where the classes differ;
    # None: model.backbone.weights or random parameters.
    config.train.start_from = config_dict.placeholder(str)
    config.train.batch_size = 8  # Images for each update, over all devices (paper: 8).
    # Gradient accumulation: number of microbatches that a batch is processed in, to save memory.
    config.train.accumulate = 1
    # 'sgd', 'adamw' (Loshchilov and Hutter, 2019), 'lars' for large batches (You et al., 2017), or
    # 'my_package.my_module:build'.
    config.train.optimizer = 'sgd'
    config.train.learning_rate = 0.02  # Learning rate after the warm-up (paper: 0.02).
    # Course of the learning rate: 'poly' (polynomial), 'cosine', 'constant', or
    # 'my_package.my_module:build'.
    config.train.schedule = 'poly'
    # Learning rate at the end of 'poly' and 'cosine'. mmseg: 1e-4.
    config.train.end_learning_rate = 0.0
    config.train.warmup_steps = 0  # Number of first steps, in which the learning rate rises from 0.
    # Steps after which the learning rate has reached its end and stays there; 0: train.steps. A run
    # that is made longer keeps its schedule with the number of steps that it had.
    config.train.schedule_steps = 0
    # Only 'poly' reads this: its power. The paper: 2 on Cityscapes, 0.9 on ADE20K; openseg,
    # mmseg: 0.9.
    config.train.poly_power = 0.9
    config.train.momentum = 0.9  # Momentum, beta 1 of 'adamw', in [0, 1) (paper: 0.9).
    # Only 'adamw' reads these.
    config.train.adamw = ConfigDict()
    # Decay of the average of squared gradients, in [0, 1) (Adam, PyTorch).
    config.train.adamw.beta2 = 0.999
    config.train.adamw.epsilon = 1e-8  # Added to the root of that average (Adam, PyTorch).
    config.train.weight_decay = 5e-4  # Weight decay, as in PyTorch (paper: 5e-4).
    # Parameters that decay: 'all', or 'kernels' (neither biases nor the scales of norms).
    config.train.decay = 'all'
    # Factor on the learning rate of everything but the backbone.
    config.train.head_multiplier = 1.0
    # Parameters that stay as they start, with the statistics of their norms (docs/finetuning.md):
    # patterns of names, separated by commas, such as 'backbone.stem,backbone.stages.0'; '': none.
    config.train.frozen = ''
    # Factors on the learning rate by pattern, 'PATTERN:FACTOR', separated by commas, such as
    # 'context:10,classifier:10'; of several that name a parameter the last one counts. '': none.
    config.train.multipliers = ''
    # Factor on the learning rate from each block of the backbone to the one below, in (0, 1]; 1:
    # none. mmseg: 0.9 for BEiT.
    config.train.layer_decay = 1.0
    config.train.clip_norm = 0.0  # Global norm that gradients are clipped to; 0: no clipping.
    # Decay of an exponential moving average of the parameters, in [0, 1), which is then evaluated
    # instead of them; 0: none.
    config.train.ema_decay = 0.0
    # Whether the average follows faster at first: with a decay of (1 + step) / (10 + step) while
    # that is lower (TensorFlow).
    config.train.ema_warmup = False
    # Batch statistics that the average is evaluated with: the 'latest' ones of the parameters that
    # are trained, or 'averaged' ones.
    config.train.ema_statistics = 'latest'
    # Loss, or losses with factors joined by +, 'cross_entropy+0.5*dice': 'cross_entropy', 'ohem'
    # (online hard example mining), 'focal', 'dice', 'lovasz_softmax', 'boundary_cross_entropy', or
    # 'my_package.my_module:build'.
    config.train.loss = 'cross_entropy'
    # What the mean over pixels is taken over: the 'labelled' ones (openseg, PyTorch), or 'all',
    # ignored ones too (mmseg).
    config.train.loss_average = 'labelled'
    # Online hard example mining: the pixels that the loss 'ohem' counts.
    config.train.ohem = ConfigDict()
    # Pixels count if the probability of their class is at most this, in (0, 1] (openseg).
    config.train.ohem.threshold = 0.7
    # Smallest number of pixels of a batch that count (openseg).
    config.train.ohem.min_kept = 100_000
    # Focal loss: less weight on pixels that are known already.
    config.train.focal = ConfigDict()
    # Power of 1 - p, p the probability of the label; 0: cross entropy (Lin et al., 2017: 2).
    config.train.focal.gamma = 2.0
    # The loss 'boundary_cross_entropy': the pixels that count more.
    config.train.boundary = ConfigDict()
    # Distance in pixels, down and across, of a pixel to one of another class.
    config.train.boundary.radius = 3
    # Factor on the losses and the weights of these pixels. With 3 pixels, 5 is our choice.
    config.train.boundary.weight = 5.0
    # Weight of the auxiliary loss; the paper does not give it (PSPNet, OCNet, mmseg: 0.4).
    config.train.aux_weight = 0.4
    # Weights of the classes in the loss: 'none', 'cityscapes' (OCNet, CCNet, openseg), 'data' (from
    # the class frequencies), or one number for each class: '1.0,2.5,...'.
    config.train.class_weights = 'none'
    config.train.dtype = 'bfloat16'  # Precision of the network: 'bfloat16' or 'float32'.
    # Rematerialisation, what the backward pass computes again to save memory (docs/memory.md):
    # 'none', 'inplace_abn' (norms and activations, as in the paper) or 'block' (residual blocks).
    config.train.remat = 'none'
    config.train.log_every = 50  # Steps between two rows of training metrics.
    # Whether these rows have the norm of the gradient of each layer, too: each block of the
    # backbone, its stem, and the modules of the rest.
    config.train.gradient_norms = False
    config.train.eval_every = 5_000  # Steps between two evaluations of the validation split.
    # Whether evaluations during training compute the loss of the validation split, too (val/loss).
    config.train.validation_loss = False
    # Number of evaluations without a better validation mIoU after which training stops; 0: never.
    config.train.patience = 0
    config.train.checkpoint_every = 1_000  # Steps between two checkpoints.
    # Steps to profile, 'START:STOP' with both, such as '10:12': a trace of them for XProf or
    # TensorBoard is written into WORKDIR/profile. '': none.
    config.train.profile = ''
    # Number of consecutive steps with a loss or gradients that are not finite (they are skipped)
    # after which training stops.
    config.train.max_skipped = 50

    # How the devices share the work (docs/pods.md).
    config.mesh = ConfigDict()
    # Number of devices that share the rows of each image; the others share the images of a batch.
    config.mesh.space = 1

    # Evaluation and inference (docs/inference.md). Training evaluates one view of each image, in
    # windows if `window` is set; the fields from `scales` on are for the modes evaluate, predict,
    # export and serve.
    config.eval = ConfigDict()
    config.eval.batch_size = 8  # Images that go through the network together, over all devices.
    # Heights and widths are padded to multiples of this number of pixels; results stay the same.
    config.eval.size_multiple = 64
    # Maximum number of padded sizes, each of which is compiled; the pair that adds the least
    # padding is merged first.
    config.eval.max_sizes = 8
    config.eval.panels = 4  # Number of leading images of the split that each evaluation shows.
    # (height, width) of sliding windows, in pixels; (): the whole image.
    config.eval.window = ()
    # (down, across) from one window to the next, in pixels; (): two thirds of the window.
    config.eval.stride = ()
    # Number of windows of each image that go through the network together: memory grows with it,
    # and is twice as much with `flip`.
    config.eval.windows_at_once = 4
    config.eval.scales = (1.0,)  # Factors that the image is resized by; their scores are averaged.
    config.eval.flip = False  # Whether the scores of the mirror image are averaged in.
    # Scores that are averaged: 'probabilities' (mmseg, deeplab2) or 'logits' (openseg).
    config.eval.average = 'probabilities'
    # Context Pruning (section 3.4), a rule for each kind of head, such as
    # 'full:drop=0.5,local:keep=200'; '': none.
    config.eval.pruning = ''
    # Metrics that are shown, comma-separated: entries of METRICS in ggcf_jax/evaluation/metrics.py,
    # or functions of the confusion matrix as my_package.my_module:function. miou is always shown.
    config.eval.metrics = 'miou,pixel_accuracy'
    # Boundary IoU (Cheng et al., 2021): distance to contours up to which pixels count, as share of
    # the image's diagonal (theirs: 0.02); 0: it is not computed. Training never computes it.
    config.eval.boundary = 0.0
    config.eval.worst = 4  # Number of images with the lowest mIoU that --mode=evaluate shows.

    # What --mode=predict writes (docs/inference.md).
    config.predict = ConfigDict()
    config.predict.overlays = True  # Whether to write the images overlaid with the class colours.
    config.predict.probabilities = False  # Whether to write float16 probabilities; they are large.
    # Whether to write a label file for each frame of a video, beside the overlaid video.
    config.predict.frames = False
    # Ids in the label files: 'train', 'dataset' (those of the data set's own label files) or
    # 'server' (those of its evaluation server).
    config.predict.label_ids = 'train'
    # Longest side, in pixels, of images that are predicted whole; larger ones are predicted in
    # parts of this size. At least 64.
    config.predict.max_side = 2048
    return config.lock()


@dataclasses.dataclass(frozen=True)
class _Bound:
    """What some numbers must be.

    Attributes:
        words: condition as error messages state it.
        holds: whether a value meets it.
        fields: dotted names of the fields.
    """

    words: str
    holds: Callable[[float], bool]
    fields: tuple[str, ...]


_BOUNDS = (
    _Bound(
        'must be at least 1',
        lambda value: value >= 1,
        (
            'train.steps', 'train.batch_size', 'train.accumulate', 'train.eval_every',
            'train.checkpoint_every', 'train.log_every', 'train.max_skipped', 'eval.batch_size',
            'eval.size_multiple', 'eval.max_sizes', 'eval.windows_at_once', 'data.threads',
            'mesh.space', 'model.psp.channels', 'model.non_local.channels',
            'model.non_local.reduction', 'model.isa.channels', 'model.isa.key_channels',
            'model.ccnet.channels', 'model.ccnet.reduction', 'model.ccnet.recurrence',
            'model.backbone.width', 'model.backbone.stride', 'model.ggcf.channels',
            'model.ggcf.key_channels', 'model.ggcf.value_channels', 'model.aspp.channels',
            'model.aux_channels', 'train.boundary.radius',
        ),
    ),
    _Bound(
        'must not be negative',
        lambda value: value >= 0,
        (
            'train.learning_rate', 'train.poly_power', 'train.weight_decay', 'train.aux_weight',
            'train.end_learning_rate', 'train.warmup_steps', 'train.schedule_steps',
            'train.clip_norm', 'train.head_multiplier', 'train.patience', 'train.focal.gamma',
            'eval.panels', 'eval.worst', 'data.workers', 'data.cache_mib', 'data.scale_step',
            'data.photometric', 'seed',
        ),
    ),
    _Bound(
        'must be in [0, 1)',
        lambda value: 0 <= value < 1,
        (
            'train.momentum', 'train.ema_decay', 'model.dropout', 'data.aspect_jitter',
            'eval.boundary', 'train.adamw.beta2', 'model.backbone.drop_path',
        ),
    ),
    _Bound(
        'must be in [0, 1]',
        lambda value: 0 <= value <= 1,
        ('data.max_class_share', 'data.class_uniform'),
    ),
    _Bound('must be in [8, 16]', lambda value: 8 <= value <= 16, ('data.image_bits',)),
    _Bound(
        'must be above 0',
        lambda value: value > 0,
        ('model.ggcf.scale', 'train.adamw.epsilon', 'train.boundary.weight'),
    ),
    _Bound('must be in (0, 1]', lambda value: 0 < value <= 1, ('train.layer_decay',)),
    _Bound('must be at least 0', lambda value: value >= 0, ('train.ohem.min_kept',)),
    _Bound('must be at least 64', lambda value: value >= 64, ('predict.max_side',)),
)  # fmt: skip

_CHOICES = {
    'model.attention': ('auto', 'xla', 'cudnn', 'pallas', 'reference'),
    'data.storage': STORAGES,
    'data.label_form': LABEL_FORMS,
    'train.ema_statistics': ('latest', 'averaged'),
    'predict.label_ids': ('train', 'dataset', 'server'),
}


def check(config: ConfigDict, devices: int | None) -> None:
    """Refuses a configuration that no run can have, before anything expensive is done.

    Names of backbones, contexts, losses and the like are refused where they are looked up.

    Args:
        config: configuration to check.
        devices: number of devices that share the images of a batch; None where images go through
            the network one by one, so that batches need not be divisible.

    Raises:
        InputError: a value that is impossible; the message names the field, its value and what it
            may be.
    """
    _check_fields(config)
    _check_types(config)
    for bound in _BOUNDS:
        for name in bound.fields:
            if not bound.holds(value := get(config, name)):
                raise InputError(f'config.{name}={value} {bound.words}')
    for name, choices in _CHOICES.items():
        registry.check(get(config, name), choices, f'config.{name}')
    _check_data(config.data)
    _check_model(config.model)
    _check_evaluation(config.eval)
    _check_training(config)
    if devices is not None:
        _check_batches(config, devices)
        _check_rows(config)


def get(config: ConfigDict, name: str) -> Any:
    """Returns the value of a field.

    Args:
        config: configuration to read.
        name: dotted name of the field, such as 'train.steps'.
    """
    for part in name.split('.'):
        config = config[part]
    return config


def fields(config: ConfigDict, prefix: str = '') -> Iterator[str]:
    """Yields the dotted names of all fields, without the sections that hold them.

    Args:
        config: configuration, or a section of one.
        prefix: text before each name, such as 'train.'.
    """
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from fields(config[name], f'{prefix}{name}.')
        else:
            yield prefix + name


def _check_fields(config: ConfigDict) -> None:
    """Every field is there, and only those that may be None are None."""
    complete = _complete()
    present = set(fields(config))
    for name in fields(complete):
        expected = get(complete, name)
        if name not in present:
            raise InputError(
                f'the configuration has no field {name} (default {expected!r}); make it from '
                'ggcf_jax.config.default()'
            )
        if expected is not None and get(config, name) is None:
            raise InputError(
                f'config.{name}=None must be of type {type(expected).__name__}, such as '
                f'{expected!r}'
            )


@functools.cache
def _complete() -> ConfigDict:
    """The default configuration, to be read only."""
    return default()


# Largest whole number: seeds and sizes are 32-bit numbers of JAX.
_LARGEST = 2**32 - 1


def _check_types(config: ConfigDict) -> None:
    """Every value is of the type of its default, every number finite, every text printable."""
    complete = _complete()
    for name in fields(complete):
        expected, value = get(complete, name), get(config, name)
        if expected is None and value is None:
            continue
        kind = str if expected is None else type(expected)
        words = _wrong(value, kind)
        if not words and kind is tuple:
            # An empty default says nothing about what may be in it: numbers, in all of them.
            whole = all(type(each) is int for each in expected) and expected != ()
            items = (_wrong(each, int if whole else float) for each in value)
            words = next((f'must hold values that are {w[8:]}' for w in items if w), '')
        if words:
            raise InputError(f'config.{name}={value!r} {words}, such as {expected!r}')


def _wrong(value: Any, kind: type) -> str:
    """What a value must be, if it is something else; '' if it is right."""
    if kind is bool:
        return '' if isinstance(value, bool) else 'must be True or False'
    if kind is str:
        if not isinstance(value, str):
            return 'must be a text'
        return '' if value.isprintable() else 'must be a text of printable characters'
    if kind is tuple:
        return '' if isinstance(value, tuple | list) else 'must be a list of values'
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 'must be a whole number' if kind is int else 'must be a number'
    if kind is int and not isinstance(value, int):
        return 'must be a whole number'
    largest = _LARGEST if kind is int else 1e30
    # NaN is not less than anything either.
    return '' if abs(value) <= largest else f'must be a finite number of at most {largest:g}'


def _check_data(data: ConfigDict) -> None:
    size = tuple(data.crop_size)
    if len(size) != 2 or min(size) < 1:
        raise InputError(f'config.data.crop_size={size} must be (height, width)')
    scales = tuple(data.scale_range)
    if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
        raise InputError(f'config.data.scale_range={scales} must be (smallest, largest) > 0')
    for name in ('image_size', 'num_images', 'ignore'):
        if min(data[name], default=0) < 0:
            raise InputError(f'config.data.{name}={tuple(data[name])} must not be negative')
    mixture.parse(data.train_split)


def _check_model(model: ConfigDict) -> None:
    """Lists of numbers that count positions."""
    for name in ('backbone.multi_grid', 'aspp.rates', 'psp.pool_scales', 'isa.partition'):
        values = get(model, name)
        if any(type(value) is not int or value < 1 for value in values):
            raise InputError(
                f'config.model.{name}={tuple(values)} must hold whole numbers of at least 1'
            )


def _check_evaluation(evaluation: ConfigDict) -> None:
    """Sizes of windows; the rest is checked with the plan (`evaluation.inference`)."""
    for name in ('window', 'stride'):
        values = evaluation[name]
        wrong = any(type(value) is not int or value < 1 for value in values)
        if wrong or len(values) not in (0, 2):
            raise InputError(
                f'config.eval.{name}={tuple(values)} must be (down, across) in pixels, or ()'
            )
    if not evaluation.scales or min(evaluation.scales) <= 0:
        raise InputError(
            f'config.eval: scales={tuple(evaluation.scales)} must be one or more factors above 0'
        )


def _check_training(config: ConfigDict) -> None:
    train, backbone = config.train, config.model.backbone
    from_scratch = backbone.weights is None and train.start_from is None
    if backbone.statistics == 'running' and from_scratch:
        raise InputError(
            "config.model.backbone.statistics='running' keeps the statistics of published weights; "
            'give config.model.backbone.weights as well'
        )
    if train.frozen and from_scratch:
        raise InputError(
            f'config.train.frozen={train.frozen!r} keeps parameters as they start, which is at '
            'random; give config.train.start_from or config.model.backbone.weights as well'
        )
    name = 'schedule_steps' if train.schedule_steps else 'steps'
    if train.warmup_steps >= train[name]:
        raise InputError(
            f'config.train.warmup_steps={train.warmup_steps} must be less than '
            f'config.train.{name}={train[name]}'
        )
    if 'ohem' in train.loss and not (0 < train.ohem.threshold <= 1 and train.ohem.min_kept >= 1):
        raise InputError(
            f'config.train.ohem.threshold={train.ohem.threshold} must be in (0, 1] and '
            f'config.train.ohem.min_kept={train.ohem.min_kept} at least 1'
        )
    class_weights.parse(train.class_weights)


def _check_batches(config: ConfigDict, devices: int) -> None:
    """The images of a batch are sharded over the devices, but for those that share its rows."""
    train, evaluation, space = config.train, config.eval, config.mesh.space
    if devices % space:
        raise InputError(
            f'config.mesh.space={space} does not divide the {devices} devices; choose a divisor'
        )
    data = devices // space
    over = f'{data} devices' if space == 1 else f'{devices} devices / config.mesh.space={space}'
    parts = train.accumulate * data
    if train.batch_size % parts:
        raise InputError(
            f'config.train.batch_size={train.batch_size} is not divisible by {over}'
            f' x config.train.accumulate={train.accumulate}; choose a multiple of {parts}'
        )
    if evaluation.batch_size % data:
        raise InputError(
            f'config.eval.batch_size={evaluation.batch_size} is not divisible by {over};'
            f' choose a multiple of {data}'
        )


# Fewest rows of pixels that a device may get of an image, by the first word of a backbone's name.
# At every output stride no 7x7 convolution of ConvNeXt then reaches beyond the neighbouring
# devices. With 32 rows its features on 2 x 2 devices (jax 0.10.2, CPUs) are not those of one; each
# layer alone is right there, and the cause is not known.
_FEWEST_ROWS = {'convnext': 96}


def _check_rows(config: ConfigDict) -> None:
    """Devices that share an image get equally many rows of its feature map, and enough of them."""
    stride, space = config.model.backbone.stride, config.mesh.space
    fewest = _FEWEST_ROWS.get(config.model.backbone.name.split('_')[0], 0)
    if space == 1:
        return
    for name, height in (
        ('data.crop_size', config.data.crop_size[0]),
        ('eval.size_multiple', config.eval.size_multiple),
    ):
        if height % (stride * space):
            raise InputError(
                f'config.{name}: the height {height} must be a multiple of {stride * space}, '
                f'config.model.backbone.stride={stride} x config.mesh.space={space}, so that every '
                'device has equally many rows of features'
            )
        if height < fewest * space:
            raise InputError(
                f'config.{name}: the height {height} leaves each of the config.mesh.space={space} '
                f'devices {height // space} rows of an image, {config.model.backbone.name} needs '
                f'{fewest}; choose a lower mesh.space or a height of {fewest * space} at least'
            )
