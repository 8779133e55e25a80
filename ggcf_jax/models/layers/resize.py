"""Bilinear interpolation: upsampling by the output stride, and to any size."""

import jax
import jax.numpy as jnp
import numpy as np


def upsample(x: jax.Array, stride: int, size: tuple[int, int]) -> jax.Array:
    """Upsamples features that lie on multiples of `stride` to every pixel.

    Feature i belongs to pixel `stride * i` (see `conv`), so pixel p reads position p / stride;
    past the last feature the last one is repeated. For sizes of the form stride * n + 1, such as
    the paper's 769, this is interpolation with aligned corners. Only neighbours one apart are
    mixed, by slices, which partitions over devices without gathering the map.

    Args:
        x: [b, ceil(size[0] / stride), ceil(size[1] / stride), c].
        size: (height, width) of the output.

    Returns:
        [b, *size, c] in the dtype of x.
    """
    expected = tuple(-(-length // stride) for length in size)
    if x.shape[1:3] != expected:
        raise ValueError(
            f'features of {x.shape[1:3]} cannot be upsampled by {stride} to {tuple(size)}: '
            f'that needs {expected}'
        )
    x = _upsample_axis(x, 1, stride)[:, : size[0]]
    return _upsample_axis(x, 2, stride)[:, :, : size[1]]


def nearest_positions(pixels: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """The features that lie nearest to pixels of an image, feature i being at `stride * i`.

    Args:
        pixels: integers [..., 2], row and column.
        size: (height, width) of the image.

    Returns:
        int32 [..., 2], row and column in the map of features.
    """
    last = [-(-length // stride) - 1 for length in size]
    return np.minimum((np.asarray(pixels) + stride // 2) // stride, last).astype(np.int32)


def _upsample_axis(x: jax.Array, axis: int, stride: int) -> jax.Array:
    length = x.shape[axis]
    # Padded, not concatenated with the last one: concatenation deals the map over devices anew.
    padding = [(0, int(i == axis)) for i in range(x.ndim)]
    following = jnp.pad(jax.lax.slice_in_dim(x, 1, length, axis=axis), padding)
    last = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) == length - 1
    following = jnp.where(last, x, following)
    x, following = (jnp.expand_dims(a, axis + 1) for a in (x, following))
    weight = jnp.arange(stride, dtype=x.dtype) / stride
    weight = weight.reshape((stride,) + (1,) * (x.ndim - axis - 2))
    y = x * (1 - weight) + following * weight
    return y.reshape((*y.shape[:axis], length * stride, *y.shape[axis + 2 :]))


def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes maps to any size as OpenCV's INTER_LINEAR does, without smoothing.

    Pixel centres lie at p + 1/2; past the outermost centres the outermost value is repeated.

    Args:
        x: floating point [b, h, w, c].
        size: (height, width) of the output.

    Returns:
        [b, *size, c] in the dtype of x; x itself where it has that size.
    """
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
