"""Equal blocks one after the other, where possible compiled once."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray

from ggcf_jax.attention import target
from ggcf_jax.models.layers.drop_path import Drop
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.remat import Remat, run

_Carry = TypeVar('_Carry')
_Features = TypeVar('_Features')

# Name of the module that `Repeated` stacks: in the path of each of its arrays.
STACKED = 'blocks'


def scan(
    body: Callable[[_Carry, Any], tuple[_Carry, Any]], carry: _Carry, xs: Any
) -> tuple[_Carry, Any]:
    """`jax.lax.scan`, except that XLA:CPU gets the steps one after the other instead of a loop.

    XLA:CPU brings the axes of weight gradients into the order that its fast kernels need only in
    the entry computation of a program (xla/service/cpu/conv_canonicalization.cc): from inside a
    loop, even one that it unrolls, the gradient of a ResNet-50 (97 x 97, batch 2, two cores) took
    10.6 s instead of 0.62 s. On other platforms a loop saves minutes of compilation and costs
    nothing.

    Args:
        body: (carry, slice of `xs`) -> (carry, output of this step).
        carry: value passed to the first step.
        xs: pytree of arrays; step i gets element i of their leading axis.

    Returns:
        Carry after the last step, and the outputs of all steps stacked on a leading axis.
    """
    if target.current() != 'cpu':
        return jax.lax.scan(body, carry, xs)
    if jax.tree.leaves(xs)[0].shape[0] == 1:  # `unroll=True` leaves a loop of one step a loop
        carry, y = body(carry, jax.tree.map(lambda x: x[0], xs))
        return carry, jax.tree.map(lambda x: jnp.asarray(x)[None], y)
    return jax.lax.scan(body, carry, xs, unroll=True)


class Repeated(nnx.Module):
    """`count` blocks of equal shape in sequence, compiled as one loop (see `scan`).

    The 23 blocks of ResNet-101's third stage take minutes to compile one by one. Parameters and
    batch statistics of the blocks are stacked on a leading axis.

    Attributes:
        stride: 1, since the blocks keep the shape.
    """

    stride = 1

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        count: int,
        *,
        remat: Remat = 'none',
        drop_rates: Sequence[float] | Sequence[Sequence[float]] = (),
        convolutions: bool = True,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters of all blocks.

        Args:
            make: builds one block, which is called with (x, train=train, extent=extent) and keeps
                the shape of x.
            count: number of blocks, at least 1.
            remat: what the backward pass of each block keeps in memory, see `remat.run`.
            drop_rates: how often each block leaves out its branches while training; blocks are
                then called with drop=Drop(key, rate), with a key. An array of rates for a block
                that is several. () or zeros: never.
            convolutions: whether blocks have convolutions, so that CPUs get one after the other
                (see `scan`); False: a loop there, too.
            rngs: random streams; the blocks' parameters are drawn with one key of `params`.
        """
        self.remat = remat
        self.convolutions = convolutions
        self.drop_rates = tuple(
            rate if isinstance(rate, float) else tuple(rate) for rate in drop_rates
        )
        graphdef = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]
        keys = jax.random.split(rngs.params(), count)
        stacked = jax.vmap(lambda key: nnx.state(make(nnx.Rngs(params=key))))(keys)
        self.blocks = nnx.merge(graphdef, stacked)

    def __call__(
        self,
        x: _Features,
        *,
        train: bool,
        key: PRNGKeyArray | None = None,
        extent: Extent | None = None,
    ) -> _Features:
        """Applies the blocks in order.

        Args:
            x: features: a map, or a tree of arrays.
            train: whether batch statistics are used and updated, and branches left out.
            key: random key of the branches that are left out.
            extent: extent of x; None where the maps are filled.

        Returns:
            Features of the last block.

        Raises:
            ValueError: training with rates above 0 without a key.
        """
        drop = None
        if train and np.any(self.drop_rates):
            if key is None:
                raise ValueError('blocks that are left out at random need a key')
            drop = Drop(jax.random.split(key, len(self.drop_rates)), jnp.array(self.drop_rates))
        graphdef, *state = nnx.split(self.blocks, nnx.Param, nnx.BatchStat)

        def apply(
            x: _Features, own: tuple[tuple[nnx.State, ...], Drop | None]
        ) -> tuple[_Features, nnx.State]:
            arrays, drop = own
            block = nnx.merge(graphdef, *arrays, copy=True)
            x = run(block, x, remat=self.remat, train=train, drop=drop, extent=extent)
            return x, nnx.state(block, nnx.BatchStat)

        loop = scan if self.convolutions else jax.lax.scan
        x, stats = loop(apply, x, (tuple(state), drop))
        if train:
            nnx.update(self.blocks, stats)
        return x
