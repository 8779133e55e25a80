"""The rows that a command has compiled, kept as a CSV file beside the docs, and their table."""

import argparse
import csv
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.common import cli


def add_arguments(parser: argparse.ArgumentParser, heads: Sequence[str], out: str) -> None:
    """Adds --heads, --only_print and --out to a command line.

    Args:
        parser: command line.
        heads: graphs that are compiled by default.
        out: CSV file that is written by default.
    """
    parser.add_argument(
        '--heads',
        default=list(heads),
        type=cli.comma_list,
        help=f'comma-separated graphs [{",".join(heads)}]',
    )
    parser.add_argument(
        '--only_print', action='store_true', help='print the table of the CSV file that is there'
    )
    parser.add_argument(
        '--out', default=out, type=cli.path, help=f'CSV file that is written [{out}]'
    )


def write(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file when all rows are there; prints each as soon as it is.

    Args:
        path: file that is written anew.
        rows: rows with the same columns, at least one.
    """
    kept = []
    for row in rows:
        kept.append(row)
        print(row, file=sys.stderr, flush=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(kept[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(kept)


def print_table(path: pathlib.Path, table: Callable[[Sequence[dict[str, str]]], list[str]]) -> None:
    """Prints the table of a CSV file.

    Args:
        path: file that `write` has written.
        table: makes the lines of the table of the rows.
    """
    with path.open(newline='') as file:
        print('\n'.join(table(list(csv.DictReader(file)))))
