"""The device mesh, and the shardings of arrays on it.

Axis `data` shards the images of a batch, axis `space` the rows of each image.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from ggcf_jax.data.pipeline import Shard
from ggcf_jax.errors import InputError


def make_mesh(devices: Sequence[jax.Device] | None = None, space: int = 1) -> Mesh:
    """Makes the mesh with axes `data` and `space`.

    Axes are of type Auto: with Explicit ones, jax.make_mesh's default, the reshapes of the heads
    would have to name shardings.

    Args:
        devices: devices of the mesh; None for all devices of all processes.
        space: number of devices that share the rows of an image; divides the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = (len(devices) // space, space)
    return jax.make_mesh(shape, ('data', 'space'), axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays [b, h, ...]: images over `data`, their rows over `space`."""
    return NamedSharding(mesh, PartitionSpec('data', 'space'))


def place(
    array: Shaped[np.ndarray, '*shape'], sharding: jax.sharding.Sharding
) -> Shaped[Array, '*shape']:
    """Makes a global array from a host array that every process has.

    Args:
        array: the whole array.
        sharding: sharding of the result.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def shard(mesh: Mesh) -> Shard:
    """Returns which shard of the global batches this process has to load.

    Processes whose devices hold rows of the same images load the same ones.

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


def global_batch(
    mesh: Mesh, batch: dict[str, Shaped[np.ndarray, 'local_b ...']]
) -> dict[str, Shaped[Array, 'b ...']]:
    """Joins the processes' shards of a batch into global arrays.

    Args:
        mesh: devices of the run.
        batch: this process's shard, arrays [b / number of shards, ...]; those of three axes and
            more have rows, which are sharded over `space`.
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


def fetch(
    mesh: Mesh, arrays: dict[str, Shaped[Array, '...']]
) -> dict[str, Shaped[np.ndarray, '...']]:
    """Copies whole global arrays to the host on every process; all processes must call it."""
    return jax.device_get(jax.jit(_identity, out_shardings=replicated(mesh))(arrays))


def _identity(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return arrays
