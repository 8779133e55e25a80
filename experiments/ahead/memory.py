"""Prints what `experiments.ahead.compile` wrote as Markdown tables.

    python -m experiments.ahead.memory docs/memory.csv

The tables of docs/memory.md are its output.
"""

import argparse
import pathlib

from experiments.ahead.compile import read
from ggcf_jax.models.layers.remat import REMATS

GIB = 2**30


def memory_table(rows: list[dict[str, str]]) -> list[str]:
    """Temporary memory of training steps by rematerialisation, one line a program otherwise."""
    steps: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if row['step'] == 'train':
            key = (_name(row), f'{row["height"]} x {row["width"]}', row['target'], row['batch'])
            steps.setdefault(key, {})[row['remat']] = row
    lines = [
        f'| configuration | crop | target | images a device | {" | ".join(REMATS)} |',
        '|---|---|---|--:' + '|--:' * len(REMATS) + '|',
    ]
    for key in sorted(steps, key=lambda key: (*key[:3], int(key[3]))):
        cells = [_gib(steps[key].get(remat)) for remat in REMATS]
        lines.append(f'| {" | ".join((*key, *cells))} |')
    return lines


def collectives_table(rows: list[dict[str, str]]) -> list[str]:
    """Collectives of programs for several devices, and what those programs hold in memory."""
    lines = [
        '| configuration | step | images | target | images a device | collectives | temporary GiB '
        '| state and batch GiB |',
        '|---|---|---|---|--:|---|--:|--:|',
    ]
    for row in rows:
        kinds = [kind.split() for kind in row['collectives'].split('; ') if kind]
        if not kinds:
            continue
        told = ', '.join(f'{n} {kind}, {int(size) / 2**20:.2f} MiB' for kind, n, size in kinds)
        remat = f', {row["remat"]}' if row['step'] == 'train' else ''
        lines.append(
            f'| {_name(row)} | {row["step"]}{remat} | {row["height"]} x {row["width"]} '
            f'| {row["target"]} | {row["batch"]} | {told} | {int(row["temporary"]) / GIB:.2f} '
            f'| {int(row["arguments"]) / GIB:.2f} |'
        )
    return lines


def _name(row: dict[str, str]) -> str:
    name = pathlib.Path(row['config']).name.replace('.py', '')
    return f'{name} {row["overrides"]}' if row['overrides'] else name


def _gib(row: dict[str, str] | None) -> str:
    if row is None:
        return ''
    if not row['temporary']:
        return f'does not fit ({int(row["memory"]) / GIB:.1f} in all)'
    return f'{int(row["temporary"]) / GIB:.2f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('csv', type=pathlib.Path)
    rows = read(parser.parse_args().csv)
    compilers = sorted({f'jax {row["jax"]}, {row["compiler"]}' for row in rows})
    print('\n'.join(['; '.join(compilers), '', *memory_table(rows), '', *collectives_table(rows)]))


if __name__ == '__main__':
    main()
