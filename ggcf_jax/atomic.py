"""Files that are whole or not there, whatever interrupts the writing."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends well.

    The folder is made. Until then a file that was there stays as it was; the temporary one begins
    with a dot and ends in `.part`, and an exception removes it.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.part', dir=path.parent)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(path: str | pathlib.Path, content: bytes) -> None:
    """Writes a file by `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
