"""Files that are written atomically: after an interruption they are complete or absent.

An object of a bucket is so by nature. What needs a file to write into gets a local one, which is
uploaded when it is complete.
"""

import contextlib
import os
import pathlib
import secrets
import stat
import tempfile
from collections.abc import Iterator

from ggcf_jax import buckets


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary file, which replaces `path` when the block succeeds; it lies beside it.

    The folder is made. Until then an existing file stays as it is; the name of the temporary one
    begins with a dot and ends in `.part`, and an exception removes it. A new file gets the mode
    that the umask gives to any other, so that colleagues can read a workdir; a replaced one keeps
    its mode. In the place of an object of a bucket, the file lies in the folder of temporary files.

    Args:
        path: file to write.
    """
    path = buckets.local_or_not(path)
    if isinstance(path, buckets.BucketPath):
        with tempfile.TemporaryDirectory(prefix='ggcf_jax-') as folder:
            temporary = pathlib.Path(folder) / 'content'
            temporary.touch()
            yield temporary
            buckets.upload(temporary, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
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
    path = buckets.local_or_not(path)
    if isinstance(path, buckets.BucketPath):
        path.write_bytes(content)
        return
    # The inner block closes the file before the outer one renames it.
    with replacing(path) as temporary, temporary.open('wb') as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def create(path: str | pathlib.Path, content: bytes) -> bool:
    """Writes a file if there is none of its name, whoever else tries to at the same moment.

    Args:
        path: file to write, in a folder that exists.
        content: what it shall hold.

    Returns:
        Whether it was written; False leaves an existing file as it is.
    """
    path = buckets.local_or_not(path)
    if isinstance(path, buckets.BucketPath):
        return buckets.create(path, content)
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)  # unlike a renaming this fails if there is such a file
        except FileExistsError:
            return False
        except OSError:  # a file system without links: readers may see the file before its content
            try:
                with path.open('xb') as file:
                    file.write(content)
            except FileExistsError:
                return False
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: pathlib.Path) -> pathlib.Path:
    """Makes an empty file beside another, with the mode that the umask gives."""
    while True:
        # At most 255 bytes are a name; they need not be UTF-8.
        short = os.fsdecode(os.fsencode(path.name)[:200])
        temporary = path.with_name(f'.{short}.{secrets.token_hex(4)}.part')
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return temporary
