"""Finding a data set, backbone or context module by its name.

A module that offers some says so in a plain dict (`DATASETS`, `BACKBONES` or `CONTEXTS`: name ->
builder). Adding one is adding a file with such a dict; nothing else has to be edited.
"""

import importlib
import pkgutil
import types
from collections.abc import Iterable
from typing import Any

from ggcf_jax.errors import InputError


def find(package: types.ModuleType, table: str, name: str, field: str) -> Any:
    """Returns the entry called `name` among all dicts called `table` in the modules of `package`.

    Raises:
        InputError: no module offers `name`; the message names `field` and what there is.
    """
    entries = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f'{package.__name__}.{info.name}')
        entries.update(getattr(module, table, {}))
    if name not in entries:
        raise InputError(f'{field}={name!r} is not one of {", ".join(sorted(entries))}')
    return entries[name]


def check(value: Any, choices: Iterable, field: str) -> None:
    """Refuses a value of the configuration that is not among `choices`.

    Raises:
        InputError: names `field`, the value and the choices.
    """
    if value not in choices:
        raise InputError(f'{field}={value!r} is not one of {", ".join(map(str, choices))}')
