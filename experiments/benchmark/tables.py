"""Markdown tables of the attention benchmark, from the JSON files of its cases."""

import json
import math
import pathlib

DEALT = 'ours, a device a core'  # the contender that runs sharded over all devices
GEMM = 2 * 2048**3  # FLOPs of the product that the benchmark times beside each case


def _ms(timing):
    return '-' if 'wall' not in timing else f'{timing["wall"] * 1e3:.1f}'


def _peers(part, ours):
    """Peer -> its time over that of contender `ours`, of one direction."""
    return {
        name: t['wall'] / part[ours]['wall']
        for name, t in part.items()
        if name not in ('ours', DEALT, 'gemm') and 'wall' in t
    }


def _ratios(part):
    """'halo 3.1, flex 2.5' of one direction, best peer first."""
    ratios = _peers(part, 'ours')
    ordered = sorted(ratios, key=ratios.get)
    failed = [f'{name} none' for name, t in part.items() if 'error' in t]
    return ', '.join([f'{name} {ratios[name]:.1f}' for name in ordered] + failed)


def _dealt(part):
    """'35.2 (1.4)': milliseconds with a device a core, and the best peer over them."""
    if 'wall' not in part.get(DEALT, {}):
        return '-'
    return f'{_ms(part[DEALT])} ({min(_peers(part, DEALT).values()):.1f})'


def _rate(result, part, factor):
    """Share of the GEMM rate that the exact FLOPs reach."""
    timing = result[part]
    return result['flops'] * factor * timing['gemm']['wall'] / GEMM / timing['ours']['wall']


def _graph_rows(results):
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
            f'| {_ratios(r["forward"])} | {_dealt(r["forward"])} '
            f'| {_ms(r["both"]["ours"])} | {_ratios(r["both"])} | {_dealt(r["both"])} '
            f'| {rates} | {memory} |'
        )


def _scaling_rows(results):
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


def _other_rows(results):
    for name, r in results.items():
        for part in ('forward', 'both'):
            if part in r:
                times = ', '.join(f'{n} {_ms(t)} ms' for n, t in r[part].items())
                yield f'- {name}, {"forward" if part == "forward" else "f+b"}: {times}'


def tables(results):
    """The lines of all tables over {case: result}."""
    of = {'graph': {}, 'scaling': {}, 'other': {}}
    for name, r in results.items():
        kind = 'scaling' if name.startswith('scaling') else 'graph' if 'memory' in r else 'other'
        of[kind][name] = r
    lines = []
    for kind, rows in (('graph', _graph_rows), ('scaling', _scaling_rows), ('other', _other_rows)):
        if of[kind]:
            lines += [*rows(of[kind]), '']
    return lines


def read(folder):
    """{case: result} of the JSON files in a folder, in the order that they were written."""
    files = sorted(pathlib.Path(folder).glob('*.json'), key=lambda p: p.stat().st_mtime_ns)
    results = (json.loads(path.read_text()) for path in files)
    return {r['case']: r for r in results}


def write_table(folder):
    """Writes <folder>/table.md from the JSON files there."""
    (pathlib.Path(folder) / 'table.md').write_text('\n'.join(tables(read(folder))))
