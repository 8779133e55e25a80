"""An allocator that suits the programs of XLA:CPU: it keeps memory, in huge pages."""

import os
import pathlib
import sys
from collections.abc import Sequence

from ggcf_jax.distributed import accelerator_builds

_VARIABLE = 'GLIBC_TUNABLES'
# Tunables, and the variable of old that says the same, if there is one.
_KEEPING = {
    'glibc.malloc.arena_max=1': 'MALLOC_ARENA_MAX',
    'glibc.malloc.mmap_max=0': 'MALLOC_MMAP_MAX_',
    f'glibc.malloc.trim_threshold={2**62}': 'MALLOC_TRIM_THRESHOLD_',
}
_HUGE_PAGES = {'glibc.malloc.hugetlb=1': ''}
_MODES = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def is_for_cpu(arguments: Sequence[str]) -> bool:
    """Whether a command will compute on the CPU, as far as can be said before JAX is imported.

    Args:
        arguments: the command line.
    """
    chosen = os.environ.get('JAX_PLATFORMS') == 'cpu' or '--platform=cpu' in arguments
    return chosen or not accelerator_builds.installed()


def keep() -> None:
    """Starts this program anew, as the same process, with an allocator that keeps memory.

    XLA:CPU allocates the buffers of a program anew at every call. By default glibc takes a block of
    more than 32 MiB from the system and gives it back at once, and the system clears its pages at
    every step: 76,000 pages of 4 KiB, a quarter of the processor time of a training step of
    `configs/street_scenes.py`, and more where other programs, or the host of a virtual machine,
    have taken them meanwhile. With these tunables all threads allocate from one heap, which grows
    to what the program needs at most at a time, and is kept until its end. (A thread's own heap, as
    they have by default, has no room for large blocks.) Where the system gives huge pages to
    programs that ask for them, it asks: they are cleared faster and found faster.

    glibc (malloc/malloc.c and manual/tunables.texi; huge pages from 2.35 on) reads tunables at the
    start of a process only. To be called first of all: what the program did before is done again.

    Returns where nothing is to be done: the environment says all of it, or something else, or it is
    another C library; and where the process is not this program's own, such as a notebook that
    runs it.
    """
    if not (_is_glibc() and _is_own_process()):
        return
    wanted = _KEEPING | (_HUGE_PAGES if _may_be_asked_for() else {})
    tunables = os.environ.get(_VARIABLE, '')
    missing = [
        tunable
        for tunable, variable in wanted.items()
        if tunable.partition('=')[0] not in tunables and variable not in os.environ
    ]
    if missing:
        os.environ[_VARIABLE] = ':'.join([tunables] * bool(tunables) + missing)
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
