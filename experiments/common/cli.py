"""Command lines of the experiments.

Scripts define their arguments in `make_parser`, never when they are imported, so that any of them
can be imported together.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from ggcf_jax.errors import InputError

_PREFIX = '--config.'


def make_parser(description: str | None, *, out: bool = True) -> argparse.ArgumentParser:
    """Builds a parser that shows the docstring of a script as its help.

    Args:
        description: docstring of the script, shown as it is wrapped there.
        out: whether to add --out, the folder of the results.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if out:
        parser.add_argument('--out', required=True, type=pathlib.Path, help='folder of the results')
    return parser


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Calls `main` with the parsed command line; an InputError becomes one line and exit code 2.

    Args:
        main: script to run.
        parser: its command line.
    """
    logging.set_verbosity(logging.ERROR)  # library logs would drown ours
    try:
        main(parser.parse_args())
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


def parse_with_overrides(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line that may hold overrides of the form --config.field=value.

    Args:
        parser: command line of the script; other unknown arguments are its errors.
        arguments: command line, or None for that of the process.

    Returns:
        The options, and the overrides as 'field=value'.
    """
    options, rest = parser.parse_known_args(arguments)
    unexpected = [argument for argument in rest if not argument.startswith(_PREFIX)]
    if unexpected:
        parser.error(f'unexpected {unexpected}; overrides are written {_PREFIX}field=value')
    return options, [argument.removeprefix(_PREFIX) for argument in rest]


def parse_override(text: str) -> tuple[str, str]:
    """Splits 'field=value' at its first equals sign.

    Raises:
        InputError: a text without a field or an equals sign.
    """
    field, equals, value = text.partition('=')
    if not (field and equals):
        raise InputError(f'override {text!r} is not of the form field=value')
    return field, value


@dataclasses.dataclass(frozen=True)
class LoadedConfig:
    """A configuration as `main.py` would load it.

    Attributes:
        path: --config, with the variant after a colon where there is one.
        overrides: overridden field -> its parsed value.
        config: the locked configuration with the overrides applied.
    """

    path: str
    overrides: dict[str, object]
    config: ConfigDict


def config_file(path: str) -> pathlib.Path:
    """Returns the file of a --config value, without the variant that may follow a colon.

    Raises:
        InputError: no such file.
    """
    file = pathlib.Path(path.partition(':')[0])
    if not file.is_file():
        raise InputError(f'--config={path}: there is no such file')
    return file


def load_config(path: str, overrides: Sequence[str]) -> LoadedConfig:
    """Loads a configuration file with overrides, parsed as on the command line of `main.py`.

    Args:
        path: configuration file, with its variant where there is one: configs/x.py:variant.
        overrides: 'field=value' texts.

    Raises:
        InputError: no such file, an override without '=', an unknown field, or a value of the wrong
            type.
    """
    config_file(path)
    for override in overrides:
        parse_override(override)
    arguments = [f'{_PREFIX}{override}' for override in overrides]
    command = ['', f'--config={path}', *arguments]
    # Flags of its own: absl's global ones belong to whoever runs the process.
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        'config', flag_values=values, sys_argv=command, lock_config=True
    )
    try:
        values(command)
    except (AttributeError, flags.Error) as error:  # an unknown field, a value of the wrong type
        raise InputError(f'{path} with {" ".join(arguments)}: {error}') from None
    flag = values['config']
    return LoadedConfig(path, config_flags.get_override_values(flag), flag.value)
