"""The CSV file of compiled programs (docs/memory.csv): one row per program.

`experiments.ahead.compile` writes it; `memory` and `scaling` read it.
"""

import csv
import pathlib
from collections.abc import Mapping, Sequence

from experiments.ahead import collectives

# What identifies a program; the other columns are measured.
KEY = (
    'config', 'overrides', 'target', 'step', 'height', 'width', 'batch', 'remat', 'jax', 'compiler'
)  # fmt: skip
COLUMNS = (
    *KEY, 'memory', 'temporary', 'arguments', 'flops', 'traffic', 'operations', 'cycles',
    'collectives', 'seconds', 'date',
)  # fmt: skip

Row = dict[str, str]


def read(path: pathlib.Path) -> list[Row]:
    """Reads the rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def append(path: pathlib.Path, row: Mapping[str, object]) -> None:
    """Appends a row to a CSV file, which is created if missing.

    Args:
        path: CSV file.
        row: column -> value; missing columns stay empty.
    """
    new = not path.exists()
    with path.open('a', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        if new:
            writer.writeheader()
        writer.writerow(row)


def format_collectives(found: Sequence[collectives.Collective]) -> str:
    """Formats kind, count and bytes, 'all-reduce 320 208735232'; semicolons separate kinds."""
    totals = collectives.totals(found)
    return '; '.join(f'{kind} {total.count} {total.bytes}' for kind, total in totals.items())


def parse_collectives(row: Row) -> dict[str, collectives.Total]:
    """Returns count and bytes of the collectives of a row by kind."""
    found = {}
    for text in row['collectives'].split('; ') if row['collectives'] else ():
        kind, count, size = text.split(' ')
        found[kind] = collectives.Total(int(count), int(size))
    return found


def gathers_of_row(row: Row) -> list[str]:
    """Returns `collectives.gathers` as far as a row tells, 'all-gather 3 1048576' for each kind."""
    return [
        f'{kind} {total.count} {total.bytes}'
        for kind, total in parse_collectives(row).items()
        if kind in collectives.GATHERS and total.bytes > collectives.LARGEST_GATHER
    ]
