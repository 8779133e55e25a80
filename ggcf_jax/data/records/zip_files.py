"""Published zip files, read in place, and folders that they were unpacked into."""

import contextlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping

from ggcf_jax.data.records import staging
from ggcf_jax.data.records.builder import Origin
from ggcf_jax.errors import InputError


class Zip:
    """A zip file, open for reading; threads may share it.

    Attributes:
        path: path of the zip file.
        sizes: member name -> unpacked size in bytes.
        checksums: member name -> CRC-32.
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
        self.checksums = {info.filename: info.CRC for info in self._file.infolist()}

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


class Unpacked:
    """A folder that a zip file was unpacked into, in the place of a `Zip`.

    Attributes:
        path: folder that the names of members are relative to.
        sizes: member name -> size in bytes.
        checksums: nothing; files would have to be read for it.
    """

    def __init__(self, path: pathlib.Path, top: str):
        """Lists the files, through links, too.

        Args:
            path: folder that holds `top`.
            top: folder that all members of the zip lie in.
        """
        self.path = path
        self.sizes: dict[str, int] = {}
        self.checksums: dict[str, int] = {}
        for parent, folders, names in os.walk(path / top, followlinks=True):
            folders.sort()
            place = pathlib.Path(parent)
            for name in sorted(names):
                file = place / name
                if not name.startswith('.') and file.is_file():  # no ._x of macOS, no dangling link
                    self.sizes[file.relative_to(path).as_posix()] = file.stat().st_size

    def read(self, member: str) -> bytes:
        """Reads a member.

        Args:
            member: name of the member.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            return (self.path / member).read_bytes()
        except OSError as error:
            raise InputError(f'{self.path / member}: the file cannot be read: {error}') from error

    def close(self) -> None:
        """There is nothing to close."""


Archive = Zip | Unpacked


def origin(*members: tuple[Archive, str]) -> Origin:
    """What a record is made from.

    Args:
        members: archive and name of each file of the record.
    """
    sizes = [archive.sizes[name] for archive, name in members]
    checksums = [archive.checksums.get(name) for archive, name in members]
    return Origin(f'{sizes}', '' if None in checksums else f'{checksums}')


@contextlib.contextmanager
def open_zips(
    manual_dir: str | None, tops: Mapping[str, str], website: str
) -> Iterator[dict[str, Archive]]:
    """Opens zip files, or the folders that they were unpacked into, for a `with` block.

    A zip `x.zip` whose members lie in `top/` may also be a folder `top/` or `x/top/` in its place.

    Args:
        manual_dir: folder of the zip files, `config.data.manual_dir`.
        tops: file name of each zip file -> the folder that all of its members lie in.
        website: address they are published at, for error messages.

    Yields:
        File name -> opened zip file or folder.

    Raises:
        InputError: there is no such folder, or some of the zip files are missing or damaged.
    """
    folders = ', '.join(dict.fromkeys(f'{top}/' for top in tops.values()))
    wanted = (
        f'it must hold {", ".join(tops)} from {website}, as downloaded, or what is in them '
        f'({folders})'
    )
    if not manual_dir:
        raise InputError(
            f'config.data.manual_dir is not set; pass --config.data.manual_dir=DIR: {wanted}'
        )
    parts = {*tops, *tops.values(), *(pathlib.Path(name).stem for name in tops)}
    root = staging.local(
        manual_dir, 'config.data.manual_dir', lambda name: name.partition('/')[0] in parts
    )
    if not root.is_dir():
        raise InputError(f'config.data.manual_dir={manual_dir!r} is not a directory; {wanted}')
    found_at = {name: _place(root, name, top) for name, top in tops.items()}
    missing = [name for name, place in found_at.items() if place is None]
    if missing:
        found = sorted(path.name for path in root.iterdir() if path.suffix.lower() == '.zip')
        raise InputError(
            f'config.data.manual_dir={manual_dir!r} has no {", ".join(missing)}; {wanted}; '
            f'the zips there are {", ".join(found) or "none"}'
        )
    with contextlib.ExitStack() as stack:
        archives: dict[str, Archive] = {}
        for name, place in found_at.items():
            assert place is not None
            archive = Unpacked(place, tops[name]) if place.is_dir() else Zip(place)
            archives[name] = stack.enter_context(contextlib.closing(archive))
        yield archives


def _place(root: pathlib.Path, name: str, top: str) -> pathlib.Path | None:
    """The zip file, or the folder that holds what is in it."""
    if (root / name).is_file():
        return root / name
    folders = (root, root / pathlib.Path(name).stem)
    return next((folder for folder in folders if (folder / top).is_dir()), None)


def _bytes(path: pathlib.Path) -> str:
    """Size of a file as messages show it."""
    try:
        return f'{path.stat().st_size:,}'
    except OSError:
        return 'an unknown number of'
