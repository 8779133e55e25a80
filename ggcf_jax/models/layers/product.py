"""Products of matrices on CPUs, with a gradient of some kernels in a form of its own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ggcf_jax.models.layers.forms import convolutions_stay, in_memory

# With fewer input channels it takes as long to transpose them as is gained.
_CHANNELS = 128
_ALIASES = 256  # distances that are multiples of so many numbers have few lines of the caches


def product(
    x: Float[Array, 'm channels'], kernel: Float[Array, 'channels features'], precision: Any = None
) -> Float[Array, 'm features']:
    """x kernel, in float32 with an own gradient of the kernel where that pays (see `_backward`).

    To be called where `forms.for_cpu` holds.

    Args:
        x: rows of features.
        kernel: kernel of a linear layer or a 1x1 convolution.
        precision: precision of the products, see `jax.lax.Precision`.
    """
    pays = jax.sharding.get_abstract_mesh().size > 1 or _is_slow(kernel)
    if pays and x.dtype == kernel.dtype == jnp.float32 and not convolutions_stay():
        return _product(precision, x, kernel)
    return lax.dot(x, kernel, precision=precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(precision: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot(x, kernel, precision=precision)


def _forward(precision: Any, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return lax.dot(x, kernel, precision=precision), (x, kernel)


def _backward(precision: Any, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradient of the kernel is x^T dy.

    JAX's own is (dy^T x)^T. Devices would exchange dy^T x, and the optimizer would read it across
    its rows.
    """
    x, kernel = saved
    dx = lax.dot_general(dy, kernel, (((1,), (1,)), ((), ())), precision=precision)
    if _is_slow(kernel):
        # What x is computed of would be read, and x^T be written, at distances of the same lines of
        # the caches: 2.3 instead of 0.5 ms for 1024 rows of 512 channels on one core of a Xeon.
        x = in_memory(x) if x.shape[0] % _ALIASES == 0 else x
        return dx, lax.dot(lax.optimization_barrier(x.T), dy, precision=precision)
    return dx, lax.dot_general(x, dy, (((0,), (0,)), ((), ())), precision=precision)


def _is_slow(kernel: jax.Array) -> bool:
    """Whether the gradient of this kernel is computed with x^T in memory.

    XLA:CPU computes a product whose left operand is to be transposed by Eigen, at half of the rate
    of others where the rows of the right one lie at distances that map to few lines of the caches.
    With fewer features that takes no longer than to transpose x (docs/benchmark.md).
    """
    channels, features = kernel.shape
    return channels >= _CHANNELS and features % 512 == 0


_product.defvjp(_forward, _backward)
