"""Class scores of images: sliding windows, several scales, mirror images, pruned heads."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, UInt8
from ml_collections import ConfigDict

from ggcf_jax import models, registry
from ggcf_jax.errors import InputError
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.layers.resize import resize, upsample
from ggcf_jax.models.segmenter import Segmenter

AVERAGES = ('probabilities', 'logits')


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the class scores of an image are computed.

    The image is resized by each scale (as in training: bilinear, no smoothing) and, if `flip`,
    mirrored as well. Each of these views goes through the network whole or in windows, whose
    logits are averaged where they overlap, and is resized back to the size of the image; the
    scores are the mean over the views (mmseg, openseg).

    Attributes:
        window: (height, width) of the windows in pixels of the resized image, limited to its size;
            None for the whole image.
        stride: (down, across) from one window to the next in pixels; None for two thirds of the
            window. The last window of an axis is shifted inwards, so that it ends at the border.
        scales: factors that the image is resized by.
        flip: whether the scores of the mirror image are averaged in.
        average: what is averaged over the views: 'probabilities' (mmseg, deeplab2) or 'logits'
            (openseg).
        pruning: rules of Context Pruning for the heads (section 3.4).
        windows_at_once: number of windows of each image that go through the network together:
            memory grows with it, the scores stay the same up to rounding.

    Raises:
        ValueError: invalid values.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    average: Literal['probabilities', 'logits'] = 'probabilities'
    pruning: tuple[pruning_rules.Rule, ...] = ()
    windows_at_once: int = 4

    def __post_init__(self) -> None:
        for name, pair in (('window', self.window), ('stride', self.stride)):
            if pair is not None and (len(pair) != 2 or min(pair) < 1):
                raise ValueError(f'{name}={pair} must be (height, width) of at least 1')
        if self.stride is not None:
            if self.window is None:
                raise ValueError(f'stride={self.stride} needs a window')
            if any(s > w for s, w in zip(self.stride, self.window)):
                raise ValueError(
                    f'stride={self.stride} is larger than window={self.window}: pixels between '
                    'the windows would be left out'
                )
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f'scales={self.scales} must be one or more factors above 0')
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f'scales={self.scales} names a scale twice')
        if self.average not in AVERAGES:
            raise ValueError(f'average={self.average!r} is not one of {", ".join(AVERAGES)}')
        if self.windows_at_once < 1:
            raise ValueError(f'windows_at_once={self.windows_at_once} must be at least 1')

    @property
    def is_single(self) -> bool:
        """Whether it is one view of the whole image with all contexts, as in training."""
        return (self.window, self.scales, self.flip, self.pruning) == (None, (1.0,), False, ())

    @property
    def steps(self) -> tuple[int, int]:
        """(down, across) from one window to the next; two thirds of 769 are 513."""
        assert self.window is not None, 'a plan without windows has no stride'
        height, width = self.window
        return self.stride or (-(-2 * height // 3), -(-2 * width // 3))

    def __str__(self) -> str:
        parts = ['whole image']
        if self.window is not None:
            window, steps = ('x'.join(map(str, pair)) for pair in (self.window, self.steps))
            parts = [f'windows {window} every {steps}']
        if self.scales != (1.0,):
            parts.append(f'scales {" ".join(f"{scale:g}" for scale in self.scales)}')
        if self.flip:
            parts.append('flip')
        if self.flip or len(self.scales) > 1:
            parts.append(f'mean {self.average}')
        if self.pruning:
            parts.append(f'pruning {",".join(map(str, self.pruning))}')
        return ', '.join(parts)


# The plan of evaluations during training: logits and probabilities of one view rank alike.
SINGLE = Plan(average='logits')


def scores(
    model: Segmenter, images: UInt8[Array, 'b h w 3'], plan: Plan
) -> Float[Array, 'b h w classes']:
    """The scores of each class at each pixel; to be compiled with `jax.jit`, `plan` static.

    Args:
        model: network.
        images: RGB.
        plan: how the scores are computed.

    Returns:
        Probabilities, or logits if the plan averages those, float32. The most probable class is
        `argmax(-1)`.

    Raises:
        ValueError: a pruning rule for a kind of head that the model does not have.
    """
    model = pruning_rules.pruned(model, plan.pruning)
    size = (images.shape[1], images.shape[2])
    views = [(scale, flip) for scale in plan.scales for flip in (False, True)[: 1 + plan.flip]]
    total: Any = 0.0
    for scale, flip in views:
        view = _resized(images[:, :, ::-1] if flip else images, scale)
        logits = resize(_logits(model, view, plan), size)
        if flip:
            logits = logits[:, :, ::-1]
        total += jax.nn.softmax(logits) if plan.average == 'probabilities' else logits
    return total / len(views)


def probabilities(
    scores: Float[Array, '*shape classes'], plan: Plan
) -> Float[Array, '*shape classes']:
    """Turns the scores of a plan into probabilities, which sum to one."""
    return scores if plan.average == 'probabilities' else jax.nn.softmax(scores)


def window_starts(length: int, window: int, stride: int) -> Int32[Array, ' windows']:
    """First pixels of the windows along an axis; the last window ends where the axis does.

    Args:
        length: number of pixels along the axis; may be a symbolic dimension of `jax.export` that is
            known to be at least `window`.
        window: number of pixels of a window.
        stride: number of pixels from one window to the next.
    """
    if window > length:
        return jnp.zeros(1, jnp.int32)
    count = -(-(length - window) // stride) + 1
    return jnp.minimum(jnp.arange(count, dtype=jnp.int32) * stride, length - window)


def _resized(images: jax.Array, scale: float) -> jax.Array:
    """Resizes uint8 images by a factor; sides are rounded and at least one pixel."""
    if scale == 1:
        return images
    height, width = (max(1, round(scale * side)) for side in images.shape[1:3])
    return jnp.round(resize(images.astype(jnp.float32), (height, width))).astype(jnp.uint8)


def _logits(model: Segmenter, images: jax.Array, plan: Plan) -> jax.Array:
    """Logits at every pixel, float32 [b, h, w, C], averaged over the windows if there are any."""
    b, *size = images.shape[:3]
    height, width = size if plan.window is None else map(min, plan.window, size)
    window = (height, width)
    if window == tuple(size):
        return upsample(model(images)[0], model.stride, window)
    starts = [window_starts(*axis) for axis in zip(size, window, plan.steps)]
    corners = jnp.stack(jnp.meshgrid(*starts, indexing='ij'), axis=-1).reshape(-1, 2)
    # A pixel is covered by (windows that cover its row) x (windows that cover its column).
    rows, columns = (
        ((first[:, None] <= at) & (at < first[:, None] + side)).sum(0, dtype=jnp.float32)
        for first, side, at in zip(starts, window, (jnp.arange(length) for length in size))
    )
    cover = rows[:, None, None] * columns[:, None]
    # The last chunk is filled up with windows of weight zero.
    n, count = plan.windows_at_once, corners.shape[0]
    if isinstance(count, int):  # a symbolic one may be smaller, too
        n = min(n, count)
    chunks = -(-count // n)
    places = jnp.arange(chunks * n)
    weights = (places < count).astype(jnp.float32).reshape(chunks, n)
    corners = corners[jnp.minimum(places, count - 1)].reshape(chunks, n, 2)

    def cut(x: jax.Array, corner: jax.Array, depth: int) -> jax.Array:
        return lax.dynamic_slice(x, (0, *corner, 0), (b, *window, depth))

    def add_chunk(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        corners, weights = chunk
        # Windows of one image stay side by side, so that a sharded batch stays sharded.
        views = jnp.stack([cut(images, corners[i], 3) for i in range(n)], axis=1)
        logits, _ = model(views.reshape(b * n, *window, 3))
        logits = upsample(logits, model.stride, window).reshape(b, n, *window, -1)
        for i in range(n):
            patch = cut(total, corners[i], total.shape[-1]) + weights[i] * logits[:, i]
            total = lax.dynamic_update_slice(total, patch, (0, *corners[i], 0))
        return total, None

    total = jnp.zeros((b, *size, model.num_classes), jnp.float32)
    return lax.scan(add_chunk, total, (corners, weights))[0] / cover


def build(config: ConfigDict) -> Plan:
    """Builds the plan of `config.eval` (reads `model.context` and `model.heads`, too).

    Raises:
        InputError: names the field, its value and what it may be.
    """
    evaluation = config.eval
    registry.check(evaluation.average, AVERAGES, 'config.eval.average')
    try:
        rules = pruning_rules.parse(evaluation.pruning)
        heads = models.prunable_heads(config.model) if rules else ()
        if rules and not heads:
            raise ValueError(f'config.model.context={config.model.context!r} has no heads to prune')
        pruning_rules.assign(rules, heads)
    except ValueError as error:
        raise InputError(f'config.eval.pruning={evaluation.pruning!r}: {error}') from error
    try:
        return Plan(
            window=tuple(evaluation.window) or None,
            stride=tuple(evaluation.stride) or None,
            scales=tuple(evaluation.scales),
            flip=evaluation.flip,
            average=evaluation.average,
            pruning=rules,
            windows_at_once=evaluation.windows_at_once,
        )
    except (TypeError, ValueError) as error:
        raise InputError(f'config.eval: {error}') from error
