"""Compiles attention alone for an accelerator that this machine does not have: kernels and traffic.

    python -m experiments.ahead.attention --target=h100 --out=docs/attention_ahead.csv

Nothing is executed; the compilers come with the extra `aot`. Every row of the CSV file is one head
on a map of 128 x 256 in bfloat16, forward or with backward, by XLA's engine or by what 'auto'
takes: the kernels that a call starts, the bytes of device memory that it moves, and how many of
these do not belong to the fused kernels themselves. Prints the table of docs/performance.md.
"""

import argparse
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.ahead import accelerators, cost, kept_rows
from experiments.common import cli
from ggcf_jax.attention import Graph, attend, parse
from ggcf_jax.errors import InputError

FUSED = '__cudnn$'  # how the custom calls of fused kernels begin
MAP = (128, 256)  # height and width of the feature map of Cityscapes
BANDWIDTH = {'h100': 3.35e12}  # bytes/s; NVIDIA H100 SXM data sheet


@dataclasses.dataclass(frozen=True)
class Case:
    """An attention to compile.

    Attributes:
        head: graph as in `config.model.heads`.
        batch: number of images.
        height: height of the map in positions.
        width: width of the map.
        heads: number of heads, which share v.
        channels: number of channels of q, k and v of a head.
        backward: whether the gradients of q, k and v are computed as well.
        implementation: 'auto' or 'xla'.
    """

    head: str
    batch: int
    height: int
    width: int
    heads: int
    channels: int
    backward: bool
    implementation: str


@dataclasses.dataclass(frozen=True)
class Program:
    """Figures of a compiled program.

    Attributes:
        kernels: number of kernels that a call starts.
        fused: number of these that are fused attention.
        traffic: bytes of device memory that a call reads and writes.
        moved: bytes of these that the other kernels read and write.
        temporary: temporary memory, bytes.
    """

    kernels: int
    fused: int
    traffic: int
    moved: int
    temporary: int


def compile_case(case: Case, target: str) -> Program:
    """Compiles a case in bfloat16.

    Args:
        case: the attention.
        target: key of `accelerators.TARGETS`, of one device.

    Raises:
        InputError: the compiler of the target is not installed.
    """
    chips = accelerators.devices(accelerators.TARGETS[target])[:1]
    mesh = Mesh(np.array(chips), ('data',), axis_types=(AxisType.Auto,))
    (graph,) = parse(case.head)
    size = case.batch, case.height, case.width

    def of_heads(heads: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            (*size, heads, case.channels),
            jnp.bfloat16,
            sharding=NamedSharding(mesh, PartitionSpec()),
        )

    q, v = of_heads(case.heads), of_heads(1)
    run = functools.partial(_run, graph, case.implementation, case.backward)
    with jax.set_mesh(mesh), accelerators.tracing(chips):
        lowered = jax.jit(run).lower(q, q, v, q)
    compiled = lowered.compile(accelerators.COMPILER_OPTIONS[accelerators.TARGETS[target].platform])
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    assert text is not None and memory is not None
    return Program(
        kernels=cost.operations(text),
        fused=len(re.findall(f'custom_call_target="{re.escape(FUSED)}', text)),
        traffic=cost.traffic(text),
        moved=cost.traffic(text, without=FUSED),
        temporary=memory.temp_size_in_bytes,
    )


def _run(
    graph: Graph,
    implementation: str,
    backward: bool,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    do: jax.Array,
) -> Sequence[jax.Array]:
    def f(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, graph, implementation=implementation)  # type: ignore[call-overload]  # a text

    if not backward:
        return [f(q, k, v)]
    o, pull = jax.vjp(f, q, k, v)
    return [o, *pull(do)]


def compile_all(options: argparse.Namespace) -> None:
    """Compiles the cases of the command line and writes the CSV file anew.

    Raises:
        InputError: an unknown target, or the compiler of the target is not installed.
    """
    if options.target not in accelerators.TARGETS:
        raise InputError(
            f'--target={options.target} is not one of {", ".join(accelerators.TARGETS)}'
        )
    compiler = accelerators.compiler(accelerators.TARGETS[options.target])

    def rows() -> Iterator[dict[str, Any]]:
        for head, channels, backward, name in itertools.product(
            options.heads, map(int, options.channels), (False, True), ('xla', 'auto')
        ):
            case = Case(head, 1, *MAP, 1, channels, backward, name)
            yield {
                'target': options.target,
                **dataclasses.asdict(case),
                **dataclasses.asdict(compile_case(case, options.target)),
                'compiler': compiler,
            }

    kept_rows.write(options.out, rows())


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """The lines of a Markdown table: XLA's engine and what 'auto' takes, beside each other.

    Args:
        rows: rows of the CSV file.
    """
    by_case: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        key = row['target'], row['head'], row['channels'], row['backward']
        by_case.setdefault(key, {})[row['implementation']] = row
    lines = [
        '| head | channels | | kernels, XLA | kernels | traffic, XLA | traffic '
        '| beside the fused kernels |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for (target, head, channels, backward), found in by_case.items():
        xla, auto = found['xla'], found['auto']
        passes = 'forward and backward' if backward == 'True' else 'forward'
        moved = int(auto['moved'])
        kernels = f'{int(xla["kernels"]):,} | {int(auto["kernels"]):,}'
        lines.append(
            f'| {head} | {channels} | {passes} | {kernels} '
            f'| {int(xla["traffic"]) / 2**20:,.0f} MiB | {int(auto["traffic"]) / 2**20:,.0f} MiB '
            f'| {moved / 2**20:,.0f} MiB, {moved / BANDWIDTH[target] * 1e6:.0f} us |'
        )
    return lines


def main(options: argparse.Namespace) -> None:
    """Compiles the cases of the command line, unless only the table is wanted, and prints it."""
    if not options.only_print:
        compile_all(options)
    kept_rows.print_table(options.out, table)


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument('--target', default='h100', help='what to compile for [h100]')
    kept_rows.add_arguments(
        parser, ['local:8', 'local:24', 'grid:8', 'grid:24', 'full'], 'docs/attention_ahead.csv'
    )
    parser.add_argument(
        '--channels',
        default=['64', '128'],
        type=cli.comma_list,
        help='comma-separated numbers of channels of q, k and v [64,128]',
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
