"""Files that are written atomically: after an interruption they are complete or absent."""

import contextlib
import os
import pathlib
import stat
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`, which replaces it when the block succeeds.

    The folder is made. Until then an existing file stays as it is; the name of the temporary one
    begins with a dot and ends in `.part`, and an exception removes it. A new file gets mode 0644,
    a replaced one keeps its mode.

    Args:
        path: file to write.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.part', dir=path.parent)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        os.chmod(temporary, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(path: str | pathlib.Path, content: bytes, *, sync: bool = False) -> None:
    """Writes a file by `replacing`.

    Args:
        path: file to write.
        content: what it shall hold.
        sync: whether to wait until the content is on the disk and would survive a power failure.
    """
    # The inner block closes the file before the outer one renames it.
    with replacing(path) as temporary, temporary.open('wb') as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
