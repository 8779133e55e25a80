"""Bilinear interpolation: upsampling by the output stride, and to any size.

Feature i of a map is centred on pixel first + stride * i: `first` is 0 where convolutions are
centred (see `conv`), (stride - 1) / 2 where features are those of patches.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.forms import rewritten_for_cpu


def upsample(
    x: Float[Array, 'b h w c'],
    stride: int,
    size: tuple[int, int],
    extent: Extent | None = None,
    *,
    first: float = 0.0,
) -> Float[Array, 'b {size[0]} {size[1]} c']:
    """Upsamples features to every pixel.

    Pixel p reads position (p - first) / stride; before the first feature that one is repeated, past
    the last one the last. With first = 0 and sizes of the form stride * n + 1, such as the paper's
    769, this is interpolation with aligned corners; with first = (stride - 1) / 2 and multiples of
    the stride it is PyTorch's with align_corners=False. Only neighbours one apart are mixed, by
    slices, which partitions over devices without gathering the map.

    Args:
        x: features, h = ceil(size[0] / stride) and w = ceil(size[1] / stride).
        stride: pixels per position of the features.
        size: (height, width) of the output in pixels.
        extent: extent of x, whose last features are those repeated; None where the maps are filled.
        first: pixel that the first feature is centred on, in [0, stride).

    Returns:
        Interpolated features in the dtype of x.

    Raises:
        ValueError: features of another height or width, or a first pixel out of range.
    """
    if not 0 <= first < stride:
        raise ValueError(f'the first feature lies on pixel {first}, which is not in [0, {stride})')
    expected = tuple(-(-length // stride) for length in size)
    if x.shape[1:3] != expected:
        raise ValueError(
            f'features of {x.shape[1:3]} cannot be upsampled by {stride} to {tuple(size)}: '
            f'that needs {expected}'
        )
    heights, widths = (None, None) if extent is None else (extent.heights, extent.widths)
    if rewritten_for_cpu():
        # The classes before the columns in memory: what follows takes maxima and sums over them,
        # which are slow over a last axis of 19.
        x = jnp.swapaxes(x, 2, 3)
        x = _upsample_axis(x, 3, stride, widths, first)[..., : size[1]]
        x = _upsample_rows(x, stride, heights, first)[:, : size[0]]
        return jnp.swapaxes(x, 2, 3)
    x = _upsample_axis(x, 1, stride, heights, first)[:, : size[0]]
    return _upsample_axis(x, 2, stride, widths, first)[:, :, : size[1]]


def nearest_positions(
    pixels: Int[np.ndarray, '*n 2'], stride: int, size: tuple[int, int], first: float = 0.0
) -> Int32[np.ndarray, '*n 2']:
    """Finds the features nearest to pixels of an image.

    Args:
        pixels: row and column of each pixel.
        stride: pixels per position of the features.
        size: (height, width) of the image in pixels.
        first: pixel that the first feature is centred on.

    Returns:
        Row and column in the map of features.
    """
    last = [-(-length // stride) - 1 for length in size]
    nearest = np.floor((np.asarray(pixels) - first) / stride + 0.5)
    return np.clip(nearest, 0, last).astype(np.int32)


def pixels_of_positions(stride: int, length: int, first: float = 0.0) -> Int32[np.ndarray, ' n']:
    """Returns the pixel of an axis that each feature is centred on, rounded down.

    Args:
        stride: pixels per position of the features.
        length: number of pixels of the axis; the last features may lie beyond, on the last pixel.
        first: pixel that the first feature is centred on.
    """
    pixels = np.arange(-(-length // stride)) * stride + int(first)
    return np.minimum(pixels, length - 1).astype(np.int32)


def _upsample_axis(
    x: jax.Array, axis: int, stride: int, lengths: Int32[Array, ' b'] | None, first: float
) -> jax.Array:
    length = x.shape[axis]
    # Of the pixels of a cell, those before its feature mix it with the one before.
    weight = (jnp.arange(stride) - first) / stride
    weight = weight.astype(x.dtype).reshape((stride,) + (1,) * (x.ndim - axis - 1))
    neighbors = [(_following(x, axis, lengths), weight)]
    if first:
        neighbors = [
            (neighbors[0][0], jnp.maximum(weight, 0)),
            (_preceding(x, axis), jnp.maximum(-weight, 0)),
        ]
    y = jnp.expand_dims(x, axis + 1) * (1 - jnp.abs(weight))
    for neighbor, share in neighbors:
        y += jnp.expand_dims(neighbor, axis + 1) * share
    return y.reshape((*y.shape[:axis], length * stride, *y.shape[axis + 2 :]))


def _upsample_rows(
    x: Float[Array, 'b h c w'], stride: int, lengths: Int32[Array, ' b'] | None, first: float
) -> Float[Array, 'b h*{stride} c w']:
    """The rows of the map, which are the larger part of the work, as XLA:CPU computes them fast.

    It would write an array of weights as large as the output, twice, where weights differ by pixel:
    each pixel row of a cell is computed with a number of its own. Upsampling 2 x 32 x 32 x 19 by 8
    with the arg max takes 9 instead of 23 ms on one core (AVX-512), and with cross entropy and its
    gradient 8 instead of 24.
    """
    following, preceding = _following(x, 1, lengths), _preceding(x, 1) if first else x
    rows = []
    for pixel in range(stride):
        weight = abs(pixel - first) / stride
        neighbor = following if pixel > first else preceding
        rows.append(x * (1 - weight) + neighbor * weight if weight else x)
    y = jnp.stack(rows, 2)
    return y.reshape(y.shape[0], -1, *y.shape[3:])


def _following(x: jax.Array, axis: int, lengths: Int32[Array, ' b'] | None) -> jax.Array:
    """The next feature along an axis at each position, the last one itself at the end."""
    length = x.shape[axis]
    # Padded, not concatenated with the last one: concatenation would reshard the map.
    padding = [(0, int(i == axis)) for i in range(x.ndim)]
    following = jnp.pad(jax.lax.slice_in_dim(x, 1, length, axis=axis), padding)
    end = length if lengths is None else lengths.reshape((-1,) + (1,) * (x.ndim - 1))
    position = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return jnp.where(position == end - 1, x, following)


def _preceding(x: jax.Array, axis: int) -> jax.Array:
    """The feature before along an axis at each position, the first one itself at the start."""
    padding = [(int(i == axis), 0) for i in range(x.ndim)]
    preceding = jnp.pad(jax.lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis), padding)
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) == 0, x, preceding)


def resize(
    x: Float[Array, 'b h w c'],
    size: tuple[int, int],
    extent: Extent | None = None,
    resized: Extent | None = None,
) -> Float[Array, 'b {size[0]} {size[1]} c']:
    """Resizes maps to any size as OpenCV's INTER_LINEAR does, without smoothing.

    Pixel centres lie at p + 1/2; past the outermost centres the outermost value is repeated.

    Args:
        x: maps, such as class scores.
        size: (height, width) of the output.
        extent: extent of x in a padded batch; None where the maps are filled.
        resized: the size of each map in the output, inside `size`; given with `extent`.

    Returns:
        Resized maps in the dtype of x; x itself where it has that size.
    """
    if extent is not None:
        assert resized is not None, 'maps of an extent are resized to sizes of their own'
        x = _resize_each(x, 1, size[0], extent.heights, resized.heights)
        return _resize_each(x, 2, size[1], extent.widths, resized.widths)
    for axis, length in enumerate(size, start=1):
        if x.shape[axis] != length:
            x = _resize_axis(x, axis, length)
    return x


def _resize_axis(x: jax.Array, axis: int, length: int) -> jax.Array:
    last = x.shape[axis] - 1
    at = ((np.arange(length) + 0.5) * (x.shape[axis] / length) - 0.5).clip(0, last)
    below = np.floor(at).astype(np.int32)
    weight = jnp.asarray(at - below, x.dtype).reshape((-1,) + (1,) * (x.ndim - axis - 1))
    low, high = (jnp.take(x, i, axis) for i in (below, np.minimum(below + 1, last)))
    return low * (1 - weight) + high * weight


def _resize_each(
    x: jax.Array,
    axis: int,
    length: int,
    before: Int32[Array, ' b'],
    after: Int32[Array, ' b'],
) -> jax.Array:
    """`_resize_axis` from and to a length of each map's own.

    Positions are fractions of whole numbers, so that weights are exact: images are rounded to 8
    bits afterwards, and halves are frequent.
    """
    before, after = before[:, None], after[:, None]
    unit = 2 * after  # of the fractions
    at = (2 * jnp.arange(length, dtype=jnp.int32) + 1) * before - after
    at = at.clip(0, (before - 1) * unit)
    below, rest = at // unit, at % unit
    weight = (rest / unit).astype(x.dtype)
    weight = jnp.expand_dims(weight, [i for i in range(1, x.ndim) if i != axis])
    take = jax.vmap(lambda x, i: jnp.take(x, i, axis - 1, mode='clip'))
    low, high = (take(x, i) for i in (below, jnp.minimum(below + 1, before - 1)))
    return low * (1 - weight) + high * weight
