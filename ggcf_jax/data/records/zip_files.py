"""Published zip files, read in place without unpacking them to disk."""

import contextlib
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

from ggcf_jax.errors import InputError


class Zip:
    """A zip file, open for reading; threads may share it.

    Attributes:
        path: path of the zip file.
        sizes: member name -> unpacked size in bytes.
    """

    def __init__(self, path: pathlib.Path):
        """Reads the table of contents.

        Args:
            path: path of the zip file.

        Raises:
            InputError: the file is damaged or cannot be read.
        """
        self.path = path
        try:
            self._file = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            # The table of contents is a zip's last part: an interrupted download has none.
            raise InputError(
                f'{path} cannot be read ({error}); it has {_bytes(path)} bytes: compare that with '
                'the published file and download it again'
            ) from error
        self.sizes = {info.filename: info.file_size for info in self._file.infolist()}

    def read(self, member: str) -> bytes:
        """Reads a member and verifies its checksum.

        Args:
            member: name of the member.

        Raises:
            InputError: the member is damaged, or the file cannot be read.
        """
        try:
            return self._file.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise InputError(
                f'{self.path}: {member} cannot be read ({error}); the zip file is damaged, '
                'download it again'
            ) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextlib.contextmanager
def open_zips(
    manual_dir: str | None, names: tuple[str, ...], website: str
) -> Iterator[dict[str, Zip]]:
    """Opens zip files for the length of a `with` block.

    Args:
        manual_dir: folder of the zip files, `config.data.manual_dir`.
        names: file names of the zip files.
        website: address they are published at, for error messages.

    Yields:
        File name -> opened zip file.

    Raises:
        InputError: there is no such folder, or some of the zip files are missing or damaged.
    """
    wanted = f'it must hold {", ".join(names)} from {website}, as downloaded and not unpacked'
    if not manual_dir:
        raise InputError(
            f'config.data.manual_dir is not set; pass --config.data.manual_dir=DIR: {wanted}'
        )
    root = pathlib.Path(manual_dir).expanduser()
    if not root.is_dir():
        raise InputError(f'config.data.manual_dir={manual_dir!r} is not a directory; {wanted}')
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        found = sorted(path.name for path in root.iterdir() if path.suffix.lower() == '.zip')
        raise InputError(
            f'config.data.manual_dir={manual_dir!r} has no {", ".join(missing)}; {wanted}; '
            f'the zips there are {", ".join(found) or "none"}'
        )
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(contextlib.closing(Zip(root / name))) for name in names}


def _bytes(path: pathlib.Path) -> str:
    """Size of a file as messages show it."""
    try:
        return f'{path.stat().st_size:,}'
    except OSError:
        return 'an unknown number of'
