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

from ggcf_jax.models.layers.kernel_gradient import Geometry, of_kernel
from ggcf_jax.models.layers.shares import of_own_images

# What a transformed number costs, in multiply-adds of a product: timed on Zen 4 (AVX-512), jaxlib
# 0.10.2. Sixteen are made of four inputs, and four outputs of sixteen.
_TRANSFORM = 25
_GRADIENT_TRANSFORM = 40


class _Axis(NamedTuple):
    """How an axis is cut: into tiles of two outputs of a residue class.

    Attributes:
        length: number of positions.
        most: number of tiles of the first residue class, which the last ones may have one less of.
        tiles: number of tiles of all classes, in the order of their first outputs.
    """

    length: int
    most: int
    tiles: int


class _Tiling(NamedTuple):
    """How a map is cut."""

    rows: _Axis
    columns: _Axis
    dilation: int

    @property
    def axes(self) -> tuple[_Axis, _Axis]:
        return self.rows, self.columns


def _tiling(height: int, width: int, dilation: int) -> _Tiling:
    return _Tiling(_axis(height, dilation), _axis(width, dilation), dilation)


def _axis(length: int, dilation: int) -> _Axis:
    full, rest = divmod(length, 2 * dilation)
    return _Axis(length, full + bool(rest), full * dilation + min(rest, dilation))


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
    tiles = tiling.rows.tiles * tiling.columns.tiles
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
    return dx, of_own_images(functools.partial(_kernel_gradient, dilation=dilation), x, dy)


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
    shape = (b, tiling.rows.tiles, tiling.columns.tiles, features)
    products = [[each.reshape(shape) for each in row] for row in products]
    columns = [_outputs(row) for row in products]  # of 4 rows, 2 columns
    rows = zip(*(_outputs(rows) for rows in zip(*columns)))
    return _positions([_positions(row, 2, tiling) for row in rows], 1, tiling)


def _kernel_gradient(x: jax.Array, dy: jax.Array, dilation: int) -> jax.Array:
    """The gradient of the kernel."""
    _, height, width, features = dy.shape
    if _cost(height, width, x.shape[3], features, dilation, _GRADIENT_TRANSFORM) > 1:
        return _direct_kernel_gradient(x, dy, dilation)
    tiling = _tiling(height, width, dilation)
    # From the padded map that the gradient of the input is made of: XLA:CPU keeps it in memory,
    # and would compute dy itself, the gradient of a norm, say, anew for each of the sixteen.
    grid = _grid(dy, tiling)
    rows = _outputs_transposed([_rows(grid, i, tiling) for i in (1, 2)])
    gradients = [
        [
            each.reshape(-1, features)
            for each in _outputs_transposed([_columns(row, j, tiling) for j in (1, 2)])
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
    both = (dilation, dilation)
    geometry = Geometry((1, 1), (both, both), None, both)
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), dy.dtype)
    (gradient,) = jax.linear_transpose(lambda kernel: of_kernel(x, kernel, geometry), kernel)(dy)
    return gradient


def _patches(x: jax.Array, tiling: _Tiling) -> list[list[jax.Array]]:
    """Transformed patches: 4 x 4 matrices of [tiles, channels]."""
    grid = _grid(x, tiling)
    rows = _inputs([_rows(grid, i, tiling) for i in range(4)])
    return [
        [
            each.reshape(-1, x.shape[3])
            for each in _inputs([_columns(row, j, tiling) for j in range(4)])
        ]
        for row in rows
    ]


def _grid(x: jax.Array, tiling: _Tiling) -> jax.Array:
    """Pairs of each residue class of the rows and columns, with `dilation` zeros around the map.

    Tile i reaches from the second of pair i to the first of pair i + 1, and so do its outputs; its
    patch has both of either pair.

    Returns:
        [b, most of the rows + 1, 2, dilation, most of the columns + 1, 2, dilation, c].
    """
    dilation = tiling.dilation
    pairs = [axis.most + 1 for axis in tiling.axes]
    border = [
        (dilation, (2 * count - 1) * dilation - axis.length)
        for count, axis in zip(pairs, tiling.axes)
    ]
    x = jnp.pad(x, ((0, 0), *border, (0, 0)))
    return x.reshape(-1, pairs[0], 2, dilation, pairs[1], 2, dilation, x.shape[3])


def _rows(grid: jax.Array, i: int, tiling: _Tiling) -> jax.Array:
    """Row i of the patches: [b, tiles of the rows, most of the columns + 1, 2, dilation, c]."""
    axis = tiling.rows
    rows = grid[:, i // 2 : i // 2 + axis.most, i % 2]
    return rows.reshape(rows.shape[0], -1, *rows.shape[3:])[:, : axis.tiles]


def _columns(rows: jax.Array, j: int, tiling: _Tiling) -> jax.Array:
    """Column j of the patches, of one of their `_rows`: [b, tiles of both, c]."""
    axis = tiling.columns
    columns = rows[:, :, j // 2 : j // 2 + axis.most, j % 2]
    return columns.reshape(*columns.shape[:2], -1, columns.shape[4])[:, :, : axis.tiles]


def _positions(outputs: Sequence[jax.Array], axis: int, tiling: _Tiling) -> jax.Array:
    """The first and second outputs of the tiles of an axis, at their positions."""
    length, most, tiles = tiling.axes[axis - 1]
    border = [(0, 0)] * outputs[0].ndim
    border[axis] = (0, most * tiling.dilation - tiles)
    before, behind = outputs[0].shape[:axis], outputs[0].shape[axis + 1 :]
    classes = [
        jnp.pad(each, border).reshape(*before, most, tiling.dilation, *behind) for each in outputs
    ]
    y = jnp.stack(classes, axis=axis + 1).reshape(*before, -1, *behind)
    return lax.slice_in_dim(y, 0, length, axis=axis)


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
