"""Text files that people write: lists of files and of classes."""

import codecs
import pathlib

from ggcf_jax.errors import InputError

_MARKS = {
    codecs.BOM_UTF8: 'utf-8-sig',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}


def read(path: pathlib.Path, *, any_bytes: bool = False) -> str:
    """Reads a text in UTF-8, or in UTF-16 if it begins with its byte order mark.

    Args:
        path: path of the file.
        any_bytes: whether bytes that are no UTF-8 are kept as they are (PEP 383), as in the names
            of files.

    Raises:
        InputError: the file cannot be read, or is no such text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error
    encoding = next((e for mark, e in _MARKS.items() if content.startswith(mark)), 'utf-8')
    if encoding == 'utf-8' and b'\0' in content:
        raise InputError(f'{path} is no text in UTF-8; save it as UTF-8')
    try:
        return content.decode(encoding, 'surrogateescape' if any_bytes else 'strict')
    except UnicodeError as error:
        raise InputError(f'{path} is no text in UTF-8 ({error}); save it as UTF-8') from error
