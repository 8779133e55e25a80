"""The files of a prepared split: which one holds a record, and copies of those that are needed.

A split lies in one or several array_record files, its shards. Where the data set is in a bucket,
a host copies the shards of which it reads a record (`data.selection`), and any other that is asked
for when it is read.
"""

import bisect
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterable

from array_record.python import array_record_module

from ggcf_jax.data.records import staging
from ggcf_jax.errors import InputError

_KIND = '.array_record'  # in the name of every shard


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards of a split in the mirror of a bucket.

    Attributes:
        directory: folder of the prepared data set.
        mark: name of the file that marks it as complete.
        names: name of each shard.
        lengths: number of records of each.
    """

    directory: pathlib.Path
    mark: str
    names: tuple[str, ...]
    lengths: tuple[int, ...]

    def of_record(self, index: int) -> int:
        """Number of the shard that holds a record.

        Args:
            index: index of the record in the split.
        """
        return bisect.bisect_right(self._ends, index)

    @functools.cached_property
    def _ends(self) -> list[int]:
        return [*itertools.accumulate(self.lengths)]

    def ensure(self, numbers: Iterable[int] | None = None) -> None:
        """Copies shards that are not there yet.

        Args:
            numbers: which ones are needed; None for all.

        Raises:
            InputError: a shard lacks records, or the disk has no room for the copy.
            BucketError: the bucket cannot be read.
        """
        numbers = range(len(self.names)) if numbers is None else numbers
        wanted = {self.names[i]: self.lengths[i] for i in numbers}
        missing = {
            name: length for name, length in wanted.items() if not (self.directory / name).exists()
        }
        if not missing:
            return
        staging.pull(self.directory, self.mark, missing.__contains__)
        for name, length in missing.items():
            check(self.directory / name, length)


def is_shard(name: str) -> bool:
    """Whether a file of a prepared data set holds records.

    Args:
        name: name of the file.
    """
    return _KIND in name


def check(file: pathlib.Path, expected: int) -> None:
    """Refuses a shard that lacks records.

    Args:
        file: the shard.
        expected: number of its records.

    Raises:
        InputError: it is missing or has another number.
    """
    found = _num_records(file)
    if found != expected:
        raise InputError(
            f'{file} holds {found} of its {expected} records: the prepared data set is damaged; '
            f'{prepare_again(file.parent)}'
        )


def prepare_again(directory: pathlib.Path) -> str:
    """Returns the cure for a prepared data set that cannot be read, as messages state it.

    Args:
        directory: folder of the prepared data set.
    """
    there = staging.origin(directory)
    if there is None:
        return f'remove {directory} to have it prepared again'
    return f'remove {directory} to have it copied again, and {there} to have it prepared again'


def _num_records(file: pathlib.Path) -> int:
    """Number of records in an array_record file; 0 for a file that is missing or truncated."""
    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        found = reader.num_records()
        reader.close()
    except RuntimeError:
        return 0
    return found
