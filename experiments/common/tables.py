"""Results as CSV and as Markdown tables, from a sequence of frozen dataclasses, one a line."""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Sequence

from ggcf_jax import atomic


def write_csv(path: pathlib.Path, rows: Sequence) -> None:
    """Writes one line a row under the names of its fields; NaN is left empty."""
    with (
        atomic.replacing(path) as temporary,
        temporary.open('w', newline='', encoding='utf-8') as file,
    ):
        lines = csv.writer(file)
        lines.writerow([field.name for field in dataclasses.fields(rows[0])])
        for row in rows:
            lines.writerow([_exact(value) for value in dataclasses.astuple(row)])


def _exact(value) -> str:
    if isinstance(value, float):
        return '' if math.isnan(value) else f'{value:.6g}'
    return str(value)


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    rule = f'|---|{"--:|" * (len(columns) - 1)}\n'
    first, *others = (f'| {" | ".join(row)} |\n' for row in (columns, *lines))
    return first + rule + ''.join(others)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text, whole or not at all, and prints it."""
    atomic.write(path, text.encode())
    print(text)
