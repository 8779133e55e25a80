"""Compiles attention alone for a TPU that this machine does not have: estimated cycles.

    python -m experiments.ahead.tpu_attention --out=docs/attention_tpu.csv

Nothing is executed; the compiler comes with the extra `aot`. Every row of the CSV file is one head
of 64 channels on a map of 128 x 256 in bfloat16, forward or with backward, as 'auto' computes it on
a v5e. There are two instruments, in columns of their own:

- `bundles` of the Pallas kernels: instructions (VLIW bundles) of the compiler's final schedule,
  each counted as often as the loops around it run. A bundle takes a cycle where it does not wait,
  so that waiting for memory is left out; branches that are not taken are counted.
- `cycles` of the operations around them: the compiler's own estimates.

Prints the table of docs/performance.md.
"""

import argparse
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from experiments.ahead import accelerators, cost, kept_rows, scaling
from experiments.common import cli
from ggcf_jax.attention import (
    Full,
    Local,
    attend,
    parse,
    target,
    tpu_full,
    tpu_local,
    tpu_sizes,
)
from ggcf_jax.errors import InputError

MAP = (128, 256)  # height and width of the feature map of Cityscapes
CHANNELS = 64
TARGET = 'v5e'
# Milliseconds of a call, forward and with backward.
BUDGETS = {'local:8': (0.8, 2.5), 'local:24': (1.5, 5.0), 'full': (5.0, 15.0)}
_BUNDLE = re.compile(r'\s*(?:0x[0-9a-f]+|0)\s+[A-Z ]*:\s*(>*)')
_KERNEL = re.compile(r'\d+-(.*(?:local|splash).*?)-\d+-final_bundles\.txt')


def trips(head: str) -> tuple[int, int]:
    """Number of programs of the kernels of a head, and of rounds of the loop inside each.

    Args:
        head: graph as in `config.model.heads`, a local or a full one.
    """
    (graph,) = parse(head)
    sizes = tpu_sizes.of_kind(accelerators.devices(accelerators.TARGETS[TARGET])[0].device_kind)
    assert sizes is not None
    if isinstance(graph, Full):
        n = math.prod(MAP)
        return math.prod(n // length for length in tpu_full.blocks(n, n, CHANNELS, sizes.full)), 1
    assert isinstance(graph, Local)
    cut = tpu_local.plan(*MAP, graph.sizes, sizes)
    return math.prod(cut.tiles), cut.chunks


def bundles(text: str, programs: int, rounds: int) -> int:
    """Counts the bundles that a kernel carries out.

    Args:
        text: its final bundles, as the compiler writes them; '>' stands for a loop around.
        programs: number of programs, the outermost loop.
        rounds: number of rounds of a loop inside a program.

    Raises:
        ValueError: no bundle in the text.
    """
    found = [_BUNDLE.match(line) for line in text.splitlines()]
    depths = [len(match[1]) for match in found if match]
    if not depths:
        raise ValueError('there are no bundles in the text')
    return sum((1, programs, programs * rounds)[min(depth, 2)] for depth in depths)


def compile_head(head: str, folder: pathlib.Path, *, backward: bool) -> dict[str, object]:
    """Compiles a head and returns its row of the CSV file.

    Args:
        head: graph as in `config.model.heads`.
        folder: where the compiler writes its schedules; emptied.
        backward: whether the gradients are computed as well.
    """
    device = accelerators.devices(accelerators.TARGETS[TARGET])[0]
    (graph,) = parse(head)
    x = jax.ShapeDtypeStruct(
        (1, *MAP, 1, CHANNELS), jnp.bfloat16, sharding=SingleDeviceSharding(device)
    )

    def run(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array) -> Sequence[jax.Array]:
        o, pull = jax.vjp(lambda q, k, v: attend(q, k, v, graph), q, k, v)
        return [o, *pull(do)] if backward else [o]

    with target.tracing_for('tpu', kind=device.device_kind):
        compiled = jax.jit(run).lower(x, x, x, x).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None
    kernels = {
        match[1]: bundles(file.read_text(), *trips(head))
        for file in folder.iterdir()
        if (match := _KERNEL.fullmatch(file.name)) and 'schedule-analysis' not in file.name
    }
    for file in folder.iterdir():
        file.unlink()
    return {
        'target': TARGET,
        'head': head,
        'backward': backward,
        'kernels': len(kernels),
        'bundles': sum(kernels.values()),
        'cycles': cost.estimated_cycles(text),
        'temporary': memory.temp_size_in_bytes,
        'compiler': accelerators.compiler(accelerators.TARGETS[TARGET]),
    }


def milliseconds(row: dict[str, str]) -> tuple[float, float]:
    """Time of the kernels' bundles and of the other operations' cycles at the chip's clock."""
    kernels, others = (int(row[name]) / scaling.V5E.clock * 1e3 for name in ('bundles', 'cycles'))
    return kernels, others


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """The lines of a Markdown table.

    Args:
        rows: rows of the CSV file.
    """
    lines = [
        '| head | | kernels | their bundles | around them, cycles | together | budget |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        kernels, others = milliseconds(row)
        backward = row['backward'] == 'True'
        lines.append(
            f'| {row["head"]} | {"forward and backward" if backward else "forward"} '
            f'| {row["kernels"]} | {kernels:.2f} ms | {others:.2f} ms | {kernels + others:.2f} ms '
            f'| {BUDGETS[row["head"]][backward]} ms |'
        )
    return lines


def main(options: argparse.Namespace) -> None:
    """Compiles the heads of the command line, unless only the table is wanted, and prints it.

    Raises:
        InputError: a head without a budget, or the compiler is not installed.
    """
    unknown = [head for head in options.heads if head not in BUDGETS]
    if unknown:
        raise InputError(f'--heads: {unknown[0]} is not one of {", ".join(BUDGETS)}')
    if not options.only_print:
        with tempfile.TemporaryDirectory() as folder:
            # Read when the compiler is loaded, at the first call.
            os.environ['LIBTPU_INIT_ARGS'] = (
                f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true'
            )
            jax.config.update('jax_enable_compilation_cache', False)  # what is found writes nothing
            kept_rows.write(
                options.out,
                (
                    compile_head(head, pathlib.Path(folder), backward=backward)
                    for head in options.heads
                    for backward in (False, True)
                ),
            )
    kept_rows.print_table(options.out, table)


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    kept_rows.add_arguments(parser, list(BUDGETS), 'docs/attention_tpu.csv')
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
