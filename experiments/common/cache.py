"""Arrays that take long, kept in a file: a command that is started again goes on where it was."""

import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from ggcf_jax import atomic

_KEY = 'key'


def arrays(
    path: pathlib.Path, key: Mapping, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What `compute` gives, read from `path` where it was kept under the same key.

    Args:
        path: of an .npz file; its folder is made.
        key: everything that decides the arrays, of what JSON knows. A file with another key, or
            one that cannot be read, is replaced.
        compute: gives named arrays.
    """
    text = json.dumps(key, sort_keys=True)
    try:
        with np.load(path) as file:
            if str(file[_KEY]) == text:
                return {name: file[name] for name in file.files if name != _KEY}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    found = compute()
    with atomic.replacing(path) as temporary, temporary.open('wb') as file:
        np.savez(file, **found, **{_KEY: np.array(text)})
    return found
