"""Memory of a device: what a compiled program needs, what was used, what there is."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import jax

from ggcf_jax.errors import InputError


def needed(compiled: jax.stages.Compiled) -> int | None:
    """Bytes that a program needs on each device, its arguments included; None if unknown."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def limit(devices: Sequence[jax.Device]) -> int:
    """Bytes of memory of one device; a CPU device has an equal part of the machine's.

    Args:
        devices: devices of this process that are used.
    """
    stats = devices[0].memory_stats()
    if stats and 'bytes_limit' in stats:
        return stats['bytes_limit']
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // len(devices)


def peak() -> int | None:
    """Most bytes that were in use at once on a device of this process; None on CPUs."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [each['peak_bytes_in_use'] for each in stats if each and 'peak_bytes_in_use' in each]
    return max(peaks, default=None)


def text(size: int) -> str:
    """A number of bytes in MiB or GiB."""
    return f'{size / 2**30:.2f} GiB' if size >= 2**30 else f'{size / 2**20:.1f} MiB'


@contextlib.contextmanager
def explained(work: str, cure: str) -> Iterator[None]:
    """Turns JAX's error of a device without memory into one for the user.

    Args:
        work: what needs the memory, such as 'the evaluation'.
        cure: fields to change.

    Raises:
        InputError: the memory of a device was not enough.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if 'RESOURCE_EXHAUSTED' not in message:
            raise
        raise InputError(
            f'{work} does not fit the memory of a device: {cure} ({message.splitlines()[0]:.300})'
        ) from error
