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

from ggcf_jax import places
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
        parser.add_argument('--out', required=True, type=path, help='folder of the results')
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds --config and --config.field=value overrides, which `parse` collects.

    Args:
        parser: command line of the script.
    """
    parser.add_argument(
        '--config',
        required=True,
        help='configuration, configs/NAME.py[:variant]; --config.field=value overrides a field',
    )
    parser.set_defaults(config_overrides=[])


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parses a command line.

    Args:
        parser: command line of the script.
        arguments: arguments, or None for those of the process.

    Returns:
        The options; with `add_config` also `config_overrides`, a list of 'field=value'.
    """
    options, rest = parser.parse_known_args(arguments)
    if getattr(options, 'config', None):
        options.config = str(places.expand(options.config, '--config'))
    takes_overrides = hasattr(options, 'config_overrides')
    unknown = [each for each in rest if not (takes_overrides and each.startswith(_PREFIX))]
    if unknown:
        hint = f'; overrides are written {_PREFIX}field=value' if takes_overrides else ''
        parser.error(f'unrecognized arguments: {" ".join(unknown)}{hint}')
    if takes_overrides:
        options.config_overrides = [each.removeprefix(_PREFIX) for each in rest]
    return options


def path(text: str) -> pathlib.Path:
    """Makes a path of an argument, as `places.expand` does.

    Raises:
        argparse.ArgumentTypeError: there is no such home directory.
    """
    try:
        return places.expand(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    *,
    writes: Callable[[argparse.Namespace], bool] = lambda options: True,
) -> None:
    """Calls `main` with the parsed command line, and exits where it fails.

    Args:
        main: script to run; returns None or an exit code. An InputError becomes one line on stderr
            and exit code 2.
        parser: command line of the script.
        writes: whether the script writes into --out with these options, if it has that; whether it
            can is then tried first.
    """
    logging.set_verbosity(logging.ERROR)  # library logs would drown ours
    try:
        options = parse(parser)
        out = getattr(options, 'out', None)
        if out is not None and writes(options):
            places.check_writable(out.parent if out.is_file() else out, '--out')
        code = main(options)
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        code = 2
    if code:
        sys.exit(code)


def comma_list(text: str) -> list[str]:
    """Splits the comma-separated value of an argument."""
    return [part.strip() for part in text.split(',')]


def parse_size(text: str) -> tuple[int, int]:
    """Parses HxW, such as 128x256.

    Raises:
        argparse.ArgumentTypeError: a text of another form.
    """
    try:
        h, w = map(int, text.split('x'))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r}; sizes are written 128x256') from error
    return h, w


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
