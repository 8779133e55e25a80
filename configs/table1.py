"""Rows of comparisons: what `sweep()`, `peers()` and `contexts()` of a recipe yield.

Those of `sweep()` are Tables 1 and 2 under the paper's names. Those of `peers()` are the context
modules of other papers beside the paper's own, under one recipe (docs/contexts.md); the paper
compares with some of them in Table 4, across recipes. Those of `contexts()` are both, with the
paper's graphs one by one, for a comparison on few images.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = tuple[str, dict[str, Any]]

_LOCAL_GRID = '{LOCAL, GRID}_{8,16,24}'


def table1(sizes: Sequence[int] = (8, 16, 24), single: int = 10) -> Iterator[Row]:
    """Yields (name, overrides of fields) for each row of Table 1.

    Args:
        sizes: sizes of the local and strides of the grid heads where the paper has 8, 16 and 24,
            which are made for feature maps of 128 x 256.
        single: size or stride where the paper has 10.
    """
    local, grid = (f'{kind}:{",".join(map(str, sizes))}' for kind in ('local', 'grid'))
    yield 'Baseline', {'model.context': 'none'}
    yield 'ASPP', {'model.context': 'aspp'}
    for name, heads in (
        ('FULL', 'full'),
        (_LOCAL_GRID, f'{local},{grid}'),
        ('GRID_{8,16,24}', grid),
        ('LOCAL_{8,16,24}', local),
        ('FULL, {LOCAL, GRID}_{8,16,24}', f'full,{local},{grid}'),
        ('FULL, LOCAL_{8,16,24}', f'full,{local}'),
        ('FULL, GRID_{8,16,24}', f'full,{grid}'),
        ('GRID_{10,10,10}', f'grid:{single},{single},{single}'),
        ('GRID_10', f'grid:{single}'),
        ('LOCAL_10', f'local:{single}'),
        ('FULL, FULL', 'full,full'),
        ('FULL, LOCAL_10', f'full,local:{single}'),
        ('FULL, GRID_10', f'full,grid:{single}'),
        ('Trainable E', 'learned'),
    ):
        yield name, {'model.heads': heads}
    # Evaluations of runs above. The paper took the drop rate that was best on the images it reports
    # (experiments/figures/fig4_pruning.py finds that one); half is a guess.
    for name, heads, pruning in (
        ('FULL', 'full', 'full:drop=0.5'),
        (_LOCAL_GRID, f'{local},{grid}', 'local:drop=0.5,grid:drop=0.5'),
    ):
        yield f'{name} + ContextPruning', {'model.heads': heads, 'eval.pruning': pruning}


def table2() -> Iterator[Row]:
    """Yields (name, overrides of fields) for each row of Table 2, which are rows of Table 1."""
    names = ('Baseline', 'FULL', _LOCAL_GRID, f'{_LOCAL_GRID} + ContextPruning')
    return (row for row in table1() if row[0] in names)


def peers(sizes: Sequence[int] = (8, 16, 24)) -> Iterator[Row]:
    """Yields (name, overrides of fields) for the published modules and what they compare with.

    Args:
        sizes: as for `table1`.
    """
    names = ('Baseline', 'ASPP', 'FULL', _LOCAL_GRID)
    yield from (row for row in table1(sizes) if row[0] in names)
    yield 'PSPNet', {'model.context': 'psp'}
    yield 'Non-local', {'model.context': 'nonlocal'}
    yield 'CCNet', {'model.context': 'ccnet'}
    yield 'ISA', {'model.context': 'isa'}


def contexts(sizes: Sequence[int], drop_rates: Mapping[str, float]) -> Iterator[Row]:
    """Yields (name, overrides of fields) for published modules and the paper's graphs by kind.

    Args:
        sizes: as for `table1`.
        drop_rates: shares of the contexts that Context Pruning drops, by name of the row whose runs
            are evaluated with it once more.
    """
    rows = dict(table1(sizes)) | dict(peers(sizes))
    for name in (
        'Baseline', 'ASPP', 'PSPNet', 'ISA', 'CCNet', 'FULL', 'LOCAL_{8,16,24}', 'GRID_{8,16,24}',
        _LOCAL_GRID, f'FULL, {_LOCAL_GRID}',
    ):  # fmt: skip
        yield name, rows[name]
    for name, rate in drop_rates.items():
        kinds = dict.fromkeys(re.findall('[a-z]+', rows[name]['model.heads']))
        pruning = ','.join(f'{kind}:drop={rate}' for kind in kinds)
        yield f'{name} + ContextPruning', rows[name] | {'eval.pruning': pruning}
