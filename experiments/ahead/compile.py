"""Compiles training and evaluation steps for accelerators that this machine need not have.

    python -m experiments.ahead.compile --config=configs/cityscapes.py:r101 \\
        --targets=h100,v5e --batches=1,2 --remats=none,inplace_abn,block --out=docs/memory.csv

Nothing is run; the compilers come with the extra `aot`. Every program becomes a row of the CSV
file: memory per device, FLOPs, collectives with their bytes. A program that has a row there with
the same configuration, jax and compiler is skipped, so a run may be cut off and resumed; a
ResNet-101 takes minutes to compile. Ends with an error if a program gathers activations.
"""

import csv
import itertools
import pathlib
import sys
import time

import jax
from absl import app, flags
from ml_collections import config_flags

from experiments.ahead import accelerators, collectives, programs
from ggcf_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_TARGETS = flags.DEFINE_list('targets', 'h100,v5e', f'Of {", ".join(accelerators.TARGETS)}.')
_STEPS = flags.DEFINE_list('steps', 'train', 'train, evaluate.')
_SIZES = flags.DEFINE_list('sizes', None, 'Of images, 769 or 1024x2048 [data.crop_size].')
_BATCHES = flags.DEFINE_list('batches', '1', 'Images on each device.')
_REMATS = flags.DEFINE_list('remats', None, 'none, inplace_abn, block [train.remat].')
_CLASSES = flags.DEFINE_integer('classes', 19, 'Classes of the data set.')
_OUT = flags.DEFINE_string('out', 'docs/memory.csv', 'CSV file that rows are added to.')
_KEEP = flags.DEFINE_string('keep', None, 'Directory for the compiled programs, as text.')

KEY = (
    'config', 'overrides', 'target', 'step', 'height', 'width', 'batch', 'remat', 'jax', 'compiler'
)  # fmt: skip
COLUMNS = (
    *KEY, 'memory', 'temporary', 'arguments', 'flops', 'traffic', 'operations', 'cycles',
    'collectives', 'seconds', 'date',
)  # fmt: skip


def gathers_of_row(row: dict[str, str]) -> list[str]:
    """`collectives.gathers` of a row, as far as it tells: 'all-gather 3 1048576', for each kind."""
    kinds = [kind.split(' ') for kind in row['collectives'].split('; ') if kind]
    return [
        ' '.join(kind)
        for kind in kinds
        if kind[0] in collectives.GATHERS and int(kind[2]) > collectives.LARGEST_GATHER
    ]


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def append(path: pathlib.Path, row: dict) -> None:
    """Adds a row to a CSV file, made if missing."""
    new = not path.exists()
    with path.open('a', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        if new:
            writer.writeheader()
        writer.writerow(row)


def collectives_text(found: tuple[collectives.Collective, ...]) -> str:
    """'all-reduce 320 208735232': kind, count and bytes; kinds separated by semicolons."""
    return '; '.join(f'{kind} {t.count} {t.bytes}' for kind, t in collectives.totals(found).items())


def cases() -> list[programs.Case]:
    """What the flags ask for.

    Raises:
        InputError: a value that there is not.
    """
    config = _CONFIG.value
    for name, values, allowed in (
        ('targets', _TARGETS.value, accelerators.TARGETS),
        ('steps', _STEPS.value, programs.STEPS),
    ):
        for value in values:
            if value not in allowed:
                raise InputError(f'--{name}={value} is not one of {", ".join(allowed)}')
    crop = 'x'.join(map(str, config.data.crop_size))
    sizes = []
    for text in _SIZES.value or [crop]:
        height, _, width = text.partition('x')
        if not (height + width).isdecimal():
            raise InputError(f'--sizes={text} is not a size such as 769 or 1024x2048')
        sizes.append((int(height), int(width or height)))
    found = []
    for target, step, size, batch, remat in itertools.product(
        _TARGETS.value, _STEPS.value, sizes, _BATCHES.value, _REMATS.value or [config.train.remat]
    ):
        if not batch.isdecimal() or int(batch) < 1:
            raise InputError(f'--batches={batch} is not a number of images')
        case = programs.Case(
            target, step, *size, int(batch), 'none' if step == 'evaluate' else remat
        )
        if case not in found:
            found.append(case)
    return found


def run(case: programs.Case, config, path: pathlib.Path) -> list[str]:
    """Compiles a case and adds its row, unless the file has it.

    Returns:
        What is wrong with the program, a line each.
    """
    target = accelerators.TARGETS[case.target]
    overrides = config_flags.get_override_values(flags.FLAGS['config'])
    key = {
        'config': config_flags.get_config_filename(flags.FLAGS['config']),
        'overrides': '; '.join(f'{name}={overrides[name]}' for name in sorted(overrides)),
        **vars(case),
        'jax': jax.__version__,
        'compiler': accelerators.compiler(target),
    }
    name = ' '.join(str(value) for value in vars(case).values())
    for row in read(path):
        if all(row[column] == str(key[column]) for column in KEY):
            print(f'{name}: in {path} already', flush=True)
            return [f'{name}: {text}' for text in gathers_of_row(row)]
    keep = None
    if _KEEP.value:
        keep = pathlib.Path(_KEEP.value) / f'{name.replace(" ", "_").replace(":", "_")}.hlo.gz'
    began = time.perf_counter()
    gathered = []
    try:
        program = programs.compile_case(config, case, _CLASSES.value, keep)
        gathered = collectives.gathers(program.collectives)
        measured = {
            'memory': program.memory,
            'temporary': program.temporary,
            'arguments': program.arguments,
            'flops': program.flops,
            'traffic': program.traffic,
            'operations': program.operations,
            'cycles': program.cycles,
            'collectives': collectives_text(program.collectives),
        }
        told = f'{program.memory / 2**30:.2f} GiB'
    except programs.TooLarge as error:
        measured = {'memory': error.memory}
        told = f'does not fit, needs {error.memory / 2**30:.2f} GiB'
    seconds = round(time.perf_counter() - began)
    append(path, {**key, **measured, 'seconds': seconds, 'date': time.strftime('%Y-%m-%d')})
    print(f'{name}: {told}, compiled in {seconds} s', flush=True)
    return [
        f'{name}: {c.kind} of {", ".join(c.arrays)}, {c.bytes} bytes, {c.times} times, '
        f'from {c.source}'
        for c in gathered
    ]


def main(argv: list[str]) -> int:
    jax.config.update('jax_platforms', 'cpu')  # an accelerator here is left alone
    try:
        if len(argv) > 1 or _CONFIG.value is None:
            raise InputError('give --config=configs/NAME.py and flags as --name=value')
        path = pathlib.Path(_OUT.value)
        wrong = [line for case in cases() for line in run(case, _CONFIG.value, path)]
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for line in wrong:
        print(f'error: activations are gathered: {line}', file=sys.stderr)
    return 1 if wrong else 0


if __name__ == '__main__':
    app.run(main)
