"""Arrays that are expensive to compute, cached in files so that an interrupted command resumes."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ggcf_jax import atomic

_KEY = 'key'


def load_or_compute(
    path: pathlib.Path, key: Mapping[str, Any], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns the named arrays cached at `path` under `key`, or computes and caches them.

    Args:
        path: .npz file to read or write; its folder is created.
        key: JSON values that determine the arrays. A file with another key, or one that cannot be
            read, is replaced.
        compute: function that computes the named arrays.
    """
    text = json.dumps(key, sort_keys=True)
    try:
        with np.load(path) as file:
            if str(file[_KEY]) == text:
                return {name: file[name] for name in file.files if name != _KEY}
    except Exception:  # NumPy and zipfile raise what they like for damaged files
        pass
    arrays = compute()
    with atomic.replacing(path) as temporary, temporary.open('wb') as file:
        content: dict[str, Any] = {**arrays, _KEY: np.array(text)}
        np.savez(file, **content)
    return arrays
