"""Pooling that sees only the image: maxima of neighbourhoods, and the mean of a map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from ggcf_jax.models.layers.extent import Extent, replace_outside, strided, zero_outside
from ggcf_jax.models.layers.forms import for_cpu, in_memory


def max_pool(
    x: Float[Array, 'b h w c'], extent: Extent | None = None
) -> Float[Array, 'b ceil(h/2) ceil(w/2) c']:
    """3x3 max pooling of stride 2 whose output i is centred on input 2i, as PyTorch pads it.

    Args:
        x: features.
        extent: extent of x; None where the maps are filled.
    """
    x = replace_outside(x, extent, -jnp.inf)
    x = _max_pool(x)
    return zero_outside(x, strided(extent, 2))  # not the infinity of what saw nothing else


def mean(x: Float[Array, 'b h w c'], extent: Extent | None = None) -> Float[Array, 'b 1 1 c']:
    """Mean over the positions of each map.

    Args:
        x: features.
        extent: extent of x; None where the maps are filled.
    """
    if extent is None:
        return x.mean((1, 2), keepdims=True)
    mask = extent.mask(x.shape[1], x.shape[2])[..., None]
    return x.mean((1, 2), keepdims=True, where=mask)


def _max_pool(x: jax.Array) -> jax.Array:
    """Maxima of windows; XLA:CPU gets the maximum of nine arrays.

    There the gradient of a window is a loop over all positions: 41 ms instead of 3 for 4 x 128 x
    128 x 24 on one Zen 4 core. Values are equal, and the gradient goes to the same position, the
    first one of a window where several are largest.
    """
    if for_cpu():
        return _largest(x)
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


@jax.custom_jvp
def _largest(x: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, _entries(x))


@_largest.defjvp
def _largest_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    y = _largest(x)
    # JAX derives the tangent from the gradient, and the gradient from that again: it is fast.
    gradient = functools.partial(_gradient, _which(lax.stop_gradient(x)), dx.shape)
    (dy,) = jax.linear_transpose(gradient, y)(dx)
    return y, dy


def _entries(x: jax.Array) -> list[jax.Array]:
    """The entries of each window, row by row, as arrays of the shape of the output."""
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, h % 2), (1, w % 2), (0, 0)), constant_values=-jnp.inf)
    return [x[:, i : i + h : 2, j : j + w : 2] for i in range(3) for j in range(3)]


def _which(x: jax.Array) -> jax.Array:
    """Which entry of its window is the largest, the first of equal ones.

    An array of its own: four positions of the map read each element, and XLA:CPU would find it anew
    for each of them.
    """
    largest, *others = _entries(x)
    which = jnp.zeros(largest.shape, jnp.int8)
    for number, entry in enumerate(others, 1):
        which = jnp.where(entry > largest, jnp.int8(number), which)
        largest = jnp.maximum(largest, entry)
    return in_memory(which)


# Row (or column) of a window that an even and an odd position has there: in the window whose number
# is half the position's, and in the next one, where even positions are not.
_OWN_AND_NEXT = np.array([[1, 2], [-9, 0]], np.int8)


def _gradient(which: jax.Array, shape: tuple[int, int, int, int], dy: jax.Array) -> jax.Array:
    """The gradient of the map: each position collects from the four windows that it may be in.

    Args:
        which: entry of each window that is largest.
        shape: shape of the map.
        dy: gradient of the output.
    """
    b, h, w, c = shape
    _, rows, columns, _ = dy.shape
    which, dy = (jnp.pad(each, ((0, 0), (0, 1), (0, 1), (0, 0))) for each in (which, dy))
    dx: jax.Array | float = 0.0
    for i in range(2):
        for j in range(2):
            here = (slice(None), slice(i, i + rows), None, slice(j, j + columns), None)
            entry = 3 * _OWN_AND_NEXT[i, :, None] + _OWN_AND_NEXT[j]
            dx += jnp.where(which[here] == entry[:, None, :, None], dy[here], 0)
    return jnp.reshape(dx, (b, 2 * rows, 2 * columns, c))[:, :h, :w]
