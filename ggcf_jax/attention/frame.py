"""The frame of an image in a padded map: the smallest rectangle that holds its valid positions.

Graphs that know where the map ends take the border of the frame for that of the map, so that an
image gives what it gives alone, wherever in the map it lies.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Int32


class Frame(NamedTuple):
    """Where an image begins and ends, in positions of the map; or the images of a batch do.

    Attributes:
      first: first row and first column, int32 [] or [b] each.
      end: row below its last and column behind its last; 0 where nothing is valid.
    """

    first: tuple[ArrayLike, ArrayLike]
    end: tuple[ArrayLike, ArrayLike]


def of(valid: Bool[Array, '*b h w']) -> Frame:
    """The frames of some maps.

    Args:
      valid: which positions belong to the image; any of them, not a rectangle alone.
    """
    rows, columns = (ends(valid.any(axis)) for axis in (-1, -2))
    return Frame((rows[0], columns[0]), (rows[1], columns[1]))


def mask(valid: Bool[Array, 'b h w']) -> Bool[Array, 'b h w']:
    """Which positions lie in the frame of their map.

    Args:
      valid: which positions belong to the image.
    """
    rows, columns = (_between(*ends(valid.any(axis)), valid.shape[3 - axis]) for axis in (2, 1))
    return rows[:, :, None] & columns[:, None, :]


def ends(seen: Bool[Array, '*b n']) -> tuple[Int32[Array, '*b'], Int32[Array, '*b']]:
    """First position of an axis at which there is something, and that behind the last, or 0.

    Args:
      seen: whether there is something at each position.
    """
    n = seen.shape[-1]
    first = jnp.argmax(seen, -1).astype(jnp.int32)
    behind = jnp.argmax(seen[..., ::-1], -1).astype(jnp.int32)
    return first, jnp.where(seen.any(-1), n - behind, 0)


def _between(first: jax.Array, end: jax.Array, n: int) -> jax.Array:
    """Which positions of an axis lie in [first, end): bool [b, n]."""
    at = jnp.arange(n)
    return (at >= first[:, None]) & (at < end[:, None])
