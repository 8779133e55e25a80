"""Memory of the training step with the rows of an image sharded over 1, 2, 4 and 8 GPUs.

    python -m experiments.ahead.memory_of_rows --config=configs/cityscapes.py:r50 --size=1024x2048

Compiles the step of a configuration for several H100s of a machine, with `mesh.space` = their
number, and prints a Markdown table. Nothing is executed; the compiler comes with the extra `aot`.
Exits with an error if activations are gathered elsewhere than in the heads.
"""

import argparse
import sys

import jax
from ml_collections import ConfigDict

from experiments.ahead import accelerators, collectives, programs
from experiments.common import cli
from ggcf_jax.errors import InputError

# By number of devices.
TARGETS = {
    target.devices: name for name, target in accelerators.TARGETS.items() if name.startswith('h100')
}
HEADER = (
    '| `mesh.space` | temporary GiB | state and rows GiB | collectives of the heads, MiB '
    '| other collectives, MiB |',
    '|--:|--:|--:|---|---|',
)


def compile_space(
    config: ConfigDict, space: int, size: tuple[int, int], num_classes: int
) -> programs.Program:
    """Compiles the training step for one image whose rows are sharded.

    Args:
        config: configuration.
        space: number of devices that the rows are sharded over.
        size: height and width of the image.
        num_classes: number of classes of the data set.

    Raises:
        InputError: there is no target with so many devices, or the configuration is wrong.
    """
    if space not in TARGETS:
        raise InputError(f'--spaces={space} is not one of {", ".join(map(str, TARGETS))}')
    height, width = size
    config = ConfigDict(config).unlock()
    config.mesh.space = space
    config.eval.size_multiple = height  # not used by training, but checked
    case = programs.Case(TARGETS[space], 'train', height, width, 1, config.train.remat)
    return programs.compile_case(config, case, num_classes)


def table_row(space: int, program: programs.Program) -> str:
    """Formats a line of the table: memory of each device, and what collectives bring to it.

    Args:
        space: number of devices that the rows are sharded over.
        program: compiled training step.
    """
    heads = [c for c in program.collectives if collectives.is_in_head(c)]
    rest = [c for c in program.collectives if not collectives.is_in_head(c)]
    cells = [
        str(space), *(f'{x / 2**30:.2f}' for x in (program.temporary, program.arguments))
    ]  # fmt: skip
    for found in (heads, rest):
        totals = collectives.totals(found).items()
        parts = (f'{total.count} {kind} {total.bytes / 2**20:.1f}' for kind, total in totals)
        cells.append(', '.join(parts) or 'none')
    return f'| {" | ".join(cells)} |'


def main(options: argparse.Namespace) -> int:
    """Compiles the steps of the command line; returns the exit code."""
    jax.config.update('jax_platforms', 'cpu')  # an accelerator of this machine stays untouched
    height, _, width = options.size.partition('x')
    if not (height + width).isdecimal():
        raise InputError(f'--size={options.size} is not a size such as 1024x2048')
    config = cli.load_config(options.config, options.config_overrides).config
    gathers = []
    print('\n'.join(HEADER), flush=True)
    for space in map(int, options.spaces):
        program = compile_space(config, space, (int(height), int(width)), options.classes)
        print(table_row(space, program), flush=True)
        gathers += [
            f'space {space}: {c.kind} of {", ".join(c.arrays)}, from {c.source}'
            for c in collectives.gathers(program.collectives)
        ]
    for line in gathers:
        print(f'error: activations are gathered: {line}', file=sys.stderr)
    return 1 if gathers else 0


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    cli.add_config(parser)
    parser.add_argument(
        '--size', default='1024x2048', help='height x width of the image [1024x2048]'
    )
    parser.add_argument(
        '--spaces',
        default=['1', '2', '4', '8'],
        type=cli.comma_list,
        help='comma-separated numbers of devices [1,2,4,8]',
    )
    parser.add_argument(
        '--classes', default=19, type=int, help='number of classes of the data set [19]'
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
