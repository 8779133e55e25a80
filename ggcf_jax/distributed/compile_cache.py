"""Programs that were compiled once are read from a folder by later starts, `--compile_cache`.

JAX keeps them by what they compute, its version and the devices. In a bucket the hosts of a pod,
and those that replace them, share what one of them has compiled.
"""

import os
import sys

import jax

from ggcf_jax import buckets, places
from ggcf_jax.errors import InputError

VARIABLE = 'JAX_COMPILATION_CACHE_DIR'  # JAX's own, which holds where the flag is not given
DEFAULT = '~/.cache/ggcf_jax/compiled'
_FLAG = '--compile_cache'


def enable(folder: str | None) -> None:
    """Turns the cache on, before anything is compiled.

    Args:
        folder: folder or path in a bucket; '' for no cache; None for what the environment says, or
            else `DEFAULT`, if it can be written.

    Raises:
        InputError: the folder cannot be written.
    """
    if folder is None and VARIABLE in os.environ:
        if not buckets.is_bucket(os.environ[VARIABLE]):
            return
        folder = os.environ[VARIABLE]
    if folder == '':
        jax.config.update('jax_enable_compilation_cache', False)
        return
    try:
        path = places.expand(folder or DEFAULT, _FLAG)
        places.check_writable(path, _FLAG)
    except InputError as error:
        if folder is not None:
            raise
        print(f'warning: programs are not kept for the next start: {error}', file=sys.stderr)
        return
    jax.config.update('jax_compilation_cache_dir', str(path))
    if isinstance(path, buckets.BucketPath):
        # These are files that XLA itself writes, which knows no buckets.
        jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
