"""The platform and the devices that a program is compiled for."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax

ONNX = 'onnx'  # its operators know no bits of numbers


class Device(NamedTuple):
    """A kind of device.

    Attributes:
      platform: 'cpu', 'gpu' or 'tpu'.
      compute_capability: that of an NVIDIA GPU, (9, 0) for an H100; None for other devices, and for
        a GPU that is not known, such as that of an exported program.
      kind: `jax.Device.device_kind` of a TPU, 'TPU v5 lite'; `ONNX`, with the platform 'cpu', for a
        program that becomes an ONNX file; '' for other devices, and for a TPU that is not known.
    """

    platform: str
    compute_capability: tuple[int, int] | None = None
    kind: str = ''


_traced_for: contextvars.ContextVar[Device | None] = contextvars.ContextVar('device', default=None)


@contextlib.contextmanager
def tracing_for(
    platform: str, compute_capability: tuple[int, int] | None = None, kind: str = ''
) -> Iterator[None]:
    """Traces for this device inside: for a branch of `jax.lax.platform_dependent`."""
    token = _traced_for.set(Device(platform, compute_capability, kind))
    try:
        yield
    finally:
        _traced_for.reset(token)


def current() -> str:
    """The platform that is compiled for: 'cpu', 'gpu' or 'tpu'.

    That of `tracing_for`; else of the mesh in effect (`jax.set_mesh`), whose devices this machine
    need not have; else of JAX's default devices.
    """
    traced = _traced_for.get()
    if traced is not None:
        return traced.platform
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def candidates() -> tuple[Device, ...]:
    """The kinds of devices that what is traced now may be compiled for.

    One where `current` knows it from `tracing_for` or a mesh. Else one for each platform that JAX
    has here, the default one first: where a program runs is decided when it is lowered.
    """
    traced = _traced_for.get()
    if traced is not None:
        return (traced,)
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return _here()
    kind = getattr(device, 'device_kind', '')
    same = [one for one in _local_devices(device.platform) if one.device_kind == kind]
    if same:
        return (of(same[0]),)
    return (Device(device.platform, kind=kind if device.platform == 'tpu' else ''),)


def of(device: jax.Device) -> Device:
    """The kind of a device."""
    kind = device.device_kind if device.platform == 'tpu' else ''
    return Device(device.platform, _capability(device), kind)


def kind() -> str:
    """`Device.kind` of the device that is compiled for."""
    return candidates()[0].kind


def is_onnx() -> bool:
    """Whether what is traced becomes an ONNX file."""
    traced = _traced_for.get()
    return traced is not None and traced.kind == ONNX


def devices() -> int:
    """Number of devices over which the mesh in effect shards global arrays; 1 without a mesh.

    Axes that `jax.shard_map` has taken do not count: arrays are those of one device there.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(n for name, n in mesh.shape.items() if name not in mesh.manual_axes)


def number(platform: str) -> int:
    """Number of devices of a platform that JAX has here, those of other processes among them."""
    try:
        return len(jax.devices(platform))
    except RuntimeError:  # JAX has no such platform here
        return 0


@functools.cache
def _here() -> tuple[Device, ...]:
    """One kind of device for each platform of this machine, the default one first."""
    default = jax.default_backend()
    platforms = [default, *(name for name in ('cpu', 'gpu', 'tpu') if name != default)]
    found = ((name, _local_devices(name)) for name in platforms)
    return tuple(of(devices[0]) for _, devices in found if devices)


def _local_devices(platform: str) -> list[jax.Device]:
    try:
        return jax.local_devices(backend=platform)
    except RuntimeError:  # JAX has no such platform here
        return []


def _capability(device: jax.Device) -> tuple[int, int] | None:
    """The compute capability of a device; None if it is no NVIDIA GPU."""
    text = str(getattr(device, 'compute_capability', ''))
    major, _, minor = text.partition('.')
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None
