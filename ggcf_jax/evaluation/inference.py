"""Class scores of images: sliding windows, several scales, mirror images, pruned heads."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, UInt8
from ml_collections import ConfigDict

from ggcf_jax import models, registry
from ggcf_jax.errors import InputError
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.resize import resize
from ggcf_jax.models.segmenter import Segmenter

AVERAGES = ('probabilities', 'logits')


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the class scores of an image are computed.

    The image is resized by each scale (as in training: bilinear, no smoothing) and, if `flip`,
    mirrored as well. Each of these views goes through the network whole or in windows, whose
    logits are averaged where they overlap, and is resized back to the size of the image; the
    scores are the mean over the views (mmseg, openseg). An image and its mirror image go through
    the network together, as one batch: one part of the program, compiled once, for both.

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
        windows_at_once: number of windows of each image, and with `flip` of its mirror image, that
            go through the network together: memory grows with it, the scores stay the same up to
            rounding.

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
    def num_views(self) -> int:
        """Number of views whose scores are averaged."""
        return len(self.scales) * (1 + self.flip)

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


# One view of the whole image: logits and probabilities of it rank alike.
SINGLE = Plan(average='logits')


def scores(
    model: Segmenter,
    images: UInt8[Array, 'b h w 3'],
    plan: Plan,
    extent: Extent | None = None,
) -> Float[Array, 'b h w classes']:
    """The scores of each class at each pixel; to be compiled with `jax.jit`, `plan` static.

    Args:
        model: network.
        images: RGB.
        plan: how the scores are computed.
        extent: how far the images of a padded batch reach: each is resized, mirrored and cut into
            windows as if it were alone. None where they are filled.

    Returns:
        Probabilities, or logits if the plan averages those, float32. The most probable class is
        `argmax(-1)`. Outside of the extent they are arbitrary.

    Raises:
        ValueError: a pruning rule for a kind of head that the model does not have.
    """
    total: Any = 0.0
    for scale in plan.scales:
        total += of_scale(model, images, plan, scale, extent)
    return total / plan.num_views


def of_scale(
    model: Segmenter,
    images: UInt8[Array, 'b h w 3'],
    plan: Plan,
    scale: float,
    extent: Extent | None = None,
) -> Float[Array, 'b h w classes']:
    """The scores of one scale's views, added: of all scales they are `plan.num_views` scores.

    Args:
        model: network.
        images: RGB.
        plan: how the scores are computed.
        scale: one of `plan.scales`.
        extent: as for `scores`.

    Returns:
        float32 scores of the image, and of its mirror image if the plan has one, added.

    Raises:
        ValueError: a pruning rule for a kind of head that the model does not have.
    """
    model = pruning_rules.pruned(model, plan.pruning)
    both = lambda extent: jax.tree.map(lambda x: _interleaved(x, x), extent)  # noqa: E731
    view, own = _resized(images, scale, extent)
    extents = extent
    if plan.flip:
        mirrored, _ = _resized(_mirrored(images, extent), scale, extent)
        view, own, extents = _interleaved(view, mirrored), both(own), both(extent)
    logits = _logits(model, view, plan, own)
    if scale != 1:
        logits = resize(logits, (images.shape[1], images.shape[2]), own, extents)
    # The softmax of a mirror image is the mirror image of the softmax.
    found = jax.nn.softmax(logits) if plan.average == 'probabilities' else logits
    if plan.flip:
        pairs = found.reshape(-1, 2, *found.shape[1:])
        found = pairs[:, 0] + _mirrored(pairs[:, 1], extent)
    return found


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
    count = _count_windows(length, window, stride)
    return jnp.minimum(jnp.arange(count, dtype=jnp.int32) * stride, length - window)


def _count_windows(length: int, window: int, stride: int) -> int:
    return -(-(length - window) // stride) + 1


class _Axis(NamedTuple):
    """Windows along an axis, of all images or, with a leading axis b, of each one.

    Attributes:
        starts: first pixel of each window [windows] or [b, windows].
        used: which of them an image has, as many as if it were alone; None where all are.
    """

    starts: jax.Array
    used: jax.Array | None

    def cover(self, length: int, window: int) -> jax.Array:
        """Number of windows that each pixel lies in, float32 [length] or [b, length]."""
        first, at = self.starts[..., None], jnp.arange(length)
        inside = (first <= at) & (at < first + window)
        if self.used is not None:
            inside &= self.used[..., None]
        return inside.sum(-2, dtype=jnp.float32)


def _axis(length: int, window: int, stride: int, lengths: jax.Array | None) -> _Axis:
    """The windows along an axis of padded images, whose own lengths may be given.

    Args:
        length: number of pixels along the padded axis, at least `window`.
        window: number of pixels of a window; an image that is smaller does not fill its only one.
        stride: number of pixels from one window to the next.
        lengths: number of pixels of each image; None where they are filled.
    """
    if lengths is None:
        return _Axis(window_starts(length, window, stride), None)
    last = jnp.maximum(lengths - window, 0)[:, None]
    planned = jnp.arange(_count_windows(length, window, stride), dtype=jnp.int32) * stride
    return _Axis(jnp.minimum(planned, last), planned < last + stride)


def _in_chunks(rows: _Axis, columns: _Axis, n: int) -> tuple[jax.Array, jax.Array]:
    """Deals the windows to chunks of n; the last one is filled up with windows of weight zero.

    Args:
        rows: windows along the rows.
        columns: windows along the columns.
        n: number of windows that go through the network together.

    Returns:
        Corners [chunks, n, 2] or [chunks, n, b, 2], and their weights, to be multiplied with logits
        [b, h, w, c]: [chunks, n] or [chunks, n, b, 1, 1, 1].
    """
    batch = rows.starts.shape[:-1]
    pairs = jnp.broadcast_arrays(rows.starts[..., :, None], columns.starts[..., None, :])
    count = rows.starts.shape[-1] * columns.starts.shape[-1]
    corners = jnp.stack(pairs, axis=-1).reshape(*batch, count, 2)
    if isinstance(count, int):  # a symbolic one may be smaller, too
        n = min(n, count)
    chunks = -(-count // n)
    places = jnp.arange(chunks * n)
    weights = places < count
    places = jnp.minimum(places, count - 1)
    corners = jnp.moveaxis(corners[..., places, :], -2, 0).reshape(chunks, n, *batch, 2)
    if rows.used is None or columns.used is None:
        return corners, weights.astype(jnp.float32).reshape(chunks, n)
    used = (rows.used[:, :, None] & columns.used[:, None, :]).reshape(*batch, count)
    weights = weights[:, None] & used[:, places].T
    return corners, weights.astype(jnp.float32).reshape(chunks, n, *batch, 1, 1, 1)


def _cut(x: jax.Array, corner: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Windows [b, *size, c] of maps, at one corner [2] or at one of each map [b, 2]."""
    if corner.ndim == 1:
        return lax.dynamic_slice(x, (0, *corner, 0), (x.shape[0], *size, x.shape[-1]))
    each = functools.partial(lax.dynamic_slice, slice_sizes=(*size, x.shape[-1]))
    return jax.vmap(lambda x, corner: each(x, (*corner, 0)))(x, corner)


def _put(x: jax.Array, corner: jax.Array, windows: jax.Array) -> jax.Array:
    """Maps in which the windows of `_cut` are replaced."""
    if corner.ndim == 1:
        return lax.dynamic_update_slice(x, windows, (0, *corner, 0))
    return jax.vmap(lambda x, corner, y: lax.dynamic_update_slice(x, y, (*corner, 0)))(
        x, corner, windows
    )


def _interleaved(x: jax.Array, y: jax.Array) -> jax.Array:
    """Two batches as one: both of an image side by side, so that a sharded batch stays sharded."""
    return jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])


def _mirrored(x: jax.Array, extent: Extent | None) -> jax.Array:
    """Mirrors maps [b, h, w, c] left to right, each inside its own width."""
    if extent is None:
        return x[:, :, ::-1]
    columns, widths = jnp.arange(x.shape[2]), extent.widths[:, None]
    source = jnp.where(columns < widths, widths - 1 - columns, columns)
    return jax.vmap(lambda x, source: jnp.take(x, source, 1, mode='clip'))(x, source)


def _resized(
    images: jax.Array, scale: float, extent: Extent | None
) -> tuple[jax.Array, Extent | None]:
    """Resizes images of 8-bit numbers by a factor; sides are rounded and at least one pixel.

    Returns:
        The images and their extent.
    """
    if scale == 1:
        return images, extent
    # Rounded on the host for every side that there may be: float32 would round some otherwise.
    rows, columns = (
        np.array([max(1, round(scale * side)) for side in range(longest + 1)], np.int32)
        for longest in images.shape[1:3]
    )
    own = extent
    if extent is not None:
        own = Extent(jnp.asarray(rows)[extent.heights], jnp.asarray(columns)[extent.widths])
    size = (int(rows[-1]), int(columns[-1]))
    resized = resize(images.astype(jnp.float32), size, extent, own)
    return jnp.round(resized).astype(images.dtype), own


def _logits(model: Segmenter, images: jax.Array, plan: Plan, extent: Extent | None) -> jax.Array:
    """Logits at every pixel, float32 [b, h, w, C], averaged over the windows if there are any."""
    b, *size = images.shape[:3]
    height, width = size if plan.window is None else map(min, plan.window, size)
    window = (height, width)

    def of_windows(views: jax.Array, own: Extent | None) -> jax.Array:
        logits, _ = model(views, extent=own)
        return model.upsample(logits, window, own)

    if window == tuple(size):
        return of_windows(images, extent)
    heights, widths = (None, None) if extent is None else (extent.heights, extent.widths)
    rows = _axis(size[0], height, plan.steps[0], heights)
    columns = _axis(size[1], width, plan.steps[1], widths)
    corners, weights = _in_chunks(rows, columns, plan.windows_at_once)
    n = corners.shape[1]
    own = None
    if extent is not None:
        own = Extent(jnp.minimum(extent.heights, height), jnp.minimum(extent.widths, width))
        own = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (b, n)).reshape(b * n), own)

    def add_chunk(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        corners, weights = chunk
        # Windows of one image stay side by side, so that a sharded batch stays sharded.
        views = jnp.stack([_cut(images, corners[i], window) for i in range(n)], axis=1)
        logits = of_windows(views.reshape(b * n, *window, 3), own).reshape(b, n, *window, -1)
        for i in range(n):
            patch = _cut(total, corners[i], window) + weights[i] * logits[:, i]
            total = _put(total, corners[i], patch)
        return total, None

    total = jnp.zeros((b, *size, model.num_classes), jnp.float32)
    total, _ = lax.scan(add_chunk, total, (corners, weights))
    # A pixel is covered by (windows that cover its row) x (windows that cover its column).
    down, across = rows.cover(size[0], height), columns.cover(size[1], width)
    cover = down[..., :, None, None] * across[..., None, :, None]
    return total / (cover if extent is None else jnp.maximum(cover, 1))


def of_training(config: ConfigDict) -> Plan:
    """Builds the plan of evaluations during training: one view, in windows if there are any.

    Args:
        config: configuration of the run; `eval.window`, `eval.stride` and `eval.windows_at_once`
            are read.

    Raises:
        InputError: names the field of `config.eval`, its value and what it may be.
    """
    asked = build(config)
    return dataclasses.replace(
        SINGLE,
        window=asked.window,
        stride=asked.stride,
        windows_at_once=asked.windows_at_once,
    )


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
