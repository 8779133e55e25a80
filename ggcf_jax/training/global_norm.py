"""The norm of all gradients together."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ggcf_jax.attention import target


def global_norm(tree: optax.Updates) -> Float[Array, '']:
    """Computes the square root of the sum of all squares, as `optax.tree.norm`.

    Args:
        tree: arrays, such as gradients.
    """
    if target.current() != 'gpu':
        return optax.tree.norm(tree)
    # XLA:GPU sums every array in a kernel or two of its own. Two thirds of those of a network are
    # scales and biases, a few kilobytes each: here they are one array.
    leaves = jax.tree.leaves(tree)
    arrays = [x for x in leaves if x.ndim > 2]
    small = [x.ravel() for x in leaves if x.ndim <= 2]
    if small:
        arrays.append(jnp.concatenate(small))
    return optax.tree.norm(arrays)
