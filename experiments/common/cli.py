"""The command line of the analyses."""

import argparse
import pathlib
import sys
from collections.abc import Callable

from absl import logging

from ggcf_jax.errors import InputError


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with --out; `description` is the docstring of the analysis."""
    made = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument('--out', required=True, type=pathlib.Path, help='folder of the results')
    return made


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Calls `main` with the parsed options; a mistake of the user's ends in one line and code 2."""
    logging.set_verbosity(logging.ERROR)  # what libraries tell would drown our own lines
    try:
        main(parser.parse_args())
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
