"""Convolutions whose gradient of the kernel is summed up on CPUs part by part of the map.

XLA:CPU (YNNPACK) seems to read the gradient of all outputs anew for each few numbers of that of a
kernel: on one core of a Xeon it computes three times as fast where that fits into the second cache
of the core. 7x7 of stride 2 from 2 x 257 x 257 pixels to 64 features takes 15 ms, in parts 6.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ggcf_jax.models.layers.shares import of_each_image, own_images

_AXES = ('NHWC', 'HWIO', 'NHWC')
_PART = 2**17  # numbers of the gradient of the output in a part: half a MiB
_WHOLE = 5 * 2**16  # up to which parts gain nothing
_MOST = 32  # parts: each is an operation that is compiled


class Geometry(NamedTuple):
    """Where the taps of a convolution lie.

    Attributes:
        strides: distances between neighbouring outputs, down and across.
        padding: zeros (before, after) the rows and the columns.
        precision: precision of the products, see `jax.lax.Precision`.
        dilation: distances between neighbouring taps, down and across.
    """

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    precision: lax.PrecisionLike
    dilation: tuple[int, int] = (1, 1)


def convolve(
    x: Float[Array, 'b h w c'], kernel: Float[Array, 'kh kw c features'], geometry: Geometry
) -> Float[Array, 'b _ _ features']:
    """Convolves, in the form whose gradients are fast.

    Args:
        x: features.
        kernel: kernel.
        geometry: strides, padding, precision and dilation.
    """
    return _convolve(geometry, x, kernel)


def direct(
    x: Float[Array, 'b h w c'], kernel: Float[Array, 'kh kw c features'], geometry: Geometry
) -> Float[Array, 'b _ _ features']:
    """Convolves by XLA's operation.

    Args:
        x: features.
        kernel: kernel.
        geometry: strides, padding, precision and dilation.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_AXES,
        precision=geometry.precision,
    )


def of_kernel(
    x: Float[Array, 'b h w c'], kernel: Float[Array, 'kh kw c features'], geometry: Geometry
) -> Float[Array, 'b _ _ features']:
    """Convolves, in the form whose gradient of the kernel is fast; nothing else about it is.

    Args:
        x: features.
        kernel: kernel.
        geometry: strides, padding, precision and dilation.
    """
    shape = jax.eval_shape(functools.partial(direct, geometry=geometry), x, kernel).shape
    _, rows, columns, features = shape
    images = own_images(x)
    images_a_part, rows_a_part = _part(images, rows, columns * features)
    is_coarse = kernel.dtype.itemsize < 4  # the sums of the parts would be rounded, too
    if (images_a_part, rows_a_part) == (images, rows) or is_coarse:
        return direct(x, kernel, geometry)
    x = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))  # the operation's own padding is slower
    inside = geometry._replace(padding=((0, 0), (0, 0)))
    down, reach = geometry.strides[0], (kernel.shape[0] - 1) * geometry.dilation[0] + 1

    def part(x: jax.Array, kernel: jax.Array, first: int) -> jax.Array:
        last = min(first + rows_a_part, rows) - 1
        return direct(x[:, first * down : last * down + reach], kernel, inside)

    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        batches = [x[i : i + images_a_part] for i in range(0, images, images_a_part)]
        firsts = range(0, rows, rows_a_part)
        maps = [jnp.concatenate([part(x, kernel, i) for i in firsts], axis=1) for x in batches]
        return jnp.concatenate(maps)

    return of_each_image(run, x, kernel)


def _part(images: int, rows: int, row: int) -> tuple[int, int]:
    """Number of images and of rows in a part of the gradient of the output.

    Args:
        images: number of images.
        rows: number of rows of an output.
        row: number of numbers in a row.
    """
    image = rows * row
    if images * image <= _WHOLE:
        return images, rows
    if images > _MOST or 2 * image <= _PART:
        return max(-(-images // _MOST), _PART // image), rows
    parts = min(math.ceil(image / _PART), max(1, _MOST // images), rows)
    return 1, math.ceil(rows / parts)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _convolve(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return direct(x, kernel, geometry)


@_convolve.defjvp
def _tangent(geometry: Geometry, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    tangent = direct(dx, kernel, geometry) + of_kernel(x, dkernel, geometry)
    return _convolve(geometry, x, kernel), tangent
