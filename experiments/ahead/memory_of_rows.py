"""Memory of the training step with the rows of an image over 1, 2, 4 and 8 GPUs.

    python -m experiments.ahead.memory_of_rows --config=configs/cityscapes.py:r50 --size=1024x2048

compiles the step of a configuration for so many H100s of a machine, with `mesh.space` = their
number, and prints a Markdown table. Nothing is run; the compiler comes with the extra `aot`. Ends
with an error if activations are gathered elsewhere than in the heads.
"""

import sys

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments.ahead import accelerators, collectives, programs
from ggcf_jax.errors import InputError

TARGETS = {target.devices: n for n, target in accelerators.TARGETS.items() if n[:4] == 'h100'}
HEADER = (
    '| `mesh.space` | temporary GiB | state and rows GiB | of the heads, MiB | of the rest, MiB |',
    '|--:|--:|--:|---|---|',
)


def compile_space(
    config: ConfigDict, space: int, height: int, width: int, num_classes: int
) -> programs.Program:
    """The training step for one image whose rows lie on `space` devices.

    Raises:
        InputError: there is no target of so many devices, or the configuration is wrong.
    """
    if space not in TARGETS:
        raise InputError(f'--spaces={space} is not one of {", ".join(map(str, TARGETS))}')
    config = ConfigDict(config).unlock()
    config.mesh.space = space
    config.eval.size_multiple = height  # images of evaluations are not looked at
    case = programs.Case(TARGETS[space], 'train', height, width, 1, config.train.remat)
    return programs.compile_case(config, case, num_classes)


def row(space: int, program: programs.Program) -> str:
    """A line of the table: memory of each device, and what it gets from others by collectives."""
    heads = [c for c in program.collectives if collectives.of_a_head(c)]
    rest = [c for c in program.collectives if not collectives.of_a_head(c)]
    cells = [space, *(f'{x / 2**30:.2f}' for x in (program.temporary, program.arguments))]
    for found in (heads, rest):
        totals = collectives.totals(found).items()
        told = (f'{total.count} {kind} {total.bytes / 2**20:.1f}' for kind, total in totals)
        cells.append(', '.join(told) or 'none')
    return f'| {" | ".join(map(str, cells))} |'


def main(argv: list[str]) -> int:
    jax.config.update('jax_platforms', 'cpu')  # an accelerator here is left alone
    given = flags.FLAGS
    wrong = []
    try:
        if len(argv) > 1 or given.config is None:
            raise InputError('give --config=configs/NAME.py and flags as --name=value')
        height, _, width = given.size.partition('x')
        if not (height + width).isdecimal():
            raise InputError(f'--size={given.size} is not a size such as 1024x2048')
        print('\n'.join(HEADER), flush=True)
        for space in map(int, given.spaces):
            program = compile_space(given.config, space, int(height), int(width), given.classes)
            print(row(space, program), flush=True)
            wrong += [
                f'space {space}: {c.kind} of {", ".join(c.arrays)}, from {c.source}'
                for c in collectives.gathers(program.collectives)
            ]
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for line in wrong:
        print(f'error: activations are gathered: {line}', file=sys.stderr)
    return 1 if wrong else 0


if __name__ == '__main__':
    # Here, as another script that is imported beside this one has a flag `config` too.
    config_flags.DEFINE_config_file('config', lock_config=True)
    flags.DEFINE_string('size', '1024x2048', 'Height x width of the image.')
    flags.DEFINE_list('spaces', ['1', '2', '4', '8'], 'Numbers of devices.')
    flags.DEFINE_integer('classes', 19, 'Classes of the data set.')
    app.run(main)
