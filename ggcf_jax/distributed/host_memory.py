"""Huge pages for the memory of the programs of XLA:CPU."""

import os
import pathlib
import sys
from collections.abc import Sequence

from ggcf_jax.distributed import accelerator_builds

_VARIABLE = 'GLIBC_TUNABLES'
_TUNABLE = 'glibc.malloc.hugetlb'
_MODES = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def is_for_cpu(arguments: Sequence[str]) -> bool:
    """Whether a command will compute on the CPU, as far as can be said before JAX is imported.

    Args:
        arguments: the command line.
    """
    chosen = os.environ.get('JAX_PLATFORMS') == 'cpu' or '--platform=cpu' in arguments
    return chosen or not accelerator_builds.installed()


def use_huge_pages() -> None:
    """Starts this program anew, as the same process, with an allocator that asks for huge pages.

    XLA:CPU allocates the buffers of a program anew at every call. By default glibc takes a block of
    more than 32 MiB from the system and gives it back at once, and the system clears its pages at
    every step: 76,000 pages of 4 KiB, a quarter of the processor time of a training step of
    `configs/street_scenes.py`. Pages of 2 MiB are cleared faster and found faster.

    glibc (from 2.35 on, malloc/malloc.c and manual/tunables.texi) reads this tunable at the start
    of a process only. To be called first of all: what the program did before is done again.

    Returns where nothing is to be done: the allocator has been told, `GLIBC_TUNABLES` says
    something about huge pages itself, the system gives them unasked or never, or it is another C
    library; and where the process is not this program's own, such as a notebook that runs it.
    """
    tunables = os.environ.get(_VARIABLE, '')
    if _TUNABLE in tunables or not (_is_glibc() and _may_be_asked_for() and _is_own_process()):
        return
    os.environ[_VARIABLE] = f'{tunables}:{_TUNABLE}=1'.lstrip(':')
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_own_process() -> bool:
    """Whether the interpreter was started with this program: by its path, or by -m and its name."""
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    return bool(sys.executable) and bool(
        {sys.argv[0], getattr(spec, 'name', None)} & set(sys.orig_argv[1:])
    )


def _may_be_asked_for() -> bool:
    """Whether the system gives huge pages to programs that ask for them, and only to these."""
    try:
        return '[madvise]' in _MODES.read_text()
    except OSError:  # not Linux, or hidden in a container
        return False


def _is_glibc() -> bool:
    try:
        return (os.confstr('CS_GNU_LIBC_VERSION') or '').startswith('glibc')
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or another C library
        return False
