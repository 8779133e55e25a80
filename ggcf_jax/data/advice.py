"""What makes the input pipeline faster on the machine at hand."""

import os

from ml_collections import ConfigDict

# Decoding threads that keep one process busy: Python's share of the augmentation holds its lock.
_THREADS = 4


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def faster(data: ConfigDict, cores: int) -> str:
    """Says what to change where the input pipeline is slower than the training step.

    Args:
        data: `config.data`.
        cores: number of processor cores that the processes may use.
    """
    parts = []
    if data.storage != 'compact':
        parts.append("config.data.storage='compact' makes a copy that decodes faster")
    if not data.cache_mib:
        parts.append('config.data.cache_mib keeps decoded images in memory, where they fit')
    if cores > data.threads * max(data.workers, 1):
        parts.append(
            f'{cores} cores are there: raise config.data.threads={data.threads} to {cores}'
            if not data.workers and cores <= _THREADS
            else f'{cores} cores are there for config.data.threads={data.threads} and '
            f'config.data.workers={data.workers}: try config.data.threads={_THREADS} and '
            f'config.data.workers={max(cores // _THREADS, 1)}'
        )
    elif not data.workers and cores >= 2 * _THREADS:
        parts.append(
            f'{cores} cores are there, but the threads share one process: try '
            f'config.data.threads={_THREADS} and config.data.workers={cores // _THREADS}'
        )
    else:
        busy = 'one core is' if cores == 1 else f'all {cores} cores are'
        parts.append(
            f'{busy} in use, so that more threads or workers do not help; fewer augmentations '
            '(config.data.photometric, config.data.max_class_share) or smaller image files do'
        )
    return '; '.join(parts)
