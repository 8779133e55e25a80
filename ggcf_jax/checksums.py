"""Checksums of arrays: what Orbax does not keep."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def checksums(tree: Any) -> jax.Array:
    """One position-dependent sum of the bits of every array: uint32 [number of arrays]."""

    def one(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
        bits = bits.astype(jnp.uint32).reshape(-1)
        # Odd weights: a change of any single element changes the sum.
        weights = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435761) | jnp.uint32(1)
        return jnp.sum(bits * weights, dtype=jnp.uint32)

    return jnp.stack([one(x) for x in jax.tree.leaves(tree)])
