"""Prints the rows that `experiments.ahead.compile` wrote as Markdown tables.

    python -m experiments.ahead.memory docs/memory.csv

The tables of docs/memory.md are its output.
"""

import argparse
import pathlib
from collections.abc import Sequence

from experiments.ahead import program_table
from experiments.ahead.program_table import Row
from experiments.common import cli
from ggcf_jax.models.layers.remat import REMATS

GIB = 2**30


def memory_table(rows: Sequence[Row]) -> list[str]:
    """Returns Markdown lines: temporary memory of training steps by rematerialisation.

    Args:
        rows: rows of the CSV file; programs that differ in rematerialisation alone share a line.
    """
    steps: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row['step'] == 'train':
            key = (_name(row), f'{row["height"]} x {row["width"]}', row['target'], row['batch'])
            steps.setdefault(key, {})[row['remat']] = row
    lines = [
        f'| configuration | crop | target | images per device | {" | ".join(REMATS)} |',
        '|---|---|---|--:' + '|--:' * len(REMATS) + '|',
    ]
    for key in sorted(steps, key=lambda key: (*key[:3], int(key[3]))):
        cells = [_gib(steps[key].get(remat)) for remat in REMATS]
        lines.append(f'| {" | ".join((*key, *cells))} |')
    return lines


def collectives_table(rows: Sequence[Row]) -> list[str]:
    """Returns Markdown lines: collectives of programs for several devices, and their memory.

    Args:
        rows: rows of the CSV file; programs without collectives are left out.
    """
    lines = [
        '| configuration | step | images | target | images per device | collectives '
        '| temporary GiB | state and batch GiB |',
        '|---|---|---|---|--:|---|--:|--:|',
    ]
    for row in rows:
        totals = program_table.parse_collectives(row)
        if not totals:
            continue
        found = ', '.join(
            f'{total.count} {kind}, {total.bytes / 2**20:.2f} MiB' for kind, total in totals.items()
        )
        remat = f', {row["remat"]}' if row['step'] == 'train' else ''
        lines.append(
            f'| {_name(row)} | {row["step"]}{remat} | {row["height"]} x {row["width"]} '
            f'| {row["target"]} | {row["batch"]} | {found} | {int(row["temporary"]) / GIB:.2f} '
            f'| {int(row["arguments"]) / GIB:.2f} |'
        )
    return lines


def _name(row: Row) -> str:
    name = pathlib.Path(row['config']).name.replace('.py', '')
    return f'{name} {row["overrides"]}' if row['overrides'] else name


def _gib(row: Row | None) -> str:
    if row is None:
        return ''
    if not row['temporary']:
        return f'does not fit ({int(row["memory"]) / GIB:.1f} in all)'
    return f'{int(row["temporary"]) / GIB:.2f}'


def main(options: argparse.Namespace) -> None:
    """Prints the compilers and both tables."""
    rows = program_table.read(options.csv)
    compilers = sorted({f'jax {row["jax"]}, {row["compiler"]}' for row in rows})
    print('\n'.join(['; '.join(compilers), '', *memory_table(rows), '', *collectives_table(rows)]))


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument('csv', type=cli.path, help='CSV file that experiments.ahead.compile wrote')
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
