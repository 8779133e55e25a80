"""Results as CSV files and Markdown tables, one frozen dataclass per row."""

import csv
import dataclasses
import math
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggcf_jax import atomic

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def write_csv(path: pathlib.Path, rows: Sequence['DataclassInstance']) -> None:
    """Writes a CSV file atomically: a header with the field names, then one line per row.

    Args:
        path: CSV file to write; its folder is created.
        rows: instances of one dataclass, at least one; NaN becomes an empty cell.
    """
    with (
        atomic.replacing(path) as temporary,
        temporary.open('w', newline='', encoding='utf-8') as file,
    ):
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(rows[0])])
        for row in rows:
            writer.writerow([_format_cell(value) for value in dataclasses.astuple(row)])


def _format_cell(value: object) -> str:
    if isinstance(value, float):
        return '' if math.isnan(value) else f'{value:.6g}'
    return str(value)


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table.

    Args:
        columns: headings; the first column is aligned left, the others right.
        lines: cells of each line, as many as there are columns.
    """
    rule = f'|---|{"--:|" * (len(columns) - 1)}\n'
    first, *others = (f'| {" | ".join(row)} |\n' for row in (columns, *lines))
    return first + rule + ''.join(others)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically and prints the text."""
    atomic.write(path, text.encode())
    print(text)


def spread(values: Sequence[float], *, scale: float = 100, digits: int = 2) -> str:
    """Formats mean and sample standard deviation, '27.31 +- 0.42'.

    Args:
        values: numbers, at least one; the deviation is left out of a single one.
        scale: factor that all values are multiplied by; the default turns shares into percent.
        digits: number of decimals.
    """
    text = f'{scale * statistics.mean(values):.{digits}f}'
    if len(values) > 1:
        text += f' +- {scale * statistics.stdev(values):.{digits}f}'
    return text


def slug(text: str) -> str:
    """Turns a name into one of a file or directory: 'FULL, LOCAL_{8,16}' -> 'full_local_8_16'."""
    return re.sub(r'[^a-z0-9]+', '_', text.lower()).strip('_')
