"""Arrays that differ from device to device inside `jax.shard_map`.

With its default check_vma=True, `jax.shard_map` tracks over which of its mesh axes an array varies.
A loop's first carry has to vary as its later ones do, and the gradient of an array as the array.
Outside of `jax.shard_map` all functions here are the plain ones.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


def axes(*arrays: jax.Array) -> frozenset[str]:
    """Mesh axes over which any of the arrays varies."""
    found: frozenset[str] = frozenset()
    for x in arrays:
        found |= jax.typeof(x).manual_axis_type.varying
    return found


def match(x: jax.Array, *like: jax.Array) -> jax.Array:
    """The same array, marked as varying over the axes over which the arrays `like` do.

    Args:
      x: array that a loop starts with.
      like: arrays from which the loop computes its next one.
    """
    over = tuple(sorted(axes(*like) - axes(x)))
    return lax.pcast(x, over, to='varying') if over else x


def zeros(shape: Sequence[int], dtype: DTypeLike, *like: jax.Array) -> jax.Array:
    """Zeros that vary as the arrays `like` together do."""
    return match(jnp.zeros(shape, dtype), *like)


def gradient(x: jax.Array, primal: jax.Array) -> jax.Array:
    """The gradient of `primal`, summed over the axes on which devices share `primal`.

    Args:
      x: gradient as each device finds it.
      primal: array that it is the gradient of.
    """
    shared = tuple(sorted(axes(x) - axes(primal)))
    return lax.psum(x, shared) if shared else x
