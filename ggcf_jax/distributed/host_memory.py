"""The allocator that the programs of XLA:CPU get their memory from."""

import ctypes.util
import os
import pathlib
import sys
from collections.abc import Sequence

from ggcf_jax.distributed import accelerator_builds

_PRELOAD = 'LD_PRELOAD'
_JEMALLOC = 'libjemalloc.so.2'
_OPTIONS = 'MALLOC_CONF'
# Huge pages, also for large blocks; one arena, for blocks that one thread takes and another gives
# back; no page goes back to the system; and a block may be cut out of a free one of up to 2^12
# times its size. By default it is 2^6: blocks that are given back side by side become a larger one,
# and the same blocks get new memory each time.
_KEEP = (
    'thp:always,oversize_threshold:0,narenas:1,dirty_decay_ms:-1,muzzy_decay_ms:-1,'
    'lg_extent_max_active_fit:12'
)
_TUNABLES = 'GLIBC_TUNABLES'
_HUGE_PAGES = 'glibc.malloc.hugetlb'
_MODES = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
_MAPS = pathlib.Path('/proc/self/maps')


def is_for_cpu(arguments: Sequence[str]) -> bool:
    """Whether a command will compute on the CPU, as far as can be said before JAX is imported.

    Args:
        arguments: the command line.
    """
    chosen = os.environ.get('JAX_PLATFORMS') == 'cpu' or '--platform=cpu' in arguments
    return chosen or not accelerator_builds.installed()


def choose_allocator() -> None:
    """Starts this program anew, as the same process, with an allocator that suits XLA:CPU.

    XLA:CPU allocates the buffers of a program anew at every call. By default glibc takes a block of
    more than 32 MiB from the system and gives it back at once, and the system clears its pages at
    every step: 76,000 pages of 4 KiB, a quarter of the processor time of a training step of
    `configs/street_scenes.py`. What helps, the first that there is:

    * jemalloc (from 5.2 on; https://jemalloc.net/jemalloc.3.html), told to keep what the program
      gives back. It has to be installed (`apt-get install libjemalloc2`).
    * Huge pages from glibc (from 2.35 on, malloc/malloc.c and manual/tunables.texi), which are
      cleared faster and found faster.

    Both read the environment at the start of a process only. To be called first of all: what the
    program did before is done again.

    Returns where nothing is to be done: an allocator has been chosen, by this function or by the
    user (`LD_PRELOAD`, `MALLOC_CONF`; `GLIBC_TUNABLES`, of huge pages), neither is to be had, or
    the process is not this program's own, such as a notebook that runs it.
    """
    if not _is_own_process():
        return
    variables = _variables()
    if variables:
        os.environ.update(variables)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def describe() -> str:
    """What this process gets its memory from, in words."""
    names = _loaded_allocators()
    if names:
        kept = names == [_JEMALLOC] and os.environ.get(_OPTIONS) == _KEEP
        return ' and '.join(names) + (', which keeps it' if kept else '')
    pages = 'with huge pages' if f'{_HUGE_PAGES}=1' in os.environ.get(_TUNABLES, '') else ''
    text = f"the C library's allocator {pages}".rstrip()
    if sys.platform != 'linux':
        return text
    return f'{text}; jemalloc is faster (docs/performance.md#on-a-cpu)'


def _variables() -> dict[str, str]:
    """What is to be in the environment that is not yet there."""
    preloaded, tunables = os.environ.get(_PRELOAD, ''), os.environ.get(_TUNABLES, '')
    if 'malloc' in preloaded or _OPTIONS in os.environ or _HUGE_PAGES in tunables:
        return {}
    library = None if 'glibc.malloc' in tunables else _find_jemalloc()
    if library:
        return {_PRELOAD: f'{library}:{preloaded}'.rstrip(':'), _OPTIONS: _KEEP}
    if _is_glibc() and _may_be_asked_for():
        return {_TUNABLES: f'{tunables}:{_HUGE_PAGES}=1'.lstrip(':')}
    return {}


def _find_jemalloc() -> str | None:
    """What names the library to the loader, if there is one: a path, or the name of a system's."""
    if sys.platform != 'linux':
        return None
    own = pathlib.Path(sys.prefix, 'lib', _JEMALLOC)  # of a conda environment
    if own.exists() and not {' ', ':'} & set(str(own)):  # which would end it in LD_PRELOAD
        return str(own)
    return _JEMALLOC if ctypes.util.find_library('jemalloc') == _JEMALLOC else None


def _loaded_allocators() -> list[str]:
    """File names of the preloaded allocators, without those that the loader could not load."""
    preloaded = os.environ.get(_PRELOAD, '').replace(':', ' ').split()
    names = [pathlib.Path(each).name for each in preloaded if 'malloc' in each]
    try:
        maps = _MAPS.read_text()
    except OSError:  # not Linux
        return []
    return [name for name in names if name in maps]


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
