"""Differences between rows, against known values of Student's distribution."""

import pytest

from experiments.common import cli
from experiments.tables import differences
from ggcf_jax.errors import InputError


@pytest.mark.parametrize(
    ('freedom', 'quantile'), [(1, 12.706), (2, 4.303), (4, 2.776), (29, 2.045)]
)
def test_quantiles_of_the_published_tables(freedom, quantile):
    """Ninety-five percent, two-sided."""
    values = [*range(freedom), freedom]
    found = differences.Difference(values)
    spread = (sum((x - freedom / 2) ** 2 for x in values) / freedom) ** 0.5
    assert found.half_width == pytest.approx(quantile * spread / len(values) ** 0.5, rel=1e-3)


def test_sleep_of_student():
    """Hours of sleep gained, the second drug less the first (Student, 1908)."""
    gains = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = differences.Difference(gains)
    assert found.mean == pytest.approx(1.58)
    assert found.p == pytest.approx(0.00283, rel=1e-2)
    assert found.half_width == pytest.approx(0.88, abs=0.01)
    assert differences.Difference([0.5, 0.5]).p == 0 and differences.Difference([0, 0]).p == 1


def write(path, lines):
    path.write_text('row,seed,miou\n' + ''.join(f'{line}\n' for line in lines))
    return path


def run(tmp_path, *tables, to='B'):
    arguments = [f'--out={tmp_path / "out"}', f'--to={to}', *(f'--table={x}' for x in tables)]
    differences.main(cli.parse(differences.make_parser(), arguments))
    return (tmp_path / 'out' / 'differences.md').read_text()


def test_pairs_of_two_tables(tmp_path):
    first = write(tmp_path / 'a.csv', ['A,0,0.30', 'A,1,0.50', 'A,2,0.9', 'B,0,0.20', 'B,1,0.30'])
    pruned = ['A + ContextPruning,0,0.31', 'A + ContextPruning,1,0.51', 'C,0,0.1', 'B,0,0.20']
    lines = run(tmp_path, first, write(tmp_path / 'b.csv', pruned)).splitlines()[4:]
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    # Half of the difference of two values times 12.706; C has one seed in common with no row.
    assert cells[0] == ['A - B', '+15.00', '-48.53 to +78.53', '0.205', '2 of 2']
    assert [row[0] for row in cells[1:]] == ['A + ContextPruning - B', 'A + ContextPruning - A']
    assert cells[2][1] == '+1.00'


def test_what_is_refused(tmp_path):
    table = write(tmp_path / 'a.csv', ['A,0,0.3'])
    with pytest.raises(InputError, match=r"--to='B' is not one of 'A'"):
        run(tmp_path, table)
    with pytest.raises(InputError, match=r'A, seed 0: mIoU 0.3, and 0.4 in .*b.csv'):
        run(tmp_path, table, write(tmp_path / 'b.csv', ['A,0,0.4']), to='A')
    with pytest.raises(InputError, match=r'c\.csv is not a file'):
        run(tmp_path, tmp_path / 'c.csv')
    (tmp_path / 'd.csv').write_text('row,miou\nA,0.3\n')
    with pytest.raises(InputError, match=r'd\.csv has no column seed'):
        run(tmp_path, tmp_path / 'd.csv', to='A')
