"""Markdown tables of the attention benchmark, from the JSON files of its cases."""

import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ggcf_jax import json_files
from ggcf_jax.errors import InputError

SHARDED = 'ours, a device a core'  # our engine, sharded over all devices
GEMM = 2 * 2048**3  # FLOPs of the product that the benchmark times beside each case

Timing = dict[str, Any]  # 'wall', 'cpu', 'median', 'runs'; or 'error'
Timings = dict[str, Timing]  # by contender
Result = dict[str, Any]  # content of the JSON file of a case
Results = Mapping[str, Result]  # by case


def _ms(timing: Timing) -> str:
    return '-' if 'wall' not in timing else f'{timing["wall"] * 1e3:.1f}'


def _peers(part: Timings, ours: str) -> dict[str, float]:
    """Returns the time of each peer over that of contender `ours`, of one direction."""
    return {
        name: t['wall'] / part[ours]['wall']
        for name, t in part.items()
        if name not in ('ours', SHARDED, 'gemm') and 'wall' in t
    }


def _ratios(part: Timings) -> str:
    """Formats the ratios of one direction, the best peer first: 'halo 3.1, flex 2.5'."""
    ratios = _peers(part, 'ours')
    ordered = sorted(ratios, key=ratios.__getitem__)
    failed = [f'{name} none' for name, t in part.items() if 'error' in t]
    return ', '.join([f'{name} {ratios[name]:.1f}' for name in ordered] + failed)


def _sharded(part: Timings) -> str:
    """Formats milliseconds with a device a core, and the best peer over them: '35.2 (1.4)'."""
    if 'wall' not in part.get(SHARDED, {}):
        return '-'
    return f'{_ms(part[SHARDED])} ({min(_peers(part, SHARDED).values()):.1f})'


def _rate(result: Result, part: str, factor: float) -> float:
    """Returns the share of the GEMM rate that the exact FLOPs reach."""
    timing = result[part]
    return result['flops'] * factor * timing['gemm']['wall'] / GEMM / timing['ours']['wall']


def _graph_rows(results: Results) -> Iterator[str]:
    yield (
        '| graph | map, width | forward ms | peers / ours | a device a core (best peer) '
        '| f+b ms | peers / ours | a device a core | GEMM rate f, f+b | temporaries MiB |'
    )
    yield '|---|---|--:|---|--:|--:|---|--:|--:|--:|'
    for name, r in results.items():
        kind, size, d = name.split('/')
        memory = ', '.join(f'{m / 2**20:.0f}' for m in r['memory'])
        # 2 products forward; 5 more backward, the recomputed scores among them: 2.5 times.
        rates = f'{_rate(r, "forward", 1):.0%}, {_rate(r, "both", 3.5):.0%}'
        yield (
            f'| {kind} | {size}, {d[1:]} | {_ms(r["forward"]["ours"])} '
            f'| {_ratios(r["forward"])} | {_sharded(r["forward"])} '
            f'| {_ms(r["both"]["ours"])} | {_ratios(r["both"])} | {_sharded(r["both"])} '
            f'| {rates} | {memory} |'
        )


def _scaling_rows(results: Results) -> Iterator[str]:
    yield '| map | positions | forward ms | f+b ms | us a position, f+b | temporaries MiB, f+b |'
    yield '|---|--:|--:|--:|--:|--:|'
    for name, r in results.items():
        size = name.split('/')[1]
        n = math.prod(map(int, size.split('x')))
        both = r['both']['ours']
        yield (
            f'| {size} | {n} | {_ms(r["forward"]["ours"])} | {_ms(both)} '
            f'| {both["wall"] / n * 1e6:.2f} | {r["memory"][1] / 2**20:.1f} |'
        )


def _other_rows(results: Results) -> Iterator[str]:
    for name, r in results.items():
        for part in ('forward', 'both'):
            if part in r:
                times = ', '.join(f'{n} {_ms(t)} ms' for n, t in r[part].items())
                yield f'- {name}, {"forward" if part == "forward" else "f+b"}: {times}'


def tables(results: Results) -> list[str]:
    """Returns the lines of all tables."""
    graph: dict[str, Result] = {}
    scaling: dict[str, Result] = {}
    other: dict[str, Result] = {}
    for name, result in results.items():
        if name.startswith('scaling'):
            scaling[name] = result
        elif 'memory' in result:
            graph[name] = result
        else:
            other[name] = result
    lines: list[str] = []
    for found, rows in ((graph, _graph_rows), (scaling, _scaling_rows), (other, _other_rows)):
        if found:
            lines += [*rows(found), '']
    return lines


def read(folder: pathlib.Path) -> dict[str, Result]:
    """Reads the results in a folder, in the order in which they were written.

    Raises:
        InputError: a file is damaged.
    """
    results = {}
    for path in sorted(folder.glob('*.json'), key=lambda p: p.stat().st_mtime_ns):
        try:
            result = json_files.parse_object(path.read_bytes())
            case = json_files.need(result, 'case', json_files.is_text, 'a text')
        except ValueError as error:
            raise InputError(f'{path} is damaged ({error}); delete it') from error
        results[case] = result
    return results


def write_table(folder: pathlib.Path) -> None:
    """Writes <folder>/table.md from the JSON files in the folder."""
    (folder / 'table.md').write_text('\n'.join(tables(read(folder))))
