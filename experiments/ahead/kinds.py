"""What the kernels of a program compiled for a GPU do: how many, and the memory that they move.

    python -m experiments.ahead.compile --config=configs/cityscapes.py:r101 --targets=h100 \\
        --out=runs/ahead.csv --keep=runs/ahead
    python -m experiments.ahead.kinds runs/ahead/*.hlo.gz

Prints a table of docs/performance.md for each program. A kernel has the first kind of the table
that fits.
"""

import argparse
import collections
import gzip
import re

from experiments.ahead import cost
from experiments.common import cli

# Kind -> opcodes or names of library calls, one of which such a kernel has.
KINDS = {
    'convolutions and products': ('__cudnn$conv', '__cublas', 'convolution', 'dot'),
    'fused attention': ('__cudnn$fmha',),
    'collectives': ('all-reduce', 'all-gather', 'collective-permute', 'all-to-all'),
    'slices of stacks, and updates': ('dynamic-slice', 'dynamic-update-slice'),
    'copies': ('copy',),
    'reductions': ('reduce', 'reduce-window', 'scatter', 'sort'),
    'transposes': ('transpose',),
    'concatenations and padding': ('concatenate', 'pad', 'gather'),
    'element by element': (),
}


def by_kind(text: str) -> dict[str, tuple[int, int]]:
    """Counts the kernels of each kind and the bytes that they read and write.

    Args:
        text: text of the compiled program.

    Returns:
        Kind -> (number of kernels, bytes), in the order of `KINDS`.

    Raises:
        ValueError: a loop whose trip count is not in the text.
    """
    found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for kernel in cost.kernels(text):
        kind = next(
            kind
            for kind, marks in KINDS.items()
            if not marks or any(_has(kernel.opcodes, mark) for mark in marks)
        )
        found[kind][0] += kernel.times
        found[kind][1] += kernel.times * kernel.moved
    return {kind: (found[kind][0], found[kind][1]) for kind in KINDS if found[kind][0]}


def _has(opcodes: frozenset[str], mark: str) -> bool:
    return any(re.match(rf'{re.escape(mark)}(-start)?($|[A-Z$])', opcode) for opcode in opcodes)


def table(kinds: dict[str, tuple[int, int]]) -> list[str]:
    """The lines of a Markdown table.

    Args:
        kinds: what `by_kind` returns.
    """
    totals = [sum(numbers) for numbers in zip(*kinds.values())]
    lines = ['| kernels | number | traffic |', '|---|--:|--:|']
    for kind, (number, moved) in [*kinds.items(), ('all', totals)]:
        lines.append(f'| {kind} | {number:,} | {moved / 1e9:.2f} GB |')
    return lines


def main(options: argparse.Namespace) -> None:
    """Prints the tables of the programs on the command line."""
    for path in options.programs:
        content = path.read_bytes()
        text = gzip.decompress(content) if path.suffix == '.gz' else content
        print('\n'.join([f'{path}:', '', *table(by_kind(text.decode())), '']))


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument(
        'programs', nargs='+', type=cli.path, help='compiled programs as text, .gz or not'
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
