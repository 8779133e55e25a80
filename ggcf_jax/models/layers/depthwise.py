"""Convolutions of each channel by itself, in the form that the platform runs fast."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from ggcf_jax.models.layers.conv import HE_FAN_OUT
from ggcf_jax.models.layers.extent import Extent, zero_outside
from ggcf_jax.models.layers.forms import convolutions_stay, for_cpu
from ggcf_jax.models.layers.shares import of_own_images

_FEW = 3  # side of kernels whose taps are one fused sum on every platform
_ROWS = 4  # rows of the map that one step of the gradient of a kernel adds up, where they divide it


class Depthwise(nnx.Module):
    """A square convolution of each channel, output i being centred on input `stride * i`."""

    def __init__(
        self,
        features: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        use_bias: bool = False,
        kernel_init: nnx.Initializer = HE_FAN_OUT,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the kernel.

        Args:
            features: number of channels.
            kernel: side of the kernel, an odd number.
            stride: distance between the centres of neighbouring outputs.
            dilation: distance between neighbouring taps of the kernel.
            use_bias: whether a bias, 0 at first, is added.
            kernel_init: initializer of the kernel.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.kernel = nnx.Param(
            kernel_init(rngs.params(), (kernel, kernel, 1, features), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32)) if use_bias else nnx.data(None)
        self.stride = stride
        self.dilation = dilation
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, 'b h w features'], *, extent: Extent | None = None
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) features']:
        """Convolves each channel.

        Args:
            x: features.
            extent: extent of x; None where the maps are filled.
        """
        x = zero_outside(x, extent).astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        bias = None if self.bias is None else self.bias[...]
        return depthwise(x, kernel, bias, stride=self.stride, dilation=self.dilation)


def depthwise(
    x: Float[Array, 'b h w c'],
    kernel: Float[Array, 'k k 1 c'],
    bias: Float[Array, ' c'] | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) c']:
    """Convolves each channel with a kernel of an odd side, and zeros around the map.

    3x3 kernels are nine shifted products everywhere: gradients of grouped convolutions are slow in
    XLA on CPUs. Larger ones are grouped convolutions, except on CPUs.

    Args:
        x: features.
        kernel: kernel, in the dtype of x.
        bias: added to each position, in float32; None: nothing.
        stride: distance between the centres of neighbouring outputs.
        dilation: distance between neighbouring taps of the kernel.

    Returns:
        Convolved features in the dtype of x; sums are float32.
    """
    few = kernel.shape[0] <= _FEW
    if stride == 1 and for_cpu() and (few or not convolutions_stay()):
        start = jnp.zeros(x.shape[3], jnp.float32) if bias is None else bias
        return _of_cpu(x, kernel, start, dilation)
    if few:
        return _shifted(x, kernel, bias, stride, dilation)
    reach = dilation * (kernel.shape[0] // 2)
    y = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((reach, reach), (reach, reach)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=x.shape[3],
    )
    return y if bias is None else y + bias.astype(x.dtype)


def _shifted(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, stride: int, dilation: int
) -> jax.Array:
    """One product of the shifted map for each tap of the kernel.

    The sum starts with the bias. XLA:CPU computes a sum that is only added to something anew for
    each operation that reads the result: a norm, for one, does three times.
    """
    b, h, w, c = x.shape
    side, reach = kernel.shape[0], dilation * (kernel.shape[0] // 2)
    rows, columns = -(-h // stride), -(-w // stride)
    dtype = x.dtype
    x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    kernel = kernel.astype(jnp.float32)
    start = jnp.float32(0) if bias is None else bias.astype(jnp.float32)
    y = jnp.broadcast_to(start, (b, rows, columns, c))
    for i in range(side):
        for j in range(side):
            first = (0, i * dilation, j * dilation, 0)
            last = (b, first[1] + stride * (rows - 1) + 1, first[2] + stride * (columns - 1) + 1)
            shifted = lax.slice(x, first, (*last, c), (1, stride, stride, 1))
            y += shifted.astype(jnp.float32) * kernel[i, j, 0]
    return y.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _of_cpu(x: jax.Array, kernel: jax.Array, bias: jax.Array, dilation: int) -> jax.Array:
    """Of stride 1. A sum over positions is slow in XLA:CPU unless vectors of channels are added.

    The gradient of a 7x7 kernel, 64 x 64 x 96 on one Zen 4 core: 3.9 ms instead of 54 as 49 sums.
    A grouped convolution takes 28 ms forward and 99 with its backward pass, torch's 0.7 and 10.
    """
    return _shifted(x, kernel, bias, 1, dilation)


def _forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, dilation: int
) -> tuple[jax.Array, tuple]:
    return _of_cpu(x, kernel, bias, dilation), (x, kernel, bias)


def _backward(dilation: int, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel, bias = saved
    dx = _of_cpu(dy, kernel[::-1, ::-1], jnp.zeros_like(bias), dilation)
    side = kernel.shape[0]

    def sums(x: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _kernel_gradient(x, dy, side, dilation), dy.sum((0, 1, 2), jnp.float32)

    dkernel, dbias = of_own_images(sums, x, dy)
    return dx, dkernel.astype(kernel.dtype), dbias.astype(bias.dtype)


_of_cpu.defvjp(_forward, _backward)


def _kernel_gradient(x: jax.Array, dy: jax.Array, side: int, dilation: int) -> jax.Array:
    """Sums of x times dy, shifted by each tap: [side, side, 1, c] in float32.

    A step of the loop adds up several rows. Each is a slice of its own of the whole map: where
    several operations of a fusion read one slice, XLA:CPU loads its first index anew for each
    element, and LLVM does not form vectors (five times the time).
    """
    b, h, w, c = x.shape
    reach = dilation * (side // 2)
    x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    x = x.reshape(b * (h + 2 * reach), w + 2 * reach, c)
    dy = dy.reshape(b * h, w, c)
    taps = [dilation * i for i in range(side)]
    rows = math.gcd(h, _ROWS)

    def add(_: jax.Array, carry: tuple) -> tuple:
        """Adds the products of some rows of dy to sums over rows, [side, w, c] for each column."""
        row, top, sums = carry  # `top` is the row of x, with padding, that the first tap reads
        for i in range(rows):
            given = _rows(dy, row + i, 1, 0, w)
            seen = [_rows(x, top + i, 2 * reach + 1, j, w)[::dilation] for j in taps]
            sums = [total + own * given for own, total in zip(seen, sums, strict=True)]
        row += rows
        top += jnp.where(row % h == 0, jnp.uint32(rows + 2 * reach), jnp.uint32(rows))
        return row, top, sums

    start = jnp.uint32(0), jnp.uint32(0), [jnp.zeros((side, w, c), jnp.float32)] * side
    _, _, sums = lax.fori_loop(0, b * h // rows, add, start)
    return jnp.stack([total.sum(1) for total in sums], axis=1)[:, :, None]


def _rows(x: jax.Array, first: jax.Array, number: int, column: int, width: int) -> jax.Array:
    """Some rows of [rows, columns, c] from a column on, in float32."""
    starts = (first, jnp.uint32(column), jnp.uint32(0))
    return lax.dynamic_slice(x, starts, (number, width, x.shape[2])).astype(jnp.float32)
