"""The layouts in which the engines' loops carry maps.

Maps are carried with the axes of heads and channels merged: XLA gives an axis of length one, that
of a single head, an odd place in the layout of an array that has just been reshaped, and copies the
whole map before a loop to move it. Dense attention takes maps as rows of positions.
"""

import jax
import jax.numpy as jnp


def merge_heads(x: jax.Array) -> jax.Array:
    """[b, h, w, heads, c] -> [b, h, w, heads * c]."""
    return x.reshape(*x.shape[:3], -1)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[..., heads * c] -> [..., heads, c]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def as_rows(x: jax.Array) -> jax.Array:
    """[b, h, w, heads, c] -> [b, heads, h * w, c]."""
    b, h, w, heads, c = x.shape
    return jnp.swapaxes(x.reshape(b, h * w, heads, c), 1, 2)


def as_map(x: jax.Array, h: int, w: int) -> jax.Array:
    """[b, heads, h * w, c] -> [b, h, w, heads, c]."""
    b, heads, _, c = x.shape
    return jnp.swapaxes(x, 1, 2).reshape(b, h, w, heads, c)


def sums_as_map(x: jax.Array, h: int, w: int) -> jax.Array:
    """[b, heads, h * w, 1] -> [b, h, w, heads]."""
    return as_map(x, h, w)[..., 0]


def valid_as_rows(valid: jax.Array | None) -> jax.Array | None:
    """[b, h, w] -> [b, 1, h * w, 1]; None stays."""
    return None if valid is None else valid.reshape(valid.shape[0], 1, -1, 1)


def columns_first(x: jax.Array) -> jax.Array:
    """[b, h, w, heads, c] -> [w, b, heads, h, c]."""
    return x.transpose(2, 0, 3, 1, 4)
