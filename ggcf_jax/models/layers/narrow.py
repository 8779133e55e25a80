"""Convolutions with few features, for CPUs: two neighbouring outputs of a row as one, or zeros.

XLA:CPU (YNNPACK) computes 32 features at a time. With half as many, two outputs of a row are one
with twice the features and a kernel that is wider by the stride: `kernel | kernel, shifted`. A
7x7 kernel of stride 2 then has 9 / 7 of the products, where zeros beside the features would make it
twice as many. Where that does not pay, zeros do: in gradients of kernels and for images.

Of an image the columns between two outputs are channels, 6 for stride 2: the array is the same, and
a kernel of 7 columns has four, with a column of zeros. YNNPACK takes less time for fewer taps of
more channels; with jax 0.12 half as much forward.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ggcf_jax.models.layers.kernel_gradient import Geometry, direct, of_kernel

_FEATURES = 32  # below, XLA:CPU leaves parts of its registers empty
_IMAGE = 3  # channels
_LARGE = 2**18  # multiply-adds of a tap and an image from which a convolution is worth it


def pays(x: Float[Array, 'b h w c'], kernel: Float[Array, 'kh kw c features']) -> bool:
    """Whether the convolution is faster in this form.

    Args:
        x: features.
        kernel: kernel.
    """
    _, h, w, c = x.shape
    features = kernel.shape[3]
    if c == _IMAGE:
        return features <= _FEATURES
    return features < _FEATURES and h * w * c * features >= _LARGE


def convolve(
    x: Float[Array, 'b h w c'], kernel: Float[Array, 'kh kw c features'], geometry: Geometry
) -> Float[Array, 'b _ _ features']:
    """Convolves; forward and backward pass are fast in different forms.

    Args:
        x: features.
        kernel: kernel, of at most 32 features.
        geometry: strides, padding and precision.
    """
    form = _of_image if x.shape[3] == _IMAGE else _of_features
    return form(geometry, x, kernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _of_image(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _apply(geometry, x, kernel)


@_of_image.defjvp
def _image_tangent(
    geometry: Geometry, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    tangent = _of_kernel(geometry, dx, kernel) + _of_kernel(geometry, x, dkernel)
    return _of_image(geometry, x, kernel), tangent


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_features(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _apply(geometry, x, kernel)


def _forward(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return _apply(geometry, x, kernel), (x, kernel)


def _backward(geometry: Geometry, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (dkernel,) = jax.linear_transpose(functools.partial(_of_kernel, geometry, x), kernel)(dy)
    return _input_gradient(geometry, x, kernel, dy), dkernel


_of_features.defvjp(_forward, _backward)


def _apply(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The forward pass: 24 features of 4 x 256 x 256 pixels, 7x7, in 3.5 ms instead of 57."""
    if x.shape[3] == _IMAGE and geometry.strides[1] > 1:
        features = kernel.shape[3]
        geometry, x, kernel = _columns_as_channels(geometry, x, kernel)
        if features > _FEATURES // 2:
            return direct(x, _widened(kernel, 3, _FEATURES), geometry)[..., :features]
    elif x.shape[3] == _IMAGE:
        x, kernel = _widened(x, 3, _IMAGE + 1), _widened(kernel, 2, _IMAGE + 1)
    if max(kernel.shape[2:]) <= _FEATURES // 2:
        return _pairs(geometry, x, kernel)
    return direct(x, kernel, geometry)


def _of_kernel(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The form whose gradient of the kernel is fast."""
    features = kernel.shape[3]
    across = geometry.strides[1]
    if x.shape[3] == _IMAGE and 1 < across < kernel.shape[1] / 2:  # else it takes longer
        geometry, x, kernel = _columns_as_channels(geometry, x, kernel)
    if features <= _FEATURES // 2:
        return _pairs(geometry, x, kernel, of_kernel)
    return of_kernel(x, _widened(kernel, 3, _FEATURES), geometry)[..., :features]


def _input_gradient(
    geometry: Geometry, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    kh, kw, *channels = kernel.shape
    if geometry.strides == (1, 1) and max(channels) <= _FEATURES // 2:
        (top, bottom), (left, right) = geometry.padding
        around = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        return _pairs(geometry._replace(padding=around), dy, flipped)
    (dx,) = jax.linear_transpose(lambda x: direct(x, kernel, geometry), x)(dy)
    return dx


def _pairs(
    geometry: Geometry,
    x: jax.Array,
    kernel: jax.Array,
    convolve: Callable[[jax.Array, jax.Array, Geometry], jax.Array] = direct,
) -> jax.Array:
    """The convolution, two outputs of a row at a time."""
    down, across = geometry.strides
    rows, (left, right) = geometry.padding
    b, _, w, _ = x.shape
    kw, features = kernel.shape[1], kernel.shape[3]
    width = (w + left + right - kw) // across + 1
    second = width % 2 * across  # zeros for the second output of the last pair
    wide = Geometry((down, 2 * across), (rows, (left, right + second)), geometry.precision)
    both = [
        jnp.pad(kernel, ((0, 0), border, (0, 0), (0, 0))) for border in ((0, across), (across, 0))
    ]
    y = convolve(x, jnp.concatenate(both, axis=3), wide)
    return y.reshape(b, y.shape[1], -1, features)[:, :, :width]


def _columns_as_channels(
    geometry: Geometry, x: jax.Array, kernel: jax.Array
) -> tuple[Geometry, jax.Array, jax.Array]:
    """The same convolution with as many columns in a position as its stride goes on."""
    down, across = geometry.strides
    rows, (left, right) = geometry.padding
    b, h, w, c = x.shape
    kh, kw, _, features = kernel.shape
    width, taps = (w + left + right - kw) // across + 1, -(-kw // across)
    columns = (width - 1 + taps) * across  # that are read, some by zeros of the kernel alone
    behind = max(0, columns - left - w)
    x = jnp.pad(x, ((0, 0), (0, 0), (left, behind), (0, 0)))[:, :, :columns]
    kernel = _widened(kernel, 1, taps * across)
    return (
        Geometry((down, 1), (rows, (0, 0)), geometry.precision),
        x.reshape(b, h, -1, across * c),
        kernel.reshape(kh, taps, across * c, features),
    )


def _widened(x: jax.Array, axis: int, size: int) -> jax.Array:
    """`x` with zeros behind an axis, up to a size."""
    border = [(0, 0)] * x.ndim
    border[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, border)
