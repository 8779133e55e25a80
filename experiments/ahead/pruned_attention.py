"""Compiles attention with Context Pruning for an H100 that this machine does not have.

    python -m experiments.ahead.pruned_attention --out=docs/attention_pruned.csv

Nothing is executed; the compiler comes with the extra `aot`. Every row of the CSV file is an
attention that drops half of each query's neighbours on a map of 128 x 256 with 64 channels in
bfloat16, forward, of one head or of eight images with six heads: the kernels that a call starts and
the bytes of device memory that it moves. Prints the table of docs/performance.md.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from experiments.ahead import accelerators, cost, kept_rows
from experiments.ahead.attention import BANDWIDTH, MAP
from experiments.common import cli
from ggcf_jax.attention import attend, parse

CHANNELS = 64
DROP_RATE = 0.5
MANY = (8, 6)  # images and heads
CASES = ((1, 1), MANY)
TARGET = 'h100'


def compile_head(head: str, batch: int, heads: int) -> dict[str, object]:
    """Compiles a graph with pruning and returns its row of the CSV file.

    Args:
        head: graph as in `config.model.heads`.
        batch: number of images.
        heads: number of heads, which share v.

    Raises:
        InputError: the compiler of the target is not installed.
    """
    goal = accelerators.TARGETS[TARGET]
    chips = accelerators.devices(goal)[:1]
    (graph,) = parse(head)
    q, v = (
        jax.ShapeDtypeStruct(
            (batch, *MAP, n, CHANNELS), jnp.bfloat16, sharding=SingleDeviceSharding(chips[0])
        )
        for n in (heads, 1)
    )
    run = jax.jit(lambda q, k, v: attend(q, k, v, graph, drop_rate=DROP_RATE))
    with accelerators.tracing(chips):
        lowered = run.lower(q, q, v)
    compiled = lowered.compile(accelerators.COMPILER_OPTIONS[goal.platform])
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None
    return {
        'target': TARGET,
        'head': head,
        'batch': batch,
        'heads': heads,
        'kernels': cost.operations(text),
        'traffic': cost.traffic(text),
        'temporary': memory.temp_size_in_bytes,
        'compiler': accelerators.compiler(goal),
    }


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """The lines of a Markdown table.

    Args:
        rows: rows of the CSV file.
    """
    found = {(row['head'], row['batch']): row for row in rows}
    batch, heads = MANY
    many = f'{batch} images, {heads} heads'
    lines = [
        f'| head | kernels | {many} | traffic | memory | {many} |',
        '|---|--:|--:|--:|--:|--:|',
    ]
    for head in dict.fromkeys(row['head'] for row in rows):
        one, more = (found[head, str(images)] for images, _ in CASES)
        name, traffic = head.replace('|', ' or '), int(one['traffic'])
        memory = [f'{int(row["temporary"]) / 2**30:.2f} GiB' for row in (one, more)]
        lines.append(
            f'| {name} | {int(one["kernels"]):,} | {int(more["kernels"]):,} '
            f'| {traffic / 2**20:,.0f} MiB, {traffic / BANDWIDTH[TARGET] * 1e3:.1f} ms '
            f'| {" | ".join(memory)} |'
        )
    return lines


def main(options: argparse.Namespace) -> None:
    """Compiles the heads of the command line, unless only the table is wanted, and prints it.

    Raises:
        InputError: the compiler is not installed.
    """
    if not options.only_print:
        kept_rows.write(
            options.out, (compile_head(head, *case) for head in options.heads for case in CASES)
        )
    kept_rows.print_table(options.out, table)


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    kept_rows.add_arguments(
        parser,
        ['local:8', 'local:24', 'grid:8', 'full', 'local:8|grid:8'],
        'docs/attention_pruned.csv',
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
