"""3x3 convolutions with four ninths of the multiplications (Winograd's minimal filtering).

F(2 x 2, 3 x 3) of Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016): two by
two outputs are sums of sixteen products of a transformed 4 x 4 patch of the input with the
transformed kernel, so that a layer is sixteen products of matrices. A dilated convolution is the
same on each residue class of the rows and columns. The gradient of the input is the convolution
with the flipped kernel, and that of the kernel has the same sixteen products (F(3 x 3, 2 x 2)).

XLA:CPU keeps the transformed input of the forward pass for the gradient of the kernel: four times
the memory of the input.

The transforms only add and halve, and the result is rounded about as that of a direct sum. A
value that is not finite reaches all four outputs of each patch that has it.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# What a transformed number costs, in multiply-adds of a product: timed on Zen 4 (AVX-512), jaxlib
# 0.10.2. Sixteen are made of four inputs, and four outputs of sixteen.
_TRANSFORM = 25
_GRADIENT_TRANSFORM = 40


class _Tiling(NamedTuple):
    """How a map is cut; `down` and `across` are numbers of tiles in each residue class."""

    height: int
    width: int
    down: int
    across: int
    dilation: int


def _tiling(height: int, width: int, dilation: int) -> _Tiling:
    across = 2 * dilation
    return _Tiling(height, width, -(-height // across), -(-width // across), dilation)


def cost(height: int, width: int, channels: int, features: int, dilation: int) -> float:
    """Time of the convolution relative to that of a direct one at the rate of products.

    Args:
        height: height of the maps.
        width: width of the maps.
        channels: number of channels of the input.
        features: number of channels of the output.
        dilation: distance between neighbouring taps of the kernel.
    """
    return _cost(height, width, channels, features, dilation, _TRANSFORM)


def _cost(
    height: int, width: int, channels: int, features: int, dilation: int, transform: int
) -> float:
    tiling = _tiling(height, width, dilation)
    tiles = tiling.down * tiling.across * dilation**2
    each = channels * features + transform * (channels + features)
    return 16 * tiles * each / (9 * height * width * channels * features)


def convolve(
    x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c features'], dilation: int
) -> Float[Array, 'b h w features']:
    """Convolves with `dilation` zeros around the map.

    Args:
        x: features.
        kernel: kernel.
        dilation: distance between neighbouring taps of the kernel.
    """
    return _convolve(dilation, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(dilation: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _apply(x, kernel, dilation)


def _forward(dilation: int, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return _apply(x, kernel, dilation), (x, kernel)


def _backward(dilation: int, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    dx = _apply(dy, kernel[::-1, ::-1], dilation, of_input=True)
    return dx, _kernel_gradient(x, dy, dilation)


_convolve.defvjp(_forward, _backward)


def _apply(x: jax.Array, kernel: jax.Array, dilation: int, *, of_input: bool = False) -> jax.Array:
    """The convolution; `of_input`: with channels and features of the kernel exchanged."""
    b, height, width, _ = x.shape
    tiling = _tiling(height, width, dilation)
    numbers = (((1,), (1 if of_input else 0,)), ((), ()))
    kernels = _transformed_kernel(kernel)
    products = [
        [lax.dot_general(patch, tap, numbers) for patch, tap in zip(*row)]
        for row in zip(_patches(x, tiling), kernels)
    ]
    features = products[0][0].shape[1]
    shape = (b, tiling.down, dilation, tiling.across, dilation, features)
    products = [[each.reshape(shape) for each in row] for row in products]
    columns = [_outputs(row) for row in products]  # of 4 rows, 2 columns
    y = jnp.stack(
        [jnp.stack(row, axis=4) for row in zip(*(_outputs(rows) for rows in zip(*columns)))],
        axis=2,
    )
    y = y.reshape(b, 2 * tiling.down * dilation, 2 * tiling.across * dilation, features)
    return y[:, :height, :width]


def _kernel_gradient(x: jax.Array, dy: jax.Array, dilation: int) -> jax.Array:
    """The gradient of the kernel."""
    _, height, width, features = dy.shape
    if _cost(height, width, x.shape[3], features, dilation, _GRADIENT_TRANSFORM) > 1:
        return _direct_kernel_gradient(x, dy, dilation)
    tiling = _tiling(height, width, dilation)
    # From the padded map that the gradient of the input is made of: XLA:CPU keeps it in memory,
    # and would compute dy itself, the gradient of a norm, say, anew for each of the sixteen.
    grid = _grid(dy, tiling)
    rows = _outputs_transposed([grid[:, :-1, 1], grid[:, 1:, 0]])
    gradients = [
        [
            each.reshape(-1, features)
            for each in _outputs_transposed([row[:, :, :, :-1, 1], row[:, :, :, 1:, 0]])
        ]
        for row in rows
    ]
    products = [
        [lax.dot_general(*pair, (((0,), (0,)), ((), ()))) for pair in zip(*row)]
        for row in zip(_patches(x, tiling), gradients)
    ]
    columns = [_taps_transposed(row) for row in products]  # of 4 rows, 3 columns
    return jnp.stack(
        [jnp.stack(row) for row in zip(*(_taps_transposed(rows) for rows in zip(*columns)))]
    )


def _direct_kernel_gradient(x: jax.Array, dy: jax.Array, dilation: int) -> jax.Array:
    def direct(kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            ((dilation, dilation),) * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )

    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), dy.dtype)
    (gradient,) = jax.linear_transpose(direct, kernel)(dy)
    return gradient


def _patches(x: jax.Array, tiling: _Tiling) -> list[list[jax.Array]]:
    """Transformed patches: 4 x 4 matrices of [tiles, channels]."""
    grid = _grid(x, tiling)
    down, across, channels = tiling.down, tiling.across, x.shape[3]
    rows = _inputs([grid[:, i // 2 : i // 2 + down, i % 2] for i in range(4)])
    return [
        [
            each.reshape(-1, channels)
            for each in _inputs([row[:, :, :, i // 2 : i // 2 + across, i % 2] for i in range(4)])
        ]
        for row in rows
    ]


def _grid(x: jax.Array, tiling: _Tiling) -> jax.Array:
    """Pairs of each residue class of the rows and columns, with `dilation` zeros around the map.

    Tile i reaches from the second of pair i to the first of pair i + 1, and so do its outputs; its
    patch has both of either pair.

    Returns:
        [b, down + 1, 2, dilation, across + 1, 2, dilation, c].
    """
    height, width, down, across, dilation = tiling
    rest = (2 * (down + 1) * dilation - height, 2 * (across + 1) * dilation - width)
    x = jnp.pad(x, ((0, 0), *((dilation, more - dilation) for more in rest), (0, 0)))
    return x.reshape(-1, down + 1, 2, dilation, across + 1, 2, dilation, x.shape[3])


def _transformed_kernel(kernel: jax.Array) -> list[list[jax.Array]]:
    columns = [_taps([kernel[i, j] for i in range(3)]) for j in range(3)]
    return [_taps([column[i] for column in columns]) for i in range(4)]


# The transforms of Lavin and Gray along one axis: B' of the inputs, G of the taps, A' of the
# products; and the transposed ones, which the gradient of the kernel needs.


def _inputs(x: Sequence[jax.Array]) -> list[jax.Array]:
    return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def _taps(k: Sequence[jax.Array]) -> list[jax.Array]:
    outer, inner = (k[0] + k[2]) / 2, k[1] / 2
    return [k[0], outer + inner, outer - inner, k[2]]


def _outputs(m: Sequence[jax.Array]) -> list[jax.Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _outputs_transposed(y: Sequence[jax.Array]) -> list[jax.Array]:
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _taps_transposed(m: Sequence[jax.Array]) -> list[jax.Array]:
    outer, inner = (m[1] + m[2]) / 2, (m[1] - m[2]) / 2
    return [m[0] + outer, inner, outer + m[3]]
