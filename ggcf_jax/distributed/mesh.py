"""The devices as one mesh, and how arrays lie on it.

Axis `data` deals the images of a batch, axis `space` the rows of each image.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ggcf_jax.data.pipeline import Shard
from ggcf_jax.errors import InputError


def make_mesh(devices: Sequence[jax.Device] | None = None, space: int = 1) -> Mesh:
    """All devices, or the given ones, on the axes `data` and `space`.

    Auto axes: with jax.make_mesh's Explicit ones the heads' reshapes would have to name shardings.

    Args:
        space: number of devices over which the rows of an image are dealt; divides their number.
    """
    devices = jax.devices() if devices is None else devices
    shape = (len(devices) // space, space)
    return jax.make_mesh(shape, ('data', 'space'), axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Images dealt over `data`, their rows over `space`: for arrays [b, h, ...]."""
    return NamedSharding(mesh, PartitionSpec('data', 'space'))


def place(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """A host array that every process has, as a global one."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def shard(mesh: Mesh) -> Shard:
    """Which share of the global batches this process has to read.

    Processes that hold rows of the same images read the same ones.

    Raises:
        InputError: the processes' images overlap without being the same.
    """
    images: dict[int, set[int]] = {}
    for i, row in enumerate(mesh.devices):
        for device in row:
            images.setdefault(device.process_index, set()).add(i)
    shares = sorted({tuple(sorted(share)) for share in images.values()})
    if sum(map(len, shares)) != len(mesh.devices) or len({len(share) for share in shares}) != 1:
        raise InputError(
            f'config.mesh.space={mesh.shape["space"]} does not fit '
            f'{jax.local_device_count()} devices in each process: one number must be a multiple of '
            'the other'
        )
    return Shard(shares.index(tuple(sorted(images[jax.process_index()]))), len(shares))


def global_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Joins this process's arrays [b / shares, ...] into global ones [b, ...].

    Those of three axes and more have rows, which are dealt over `space`.
    """
    count = shard(mesh).count
    joined = {}
    for name, value in batch.items():
        sharding = by_batch(mesh)
        if value.ndim < 3:
            sharding = NamedSharding(mesh, PartitionSpec('data'))
        shape = (value.shape[0] * count, *value.shape[1:])
        joined[name] = jax.make_array_from_process_local_data(sharding, value, shape)
    return joined


def fetch(mesh: Mesh, arrays: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Global arrays as whole host arrays on every process; all processes must call it."""
    return jax.device_get(jax.jit(_same, out_shardings=replicated(mesh))(arrays))


def _same(arrays):
    return arrays
