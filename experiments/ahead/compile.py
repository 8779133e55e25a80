"""Compiles training and evaluation steps for accelerators that this machine does not have.

    python -m experiments.ahead.compile --config=configs/cityscapes.py:r101 \\
        --targets=h100,v5e --batches=1,2 --remats=none,inplace_abn,block --out=docs/memory.csv

Nothing is executed; the compilers come with the extra `aot`. Every program becomes a row of the CSV
file: memory per device, FLOPs, collectives with their bytes. A program whose row is there with the
same configuration, jax and compiler is skipped, so that an interrupted command resumes; a
ResNet-101 takes minutes to compile. Exits with an error if a program gathers activations.
"""

import argparse
import dataclasses
import itertools
import pathlib
import sys
import time

import jax

from experiments.ahead import accelerators, collectives, program_table, programs
from experiments.common import cli
from experiments.common.cli import LoadedConfig
from ggcf_jax.errors import InputError
from ggcf_jax.models.layers.remat import REMATS


def cases(options: argparse.Namespace, loaded: LoadedConfig) -> list[programs.Case]:
    """Returns the programs that the command line asks for.

    Args:
        options: command line.
        loaded: configuration of the command line.

    Raises:
        InputError: an unknown target or step, or a text that is not a size or a number.
    """
    for name, values, allowed in (
        ('targets', options.targets, accelerators.TARGETS),
        ('steps', options.steps, programs.STEPS),
    ):
        for value in values:
            if value not in allowed:
                raise InputError(f'--{name}={value} is not one of {", ".join(allowed)}')
    height, width = loaded.config.data.crop_size
    sizes = [_parse_size(text) for text in options.sizes or [f'{height}x{width}']]
    remats = options.remats or [loaded.config.train.remat]
    found = []
    for target, step, size, batch, remat in itertools.product(
        options.targets, options.steps, sizes, options.batches, remats
    ):
        if not batch.isdecimal() or int(batch) < 1:
            raise InputError(f'--batches={batch} is not a number of images')
        case = programs.Case(
            target, step, *size, int(batch), 'none' if step == 'evaluate' else remat
        )
        if case not in found:
            found.append(case)
    return found


def _parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height + width).isdecimal():
        raise InputError(f'--sizes={text} is not a size such as 769 or 1024x2048')
    return int(height), int(width or height)


@dataclasses.dataclass(frozen=True)
class Output:
    """Where the results go.

    Attributes:
        table: CSV file that rows are appended to.
        programs: directory for the compiled programs as text; None does not save them.
    """

    table: pathlib.Path
    programs: pathlib.Path | None


def run(case: programs.Case, loaded: LoadedConfig, num_classes: int, output: Output) -> list[str]:
    """Compiles a program and appends its row, unless the table has it.

    Args:
        case: program to compile.
        loaded: configuration.
        num_classes: number of classes of the data set.
        output: where the results go.

    Returns:
        One line for each collective that gathers activations.
    """
    overrides = sorted(loaded.overrides.items())
    key = {
        'config': loaded.path,
        'overrides': '; '.join(f'{field}={value}' for field, value in overrides),
        **dataclasses.asdict(case),
        'jax': jax.__version__,
        'compiler': accelerators.compiler(accelerators.TARGETS[case.target]),
    }
    name = ' '.join(str(value) for value in dataclasses.astuple(case))
    for row in program_table.read(output.table):
        if all(row[column] == str(key[column]) for column in program_table.KEY):
            print(f'{name}: already in {output.table}', flush=True)
            return [f'{name}: {text}' for text in program_table.gathers_of_row(row)]
    text_file = None
    if output.programs is not None:
        text_file = output.programs / f'{name.replace(" ", "_").replace(":", "_")}.hlo.gz'
    began = time.perf_counter()
    gathered: list[collectives.Collective] = []
    measured: dict[str, object]
    try:
        program = programs.compile_case(loaded.config, case, num_classes, text_file)
        gathered = collectives.gathers(program.collectives)
        measured = {
            'memory': program.memory,
            'temporary': program.temporary,
            'arguments': program.arguments,
            'flops': program.flops,
            'traffic': program.traffic,
            'operations': program.operations,
            'cycles': program.cycles,
            'collectives': program_table.format_collectives(program.collectives),
        }
        outcome = f'{program.memory / 2**30:.2f} GiB'
    except programs.TooLarge as error:
        measured = {'memory': error.memory}
        outcome = f'does not fit, needs {error.memory / 2**30:.2f} GiB'
    seconds = round(time.perf_counter() - began)
    date = time.strftime('%Y-%m-%d')
    program_table.append(output.table, {**key, **measured, 'seconds': seconds, 'date': date})
    print(f'{name}: {outcome}, compiled in {seconds} s', flush=True)
    return [
        f'{name}: {c.kind} of {", ".join(c.arrays)}, {c.bytes} bytes, {c.times} times, '
        f'from {c.source}'
        for c in gathered
    ]


def main(options: argparse.Namespace) -> int:
    """Compiles the programs of the command line; returns the exit code."""
    jax.config.update('jax_platforms', 'cpu')  # an accelerator of this machine stays untouched
    loaded = cli.load_config(options.config, options.config_overrides)
    output = Output(options.out, options.keep)
    gathers = [
        line
        for case in cases(options, loaded)
        for line in run(case, loaded, options.classes, output)
    ]
    for line in gathers:
        print(f'error: activations are gathered: {line}', file=sys.stderr)
    return 1 if gathers else 0


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    cli.add_config(parser)
    parser.add_argument(
        '--targets',
        default=['h100', 'v5e'],
        type=cli.comma_list,
        help=f'comma-separated targets, of {", ".join(accelerators.TARGETS)} [h100,v5e]',
    )
    parser.add_argument(
        '--steps',
        default=['train'],
        type=cli.comma_list,
        help=f'comma-separated steps, of {", ".join(programs.STEPS)} [train]',
    )
    parser.add_argument(
        '--sizes',
        type=cli.comma_list,
        help='comma-separated image sizes, 769 or 1024x2048 [data.crop_size]',
    )
    parser.add_argument(
        '--batches',
        default=['1'],
        type=cli.comma_list,
        help='comma-separated numbers of images on each device [1]',
    )
    parser.add_argument(
        '--remats',
        type=cli.comma_list,
        help=f'comma-separated rematerialisations, of {", ".join(REMATS)} [train.remat]',
    )
    parser.add_argument(
        '--classes', default=19, type=int, help='number of classes of the data set [19]'
    )
    parser.add_argument(
        '--out',
        default='docs/memory.csv',
        type=cli.path,
        help='CSV file that rows are appended to [docs/memory.csv]',
    )
    parser.add_argument(
        '--keep', type=cli.path, help='directory for the compiled programs as text [none]'
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
