"""Names of records as paths: what a data set calls an image becomes the name of a file."""

import re

from ggcf_jax.errors import InputError

_FORBIDDEN = re.compile(r'[\\\x00-\x1f\x7f-\x9f]')


def check(name: str, where: str) -> str:
    """Returns a name that stays inside the folder that it is put into, or refuses it.

    Slashes make subfolders. Whoever prepared a data set chooses the names of its records: an
    absolute one, or one with `..`, would write anywhere.

    Args:
        name: name of a record.
        where: what has this name, for the message.

    Raises:
        InputError: an absolute name, one with an empty part, `.` or `..`, with a backslash (a
            separator elsewhere), or with control characters.
    """
    parts = name.split('/')
    if _FORBIDDEN.search(name) or any(part.strip() in ('', '.', '..') for part in parts):
        raise InputError(
            f'{where} is called {name!r:.80}, which cannot be the name of a file inside a folder; '
            'rename it in the data set'
        )
    return name
