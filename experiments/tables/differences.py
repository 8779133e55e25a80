"""Differences between the rows of a sweep, seed by seed, with 95 % confidence intervals.

    python -m experiments.tables.differences --out=runs/differences --to=FULL --to=Baseline \
        --table=runs/contexts/table.csv

Rows with the same seed saw the same crops in the same order, so that their difference says more
than that of two means. The interval is Student's for the mean of the differences, which takes them
for normally distributed; the p-value is that of his two-sided test. Neither is corrected for the
number of rows: of twenty rows that are equal one has a p-value below 0.05. Writes
<out>/differences.md.

`--table` is what `experiments.tables.sweep table` writes, such as the files of docs/results; it may
be repeated, with the rows of further sweeps. Row 'X + ContextPruning' is also compared with X.
"""

import argparse
import csv
import dataclasses
import itertools
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence

import jax

from experiments.common import cli, tables
from ggcf_jax.errors import InputError

_PRUNED = ' + ContextPruning'
_Seeds = Mapping[int, float]  # mIoU, 0..1


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean of differences that are given by pairs.

    Attributes:
        values: differences, one for each seed, at least two.
    """

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """Mean of the differences."""
        return statistics.mean(self.values)

    @property
    def half_width(self) -> float:
        """How far the 95 % confidence interval of the mean reaches to either side."""
        return _quantile(len(self.values) - 1) * self._error

    @property
    def p(self) -> float:
        """Probability of a mean at least as far from zero if that of all seeds were zero."""
        if self._error == 0:
            return float(self.mean == 0)
        return _p(self.mean / self._error, len(self.values) - 1)

    @property
    def _error(self) -> float:
        return statistics.stdev(self.values) / len(self.values) ** 0.5


def _p(t: float, freedom: int) -> float:
    """Two-sided tail of Student's distribution (Abramowitz and Stegun, 26.7.1 and 26.5.27)."""
    return float(jax.scipy.special.betainc(freedom / 2, 0.5, freedom / (freedom + t * t)))


def _quantile(freedom: int) -> float:
    """What 5 % of the values of Student's distribution are above, or below its negative."""
    low, high = 0.0, 13.0  # 12.7 with one degree of freedom
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _p(middle, freedom) > 0.05 else (low, middle)
    return high


def read(paths: Sequence[pathlib.Path]) -> dict[str, dict[int, float]]:
    """Reads the mIoU of each row and seed.

    Args:
        paths: tables with the columns row, seed and miou.

    Raises:
        InputError: no such file or column, or a row and seed with two values.
    """
    found: dict[str, dict[int, float]] = {}
    for path in paths:
        if not path.is_file():
            raise InputError(f'--table={path} is not a file')
        with path.open(newline='', encoding='utf-8') as file:
            records = csv.DictReader(file)
            missing = {'row', 'seed', 'miou'} - {*(records.fieldnames or ())}
            if missing:
                raise InputError(f'--table={path} has no column {", ".join(sorted(missing))}')
            for record in records:
                seeds = found.setdefault(record['row'], {})
                seed, value = int(record['seed']), float(record['miou'])
                if seeds.setdefault(seed, value) != value:
                    raise InputError(
                        f'{record["row"]}, seed {seed}: mIoU {seeds[seed]}, and {value} in {path}'
                    )
    return found


def compare(one: _Seeds, other: _Seeds) -> Difference | None:
    """The difference over the seeds that both have; None for fewer than two."""
    values = [value - other[seed] for seed, value in one.items() if seed in other]
    return Difference(values) if len(values) > 1 else None


def lines(rows: Mapping[str, _Seeds], to: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yields the lines of the table.

    Args:
        rows: mIoU by row and seed.
        to: rows that all others are compared with.

    Raises:
        InputError: a row that there is not.
    """
    for other in to:
        if other not in rows:
            raise InputError(f'--to={other!r} is not one of {", ".join(map(repr, rows))}')
    pairs = itertools.product(to, rows)
    pruned = [(row.removesuffix(_PRUNED), row) for row in rows if row.endswith(_PRUNED)]
    for other, row in dict.fromkeys([*pairs, *pruned]):
        if row == other or other not in rows:
            continue
        found = compare(rows[row], rows[other])
        if found is None:
            continue
        higher = sum(value > 0 for value in found.values)
        low, high = (100 * (found.mean + sign * found.half_width) for sign in (-1, 1))
        yield (
            f'{row} - {other}',
            f'{100 * found.mean:+.2f}',
            f'{low:+.2f} to {high:+.2f}',
            f'{found.p:.3f}',
            f'{higher} of {len(found.values)}',
        )


def main(options: argparse.Namespace) -> None:
    """Compares the rows and writes the table."""
    columns = ('difference', 'mean', '95 % interval', 'p', 'seeds in which it is higher')
    text = 'Differences of the mIoU in percent, seed by seed.\n\n' + tables.markdown(
        columns, list(lines(read(options.table), options.to))
    )
    tables.write_text(options.out / 'differences.md', text)


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        '--table', action='append', required=True, type=cli.path, help='table of a sweep'
    )
    parser.add_argument(
        '--to', action='append', required=True, metavar='ROW', help='row to compare all others with'
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
