"""Looks up a data set, backbone, context module, loss, ... by its name in the configuration.

What this package offers is in plain dictionaries, name -> builder: one in each module of a folder
(`BACKBONES` in every file of `models/backbones/`; adding a backbone is adding a file), or a single
one (`METRICS`). Code outside this repository is named `my_package.my_module:attribute` instead.
"""

import importlib
import pkgutil
import types
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ggcf_jax.errors import InputError

_T = TypeVar('_T')


def find(package: types.ModuleType, table: str, name: str, field: str) -> Any:
    """Returns the entry `name` of the dictionaries called `table` in the modules of a package.

    Modules are imported until one offers the name, those after which it is called first
    (`resnet` for 'resnet101').

    Args:
        package: folder whose modules are searched.
        table: name of the dictionary that a module may define, such as 'BACKBONES'.
        name: key in one of these dictionaries, or `my_package.my_module:attribute`.
        field: field of the configuration that holds the name, for error messages.

    Raises:
        InputError: no module offers `name`, or it cannot be imported.
    """
    if ':' in name:
        return _import(name, field)
    modules = [info.name for info in pkgutil.iter_modules(package.__path__)]
    known: dict[str, Any] = {}
    for module in sorted(modules, key=lambda module: not name.startswith(module)):
        known |= getattr(importlib.import_module(f'{package.__name__}.{module}'), table, {})
        if name in known:
            return known[name]
    raise _unknown(name, known, field)


def pick(table: Mapping[str, _T], name: str, field: str) -> _T:
    """Returns the entry `name` of a dictionary, or the object `my_package.my_module:attribute`.

    Args:
        table: name -> entry.
        name: key of the table, or name of an object outside of this package.
        field: field of the configuration that holds the name, for error messages.

    Raises:
        InputError: there is no such entry, or the object cannot be imported.
    """
    if ':' in name:
        return _import(name, field)
    if name not in table:
        raise _unknown(name, table, field)
    return table[name]


def check(value: Any, choices: Iterable, field: str) -> None:
    """Refuses a value of the configuration that is not among the choices.

    Args:
        value: value of the field.
        choices: values that the field may have.
        field: field of the configuration, for the error message.

    Raises:
        InputError: names the field, the value and the choices.
    """
    if value not in choices:
        raise InputError(f'{field}={value!r} is not one of {", ".join(map(str, choices))}')


def _unknown(name: str, known: Iterable[str], field: str) -> InputError:
    return InputError(
        f'{field}={name!r} is not one of {", ".join(sorted(known))}; code outside of ggcf_jax is '
        'named my_package.my_module:attribute'
    )


def _import(name: str, field: str) -> Any:
    """Imports `my_package.my_module:attribute`; dots in the attribute name nested ones."""
    module_name, _, attribute = name.partition(':')
    if not all(part.isidentifier() for part in (*module_name.split('.'), *attribute.split('.'))):
        raise InputError(f'{field}={name!r} is not of the form my_package.my_module:attribute')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ''
        if f'{module_name}.'.startswith(f'{missing}.'):
            raise InputError(
                f'{field}={name!r}: there is no module {missing!r}; install its package, or put '
                'the folder that contains it on PYTHONPATH'
            ) from error
        raise InputError(
            f'{field}={name!r}: module {module_name!r} needs {missing!r}, which is not installed'
        ) from error
    except Exception as error:
        raise InputError(
            f'{field}={name!r}: importing module {module_name!r} failed with '
            f'{type(error).__name__}: {error}'
        ) from error
    found: Any = module
    for i, part in enumerate(attribute.split('.')):
        if not hasattr(found, part):
            owner = '.'.join([module_name, *attribute.split('.')[:i]])
            public = ', '.join(other for other in dir(found) if not other.startswith('_'))
            raise InputError(
                f'{field}={name!r}: {owner!r} has no attribute {part!r}; it has {public or "none"}'
            )
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f'{field}={name!r} is not callable but of type {type(found).__name__}')
    return found
