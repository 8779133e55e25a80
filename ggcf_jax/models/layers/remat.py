"""Trading memory of the backward pass for computation, one residual block at a time."""

import functools
from typing import Literal

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

Remat = Literal['none', 'inplace_abn', 'block']

REMATS = ('none', 'inplace_abn', 'block')
_CONVOLUTION = 'convolution'


def mark_convolution(x: jax.Array) -> jax.Array:
    """Marks the output of a convolution as what 'inplace_abn' keeps."""
    return checkpoint_name(x, _CONVOLUTION)


def run(
    remat: Remat, block: nnx.Module, x: jax.Array, train: bool, key: jax.Array | None = None
) -> jax.Array:
    """Calls block(x, train[, key]); its batch statistics are updated as without rematerialisation.

    Args:
        remat: what the backward pass finds in memory. 'none': everything it needs. 'inplace_abn':
            of each convolution its output, and norms and activations are computed again from it,
            which is what synchronised InPlace-ABN (Rota Bulo et al., 2018) saves, without inverting
            them. 'block': the block's input only, and the whole block is computed again.
        block: called with (x, train), or (x, train, key) if there is a key.
    """
    inputs = (x,) if key is None else (x, key)

    def call(block: nnx.Module, x: jax.Array, *key: jax.Array) -> jax.Array:
        return block(x, train, *key)

    if remat == 'none' or not train or hasattr(block, 'remat'):  # Repeated does it by itself
        return call(block, *inputs)
    graphdef, params, stats = nnx.split(block, nnx.Param, nnx.BatchStat)
    policy = None
    if remat == 'inplace_abn':
        policy = jax.checkpoint_policies.save_only_these_names(_CONVOLUTION)

    @functools.partial(jax.checkpoint, policy=policy)
    def apply(params, stats, *inputs):
        own = nnx.merge(graphdef, params, stats, copy=True)
        y = call(own, *inputs)
        return y, nnx.state(own, nnx.BatchStat)

    y, stats = apply(params, stats, *inputs)
    nnx.update(block, stats)
    return y
