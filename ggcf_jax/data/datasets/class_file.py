"""The class file of a folder: names, colours and label values of the classes.

A list has one name a line: the n-th class has the n-th label value that `config.data.ignore` does
not name, from 0. A table has a first line with the names of its columns, separated by commas,
semicolons or tabs. What a file is depends on its content, not on its ending.

    name, red, green, blue, ids
    road, 128, 64, 128, 7 8
    car, 0, 0, 142, 26
    void, 0, 0, 0, ignore

| column | also called | cells |
|---|---|---|
| name | class, label | name of the class |
| red, green, blue | r, g, b | its colour, 0 to 255: in pictures, and in labels that hold colours |
| ids | id | label values of the class, separated by spaces, 0 to 65535; `ignore`: no class |
| group | | class that the line belongs to, where several lines are one class; empty: its name |

Lines of one group are one class, with the colour of the first. Names of columns are read without
capitals and spaces around them. Any other column is refused, unless its name begins with `#`.

The tables of published data sets lie in `class_files/`; the recipes that use them name the sources.
"""

import colorsys
import csv
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ggcf_jax import places
from ggcf_jax.data.records import text_files
from ggcf_jax.data.records.codec import IGNORE, LABEL_VALUES, NOT_ALLOWED
from ggcf_jax.data.records.dataset import Color
from ggcf_jax.errors import InputError

_COLUMNS = {
    'name': 'name', 'class': 'name', 'label': 'name',
    'red': 'red', 'green': 'green', 'blue': 'blue',
    'r': 'red', 'g': 'green', 'b': 'blue',
    'ids': 'ids', 'id': 'ids',
    'group': 'group',
}  # fmt: skip
_CHANNELS = ('red', 'green', 'blue')
_IGNORED = 'ignore'  # in the column ids
_PUBLISHED = 'published:'  # before the name of a table that comes with this package
_TABLES = pathlib.Path(__file__).parent / 'class_files'
_NUMBERED = re.compile(r'\s*\d+\s*[\s:,;.)]')


class Classes(NamedTuple):
    """What the class file says.

    Attributes:
        names: name of each class.
        colors: RGB colour of each class.
        label_map: label value -> index of its class, `IGNORE` or `NOT_ALLOWED`.
        label_colors: colour -> index of its class or `IGNORE`, if the file gives a colour of its
            own to every line; empty otherwise.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    label_map: UInt8[np.ndarray, ' values']
    label_colors: Mapping[Color, int]


class _Row(NamedTuple):
    """A line of a table: its number, and cell by name of the column."""

    line: int
    cells: dict[str, str]


def locate(root: pathlib.Path, text: str) -> pathlib.Path:
    """Returns the path of a class file.

    Args:
        root: folder that the path is relative to, `config.data.manual_dir`.
        text: path, or 'published:NAME' for a table that comes with this package;
            `config.data.classes`.

    Raises:
        InputError: there is no such table.
    """
    if not text.startswith(_PUBLISHED):
        return root / places.expand(text, 'config.data.classes')
    known = sorted(path.stem for path in _TABLES.glob('*.csv'))
    name = text.removeprefix(_PUBLISHED)
    if name not in known:
        raise InputError(
            f'config.data.classes={text!r}: {name!r} is none of the published tables '
            f'{", ".join(known)}'
        )
    return _TABLES / f'{name}.csv'


def read(path: pathlib.Path, ignore: tuple[int, ...]) -> Classes:
    """Reads a class file.

    Args:
        path: path of the file.
        ignore: label values of pixels without class, `config.data.ignore`.

    Raises:
        InputError: the file is missing or malformed, or names or label values are used twice.
    """
    if not path.is_file():
        raise InputError(f'config.data.classes: there is no file {path}')
    rows = _rows(path, text_files.read(path))
    is_class = [row.cells.get('ids', '').lower() != _IGNORED for row in rows]
    classes = [row for row, counts in zip(rows, is_class) if counts]
    if not classes:
        raise InputError(f'{path}: no classes; write one name a line, or a CSV with a column name')
    names = [row.cells['name'] for row in classes]
    for row in classes:
        if not row.cells['name'] or names.count(row.cells['name']) > 1:
            raise InputError(
                f'{path}:{row.line}: class name {row.cells["name"]!r} is empty or duplicated'
            )
    groups = [row.cells.get('group') or row.cells['name'] for row in classes]
    index = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    if len(index) > NOT_ALLOWED:
        raise InputError(f'{path}: {len(index)} classes; at most {NOT_ALLOWED} fit 8-bit labels')
    of_row = [index[group] for group in groups]
    given = [_color(path, row) for row in rows]
    label_colors: dict[Color, int] = {}
    if None not in given and len(set(given)) == len(given):
        numbers = iter(of_row)
        label_colors = {
            color: next(numbers) if counts else IGNORE
            for color, counts in zip(given, is_class)
            if color is not None
        }
    of_classes = [color for color, counts in zip(given, is_class) if counts]
    colors = tuple(of_classes[of_row.index(i)] or _color_of_number(i) for i in index.values())
    label_map = _label_map(path, classes, of_row, ignore)
    return Classes(tuple(index), colors, label_map, label_colors)


def _rows(path: pathlib.Path, text: str) -> list[_Row]:
    """The lines of a table or list."""
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        return []
    header = lines[0][1]
    delimiter = next((d for d in '\t;,' if d in header), ',')
    columns = [cell.strip().lower() for cell in next(csv.reader([header], delimiter=delimiter))]
    if 'name' in (_COLUMNS.get(column) for column in columns):
        return _table(path, lines, columns, delimiter)
    if path.suffix.lower() == '.csv' and len(columns) > 1:
        raise InputError(
            f'{path}: the first line {header!r} names no column; begin with a line such as '
            'name,red,green,blue,ids'
        )
    if all(_NUMBERED.match(line) for _, line in lines):
        raise InputError(
            f'{path}: every line begins with a number, as {header!r}; write a table with the '
            'columns name,ids'
        )
    return [_Row(i, {'name': line.strip()}) for i, line in lines]


def _table(
    path: pathlib.Path, lines: list[tuple[int, str]], columns: list[str], delimiter: str
) -> list[_Row]:
    """The rows of a table; what has no column, or a column of unknown meaning, is refused."""
    known = [column if column.startswith('#') else _COLUMNS.get(column) for column in columns]
    for column, meaning in zip(columns, known):
        if meaning is None:
            raise InputError(
                f'{path}: column {column!r} is not one of name, red, green, blue, ids, group; '
                'remove it, or begin its name with # to have it left out'
            )
        if known.count(meaning) > 1 and not meaning.startswith('#'):
            raise InputError(f'{path}: there are two columns {meaning!r}')
    if 0 < sum(channel in known for channel in _CHANNELS) < 3:
        raise InputError(f'{path}: a colour has the three columns red, green and blue')
    rows = []
    for number, line in lines[1:]:
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
        if len(cells) != len(columns):
            raise InputError(
                f'{path}:{number}: {line!r} has {len(cells)} cells for {len(columns)} columns; '
                'several ids are separated by spaces, a name with commas stands in quotes'
            )
        rows.append(_Row(number, {c or '': x.strip() for c, x in zip(known, cells)}))
    return rows


def _color(path: pathlib.Path, row: _Row) -> Color | None:
    """The colour of a row, if the file has colours."""
    if 'red' not in row.cells:
        return None
    red, green, blue = (_number(path, row, c, row.cells[c], 255) for c in _CHANNELS)
    return red, green, blue


def _color_of_number(index: int) -> Color:
    """A colour that is easy to tell apart from those of other classes."""
    # Steps of the golden ratio: hues of neighbours differ, however many there are.
    hue = 0.618034 * index % 1
    red, green, blue = (round(255 * x) for x in colorsys.hsv_to_rgb(hue, 0.65, 0.9))
    return red, green, blue


def _label_map(
    path: pathlib.Path, rows: list[_Row], of_row: list[int], ignore: tuple[int, ...]
) -> UInt8[np.ndarray, ' values']:
    """Label values of the column ids, or the next ones, and those to ignore."""
    label_map = np.full(LABEL_VALUES, NOT_ALLOWED, np.uint8)
    for value in ignore:
        if not 0 <= value < LABEL_VALUES:
            raise InputError(f'config.data.ignore={ignore} must hold values in 0..65535')
        label_map[value] = IGNORE
    free = iter(np.flatnonzero(label_map == NOT_ALLOWED).tolist())
    for row, index in zip(rows, of_row):
        if 'ids' not in row.cells:
            label_map[next(free)] = index
            continue
        if not row.cells['ids']:
            raise InputError(f'{path}:{row.line}: class {row.cells["name"]!r} has no ids')
        for text in row.cells['ids'].split():
            value = _number(path, row, 'ids', text, LABEL_VALUES - 1)
            if label_map[value] == IGNORE:
                raise InputError(
                    f'{path}:{row.line}: label value {value} of class {row.cells["name"]!r} is '
                    f'ignored by config.data.ignore={ignore}; if it is a class, pass '
                    f'--config.data.ignore={_without(ignore, value)}'
                )
            if label_map[value] != NOT_ALLOWED:
                raise InputError(
                    f'{path}:{row.line}: label value {value} of class {row.cells["name"]!r} '
                    'belongs to another class already'
                )
            label_map[value] = index
    used = np.flatnonzero(label_map != NOT_ALLOWED)
    return label_map if used.max() > 255 else label_map[:256]


def _without(ignore: tuple[int, ...], value: int) -> str:
    """The flag that ignores the other values."""
    rest = [str(other) for other in ignore if other != value]
    return ','.join(rest) or "'()'"


def _number(path: pathlib.Path, row: _Row, column: str, text: str, most: int) -> int:
    """The number that a cell holds."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= most):
        raise InputError(
            f'{path}:{row.line}: {column} {text!r} of class {row.cells["name"]!r} is not in '
            f'0..{most}'
        )
    return int(text)
