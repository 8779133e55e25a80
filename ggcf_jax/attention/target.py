"""The platform and the devices that a program is compiled for."""

import contextlib
import contextvars
import math
from collections.abc import Iterator

import jax

_traced_for: contextvars.ContextVar[str | None] = contextvars.ContextVar('platform', default=None)


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Traces for this platform inside: for a branch of `jax.lax.platform_dependent`."""
    token = _traced_for.set(platform)
    try:
        yield
    finally:
        _traced_for.reset(token)


def current() -> str:
    """The platform that is compiled for: 'cpu', 'gpu' or 'tpu'.

    That of `tracing_for`; else of the mesh in effect (`jax.set_mesh`), whose devices this machine
    need not have; else of JAX's default devices.
    """
    platform = _traced_for.get()
    if platform is not None:
        return platform
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def devices() -> int:
    """Number of devices over which the mesh in effect shards global arrays; 1 without a mesh.

    Axes that `jax.shard_map` has taken do not count: arrays are those of one device there.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(n for name, n in mesh.shape.items() if name not in mesh.manual_axes)
