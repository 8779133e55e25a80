"""Memory of the programs of XLA:CPU, kept by the process from one step to the next."""

import ctypes
import os
from collections.abc import Sequence

from ggcf_jax.distributed import accelerator_builds

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_ARENA_MAX = -8


def is_for_cpu(arguments: Sequence[str]) -> bool:
    """Whether a command will compute on the CPU, as far as can be said before JAX is imported.

    Args:
        arguments: the command line.
    """
    chosen = os.environ.get('JAX_PLATFORMS') == 'cpu' or '--platform=cpu' in arguments
    return chosen or not accelerator_builds.installed()


def keep_pages() -> bool:
    """Tells glibc's allocator not to return large blocks to the system when they are freed.

    XLA:CPU allocates the buffers of a program anew at every call. By default glibc takes a block of
    more than 32 MiB from the system and gives it back at once, so that the system has to clear each
    of its pages at every step: a quarter of the processor time of a training step of
    `configs/street_scenes.py`. Kept blocks come from the one heap that may grow beyond 64 MiB, the
    main arena. The process holds the most memory that it ever needed until it ends.

    To be called before the process has threads: each begins with an arena of its own, and keeps it.

    A variable MALLOC_... or GLIBC_TUNABLES in the environment says that the user has chosen, and
    other C libraries than glibc have no such parameters: nothing is done then.

    Returns:
        Whether the allocator was told.
    """
    chosen = any(name.startswith('MALLOC_') for name in os.environ)
    if chosen or 'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', '') or not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # -1 as a threshold: never trim. mallopt returns 1 where it has accepted the value.
    values = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in values])


def _is_glibc() -> bool:
    try:
        return (os.confstr('CS_GNU_LIBC_VERSION') or '').startswith('glibc')
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or another C library
        return False
