"""Sums over the images of a batch that each device computes of its own images.

The partitioner sums over devices where a product or a reduction has summed over images: each of
the parts that a gradient is put together from, instead of the gradient. A loop over the rows of all
images it does not divide at all: every device gets all maps and computes the whole sum.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import flatten_util, lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

_AXIS = 'data'
_Sums = TypeVar('_Sums')


def of_own_images(sums: Callable[..., _Sums], *maps: Float[Array, 'b ...']) -> _Sums:
    """Computes sums over images; under a mesh those of each device's images, then their sum.

    Args:
        sums: the maps of some images -> an array or a tree of arrays, each a sum over the images.
        maps: arrays whose first axis is that of the images.

    Returns:
        `sums(*maps)`. That is also how it is computed without a mesh axis `data` that JAX shards
        arrays over by itself, and where the images cannot be divided equally.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = dict(mesh.shape).get(_AXIS, 1) if _AXIS in mesh.auto_axes else 1
    if devices == 1 or maps[0].shape[0] % devices:
        return sums(*maps)

    def run(*own: jax.Array) -> _Sums:
        # As one array: XLA:CPU lets the devices meet for each.
        together, apart = flatten_util.ravel_pytree(sums(*own))
        return apart(lax.psum(together, _AXIS))

    return jax.shard_map(
        run,
        in_specs=(PartitionSpec(_AXIS),) * len(maps),
        out_specs=PartitionSpec(),
        # With those that divide nothing: then the program is that of one device, and no more is
        # left to the partitioner.
        axis_names={_AXIS} | {name for name in mesh.auto_axes if mesh.shape[name] == 1},
        check_vma=False,
    )(*maps)
