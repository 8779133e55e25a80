"""Stochastic depth: residual branches that are left out at random while training.

Huang et al., 2016, arXiv:1603.09382, by image, and with what is left scaled so that the mean stays,
as `DropPath` of timm (timm/layers/drop.py).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drop:
    """How often a block leaves out its branches.

    Attributes:
        key: random key of the block.
        rate: probability, in [0, 1); an array of them for several blocks.
    """

    key: PRNGKeyArray
    rate: Float[Array, '*blocks']

    def split(self) -> tuple['Drop', ...]:
        """Returns one for each block of an array of rates."""
        keys = jax.random.split(self.key, len(self.rate))
        return tuple(Drop(key, rate) for key, rate in zip(keys, self.rate))

    def branches(self, count: int) -> tuple['Drop', ...]:
        """Returns one for each branch of a block, which are left out independently."""
        return tuple(Drop(key, self.rate) for key in jax.random.split(self.key, count))


def drop_path(x: Float[Array, 'b h w c'], drop: Drop | None) -> Float[Array, 'b h w c']:
    """Leaves the branch out for some images, and scales it by 1 / (1 - rate) for the others.

    Args:
        x: output of a residual branch.
        drop: how often; None where nothing is left out.
    """
    if drop is None:
        return x
    keep = 1 - drop.rate
    kept = jax.random.bernoulli(drop.key, keep, (x.shape[0], 1, 1, 1))
    return (x * jnp.where(kept, 1 / keep, 0)).astype(x.dtype)


def rates(last: float, depths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Returns the rate of each block of each stage, which rise linearly from 0 to that of the last.

    Args:
        last: rate of the last block.
        depths: number of blocks of each stage.
    """
    every = iter(np.linspace(0, last, sum(depths)).tolist())
    return tuple(tuple(next(every) for _ in range(depth)) for depth in depths)
