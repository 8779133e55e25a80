"""Trading memory of the backward pass for computation, one residual block at a time."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from ggcf_jax.models.layers.drop_path import Drop
from ggcf_jax.models.layers.extent import Extent

Remat = Literal['none', 'inplace_abn', 'block']

REMATS = ('none', 'inplace_abn', 'block')
_CONVOLUTION = 'convolution'
_STATISTICS = 'statistics'

_Result = TypeVar('_Result')

_Features = TypeVar('_Features')


def mark_convolution(x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    """Marks the output of a convolution or linear layer as one that 'inplace_abn' keeps.

    Returns it unchanged.
    """
    return checkpoint_name(x, _CONVOLUTION)


def mark_statistics(x: Float[Array, ' c']) -> Float[Array, ' c']:
    """Marks batch statistics as ones that 'inplace_abn' keeps; returns them unchanged."""
    return checkpoint_name(x, _STATISTICS)


def run(
    block: Callable[..., _Features],
    x: _Features,
    *,
    remat: Remat,
    train: bool,
    key: PRNGKeyArray | None = None,
    drop: Drop | None = None,
    extent: Extent | None = None,
) -> _Features:
    """Calls a block; its batch statistics are updated as without rematerialisation.

    Args:
        block: module that is called with (x, train=train, extent=extent), and with key=key and
            drop=drop if there are such.
        x: features that the block is applied to: a map, or a tree of arrays.
        remat: what the backward pass finds in memory. 'none': everything it needs. 'inplace_abn':
            the output of each convolution and linear layer of a block and batch statistics, from
            which norms and activations are computed again;
            synchronised InPlace-ABN (Rota Bulo et al., 2018) saves as much by inverting them.
            'block': the block's input only, from which the whole block is computed again.
        train: whether batch statistics are used and updated.
        key: random key for dropout, or of a stack of blocks with stochastic depth.
        drop: how often the block leaves out its branches.
        extent: extent of x; None where the maps are filled.
    """
    given = {name: x for name, x in (('key', key), ('drop', drop)) if x is not None}

    def call(block: Callable[..., _Features], x: _Features, given: Mapping[str, Any]) -> _Features:
        return block(x, train=train, extent=extent, **given)

    if remat == 'none' or not train or hasattr(block, 'remat'):  # Repeated does it by itself
        return call(block, x, given)
    graphdef, *state = nnx.split(block, nnx.Param, nnx.BatchStat)
    params, stats = state

    def apply(
        params: nnx.State, stats: nnx.State, x: _Features, given: Mapping[str, Any]
    ) -> tuple[_Features, nnx.State]:
        own = nnx.merge(graphdef, params, stats, copy=True)
        y = call(own, x, given)
        return y, nnx.state(own, nnx.BatchStat)

    y, stats = rematerialized(apply, remat)(params, stats, x, given)
    nnx.update(block, stats)
    return y


def rematerialized(function: Callable[..., _Result], remat: Remat) -> Callable[..., _Result]:
    """Returns a function of which the backward pass keeps what `run` says.

    Args:
        function: function of arrays in whose body convolutions and statistics are marked.
        remat: what is kept.
    """
    if remat == 'none':
        return function
    policy = None
    if remat == 'inplace_abn':
        policy = jax.checkpoint_policies.save_only_these_names(_CONVOLUTION, _STATISTICS)
    return jax.checkpoint(function, policy=policy)
