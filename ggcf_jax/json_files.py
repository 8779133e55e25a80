"""JSON that may have been edited, damaged or sent by anyone: it is checked before it is used.

Every file has one reader, beside its writer, which looks at each field it uses through `need`, so
that whatever is wrong is one `ValueError` with the field's name.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_DEPTH = 50  # of objects and lists inside each other; deeper ones would end in a RecursionError


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Args:
        text: the text, or its bytes in UTF-8.

    Raises:
        ValueError: it is not JSON, not an object, or nested too deeply to be parsed.
    """
    content = _parse(text)
    if not isinstance(content, dict):
        raise ValueError(f'it holds {content!r:.40} instead of an object')
    inside: list[Any] = [content]
    for _ in range(_DEPTH):
        inside = [x for each in inside for x in _items(each) if isinstance(x, dict | list)]
    if inside:
        raise ValueError('it is nested too deeply')
    return content


def parse_list(text: str | bytes, of: Callable[[Any], bool]) -> list[Any]:
    """Parses a JSON list.

    Args:
        text: the text, or its bytes in UTF-8.
        of: whether an item can be used.

    Raises:
        ValueError: it is not JSON, not a list, or holds other items.
    """
    content = _parse(text)
    if not is_list(content, of):
        raise ValueError(f'it holds {content!r:.40}')
    return content


def _parse(text: str | bytes) -> Any:
    try:
        if isinstance(text, bytes):
            text = text.decode('utf-8')
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError('it is nested too deeply') from error


def need(content: Mapping[str, Any], name: str, holds: Callable[[Any], bool], words: str) -> Any:
    """Returns a field of an object.

    Args:
        content: the object.
        name: name of the field.
        holds: whether a value can be used.
        words: what the value must be, for the message.

    Raises:
        ValueError: the field is missing or its value is another.
    """
    if name not in content:
        raise ValueError(f'it has no entry {name!r}')
    if not holds(content[name]):
        raise ValueError(f'{name}={content[name]!r:.60} is not {words}')
    return content[name]


def is_text(value: Any) -> bool:
    """Whether a value is a text; it may hold bytes of a file name that are no characters."""
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0 on that fits 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def is_number_or_none(value: Any) -> bool:
    """Whether a value is a finite number or null."""
    return value is None or is_number(value)


def is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    """Whether a value is a list whose items all hold."""
    return isinstance(value, list) and all(map(of, value))


def is_mapping(value: Any, of: Callable[[Any], bool]) -> bool:
    """Whether a value is an object whose values all hold."""
    return isinstance(value, dict) and all(map(is_text, value)) and all(map(of, value.values()))


def is_color(value: Any) -> bool:
    """Whether a value is a list of three whole numbers in 0..255."""
    return is_list(value, lambda x: type(x) is int and 0 <= x <= 255) and len(value) == 3


def _items(value: dict | list) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _refuse_constant(name: str) -> None:
    raise ValueError(f'it holds {name}, which is not JSON')
