"""Equal blocks one after the other, where possible compiled once."""

from collections.abc import Callable

import jax
from flax import nnx

from ggcf_jax.attention import target
from ggcf_jax.models.layers.remat import Remat, run


class Repeated(nnx.Module):
    """`count` blocks of equal shape in sequence, as one `platform.scan`.

    The 23 blocks of ResNet-101's third stage take minutes to compile one by one. Parameters and
    batch statistics of the blocks are stacked on a leading axis.
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        count: int,
        *,
        remat: Remat = 'none',
        rngs: nnx.Rngs,
    ):
        """Args:
        make: builds one block; a block is called with (x, train) and returns the shape of x.
        count: number of blocks, at least 1.
        remat: see `remat.run`; of each block.
        """
        self.remat = remat
        graphdef = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]
        keys = jax.random.split(rngs.params(), count)
        stacked = jax.vmap(lambda key: nnx.state(make(nnx.Rngs(params=key))))(keys)
        self.blocks = nnx.merge(graphdef, stacked)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        graphdef, params, stats = nnx.split(self.blocks, nnx.Param, nnx.BatchStat)

        def apply(x, arrays):
            block = nnx.merge(graphdef, *arrays, copy=True)
            x = run(self.remat, block, x, train)
            return x, nnx.state(block, nnx.BatchStat)

        x, stats = target.scan(apply, x, (params, stats))
        if train:
            nnx.update(self.blocks, stats)
        return x
