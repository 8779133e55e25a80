"""`conv_general_dilated` in the form that the platform runs fast; values are equal up to rounding.

Elsewhere it is `jax.lax.conv_general_dilated` as it is. The other forms are for XLA:CPU of jaxlib
0.10 (its YNNPACK kernels), timed on one Zen 4 core beside torch's channels-last layers
(docs/benchmark.md).
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ggcf_jax.attention import target
from ggcf_jax.models.layers import kernel_gradient, narrow, overlaps, winograd
from ggcf_jax.models.layers.forms import convolutions_stay, for_cpu
from ggcf_jax.models.layers.kernel_gradient import Geometry
from ggcf_jax.models.layers.product import product

_AXES = ('NHWC', 'HWIO', 'NHWC')
_SMALL = 2**20  # multiply-adds of a tap: sixteen products compile longer than they save below
_PAYS = 0.9  # of the time of XLA's convolution


def conv_general_dilated(
    x: Float[Array, 'b h w c'],
    kernel: Float[Array, 'kh kw c/groups features'],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int,
    precision: Any,
    out_sharding: Any = None,
) -> Float[Array, 'b _ _ features']:
    """Convolves; takes the arguments with which `nnx.Conv` calls `jax.lax.conv_general_dilated`.

    A 1x1 convolution is a product of matrices. Its weight gradient is two to three times faster on
    CPUs; XLA:TPU would fold rows of a small batch into the batch of a convolution, and pad, slice
    and copy the map before and after it. On CPUs convolutions with few features fill the registers
    (`narrow`), up to ten times faster, and 3x3 convolutions of stride 1 take fewer multiplications
    (`winograd`, `overlaps`) where that pays; gradients of kernels are summed up part by part of
    the map (`kernel_gradient`).

    Args:
        x: features.
        kernel: kernel.
        strides: distances between neighbouring outputs, down and across.
        padding: zeros (before, after) the rows and the columns.
        lhs_dilation: distances between neighbouring inputs.
        rhs_dilation: distances between neighbouring taps of the kernel.
        dimension_numbers: order of the axes.
        feature_group_count: number of groups of channels.
        precision: precision of the products, see `jax.lax.Precision`.
        out_sharding: sharding of the result on a mesh with Explicit axes.
    """
    plain = (
        set(lhs_dilation) == {1}
        and feature_group_count == 1
        and out_sharding is None
        and dimension_numbers == lax.conv_dimension_numbers(x.shape, kernel.shape, _AXES)
    )
    pointwise = plain and kernel.shape[:2] == (1, 1) and not any(map(any, padding))
    if pointwise and target.current() == 'tpu':
        down, across = strides
        return jnp.matmul(x[:, ::down, ::across], kernel[0, 0], precision=precision)
    if plain and for_cpu():
        if pointwise:
            down, across = strides
            x = x[:, ::down, ::across]
            b, h, w, c = x.shape  # as one matrix: a product over three axes transposes its operands
            y = product(x.reshape(b * h * w, c), kernel[0, 0], precision)
            return y.reshape(b, h, w, -1)
        form = _products(x, kernel, strides, padding, rhs_dilation, precision)
        if form is not None:
            return form.convolve(x, kernel, rhs_dilation[0])
        if not convolutions_stay():
            (down, across), (between_rows, between_columns) = strides, rhs_dilation
            rows, columns = ((before, after) for before, after in padding)
            geometry = Geometry(
                (down, across), (rows, columns), precision, (between_rows, between_columns)
            )
            if set(rhs_dilation) == {1} and narrow.pays(x, kernel):
                return narrow.convolve(x, kernel, geometry)
            return kernel_gradient.convolve(x, kernel, geometry)
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
        out_sharding=out_sharding,
    )


def _products(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    rhs_dilation: Sequence[int],
    precision: Any,
) -> ModuleType | None:
    """The module that computes a 3x3 convolution by products of matrices; None: it would not pay.

    XLA's own convolution reaches the rate of products: what pays are fewer multiplications.
    """
    dilation = rhs_dilation[0]
    fits = (
        kernel.shape[:2] == (3, 3)
        and set(strides) == {1}
        and tuple(rhs_dilation) == (dilation, dilation)
        and all(tuple(border) == (dilation, dilation) for border in padding)
        and x.dtype == kernel.dtype == jnp.float32
        and precision is None
        and not convolutions_stay()
    )
    if not fits:
        return None
    _, h, w, c = x.shape
    features = kernel.shape[3]
    if h * w * c * features < _SMALL:
        return None
    costs = {
        winograd: winograd.cost(h, w, c, features, dilation),
        overlaps: overlaps.cost(h, w, features, dilation),
    }
    best = min(costs, key=lambda form: costs[form])
    return best if costs[best] < _PAYS else None
