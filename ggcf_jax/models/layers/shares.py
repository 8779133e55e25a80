"""What each device computes of its own images: sums over the images of a batch, and maps of them.

The partitioner sums over devices where a product or a reduction has summed over images: each of
the parts that a gradient is put together from, instead of the gradient. A loop over the rows of all
images it does not divide at all: every device gets all maps and computes the whole sum.
"""

from collections.abc import Callable
from typing import Any, TypeVar

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
    if own_images(maps[0]) == maps[0].shape[0]:
        return sums(*maps)

    def run(*own: jax.Array) -> _Sums:
        # As one array: XLA:CPU lets the devices meet for each.
        together, apart = flatten_util.ravel_pytree(sums(*own))
        return apart(lax.psum(together, _AXIS))

    return _by_device(run, (PartitionSpec(_AXIS),) * len(maps), PartitionSpec())(*maps)


def of_each_image(
    f: Callable[[jax.Array, jax.Array], jax.Array],
    x: Float[Array, 'b ...'],
    parameter: Float[Array, '...'],
) -> Float[Array, 'b ...']:
    """Applies a function to maps; under a mesh each device to its own ones.

    The gradient of the parameter is a sum over the images, see `of_own_images`.

    Args:
        f: maps of some images (`own_images`) and the parameter -> a map for each image.
        x: array whose first axis is that of the images.
        parameter: array that all images share.
    """
    if own_images(x) == x.shape[0]:
        return f(x, parameter)
    images = PartitionSpec(_AXIS)
    return _by_device(f, (images, PartitionSpec()), images)(x, parameter)


def own_images(x: Float[Array, 'b ...']) -> int:
    """Number of images that a device has of its own.

    All are where there is no mesh axis `data` that JAX shards arrays over by itself, and where they
    cannot be divided equally.

    Args:
        x: array whose first axis is that of the images.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = dict(mesh.shape).get(_AXIS, 1) if _AXIS in mesh.auto_axes else 1
    return x.shape[0] if x.shape[0] % devices else x.shape[0] // devices


def _by_device(
    f: Callable[..., Any], in_specs: tuple[PartitionSpec, ...], out_specs: PartitionSpec
) -> Callable[..., Any]:
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(
        f,
        in_specs=in_specs,
        out_specs=out_specs,
        # With those that divide nothing: then the program is that of one device, and no more is
        # left to the partitioner.
        axis_names={_AXIS} | {name for name in mesh.auto_axes if mesh.shape[name] == 1},
        check_vma=False,
    )
