"""A TFDS builder that writes encoded records straight into their shards.

The builder for generators in TFDS sorts a split larger than 1 GB through temporary files that it
opens with TensorFlow. Here names and sizes of the records are known beforehand, so each shard is
written once, in the order that TFDS would have sorted its records into, with one shard in memory.
"""

import abc
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from ggcf_jax.data.records import contents, progress
from ggcf_jax.data.records.codec import check_sizes
from ggcf_jax.data.records.dataset import Decoder, damaged
from ggcf_jax.errors import InputError

# Marks a directory that this program is writing, to tell it from those that others write.
OWNER_FILE = 'ggcf_jax_is_preparing'
# What the files held that a data set was prepared from (`Origin`).
ORIGIN_FILE = 'ggcf_jax_origin.json'

_SHARD_BYTES = 128 << 20


class Origin(NamedTuple):
    """What the files of a record, or of all, hold, as far as that is known without reading them.

    Attributes:
        sizes: text that changes with the sizes of the files.
        checksums: text that changes with their checksums; '' where there are none.
    """

    sizes: str
    checksums: str

    def __str__(self) -> str:
        return f'checksums:{self.checksums}' if self.checksums else f'sizes:{self.sizes}'


@dataclasses.dataclass(frozen=True)
class Record:
    """A record that is to be written.

    Attributes:
        name: key of the record, unique within its split.
        size: estimate of its size in bytes.
        read: returns its encoded features, or raises InputError; called once, in any thread.
        origin: what it is made from, where the name of the data set does not tell.
    """

    name: str
    size: int
    read: Callable[[], dict[str, Any]]
    origin: Origin | None = None


Splits = Mapping[str, Sequence[Record]]


def origin_of(splits: Splits) -> Origin | None:
    """What a data set is made from; None where its name tells.

    Args:
        splits: its records.
    """
    records = [
        (f'{split}/{record.name}', record.origin)
        for split in sorted(splits)
        for record in sorted(splits[split], key=lambda each: each.name)
        if record.origin is not None
    ]
    if not records:
        return None
    summed = all(origin.checksums for _, origin in records)
    return Origin(
        contents.combined(f'{name} {origin.sizes}' for name, origin in records),
        contents.combined(f'{name} {origin.checksums}' for name, origin in records)
        if summed
        else '',
    )


class RecordBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """TFDS builder of records that are encoded already. Subclasses list them in `records`.

    Attributes:
        threads: number of threads that read records.
    """

    threads = min(8, os.cpu_count() or 1)

    def __init__(
        self, *, data_dir: str | None, config: str | tfds.core.BuilderConfig | None = None
    ):
        """Names the data set, and reads its description if it is prepared.

        Args:
            data_dir: folder of prepared data sets; None for that of TFDS.
            config: TFDS config.

        Raises:
            InputError: the description is damaged.
        """
        try:
            super().__init__(data_dir=data_dir, config=config)
        except Exception as error:  # parsers of TFDS raise what they like for damaged files
            directory = getattr(self, '_data_dir', None)
            if directory is None or not os.path.exists(directory):
                raise
            raise damaged(pathlib.Path(directory), error) from error

    def __init_subclass__(cls) -> None:
        # The registry of TFDS may have a data set of the same name.
        super().__init_subclass__(skip_registration=True)  # type: ignore[call-arg]  # TFDS is untyped

    @abc.abstractmethod
    def records(self) -> contextlib.AbstractContextManager[Splits]:
        """Lists the records of each split, without reading them.

        Returns:
            Context manager of split name -> records, which are read before it is left.

        Raises:
            InputError: files that the data set is made from are missing or wrong.
        """

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        directory = pathlib.Path(self.data_dir)  # incomplete.*, renamed when all is written
        owner = directory / OWNER_FILE
        owner.write_text(f'{socket.gethostname()} {os.getpid()}\n', encoding='utf-8')
        with self.records() as splits:
            self._check_disk(splits, directory)
            self._shards = {split: _shards(split, records) for split, records in splits.items()}
            total = sum(map(len, splits.values()))
            with progress.shown(
                'preparing', 'prepared', self.info.full_name, total
            ) as self._advance:
                super()._download_and_prepare(dl_manager, download_config)
            if (origin := origin_of(splits)) is not None:
                text = json.dumps(origin._asdict())
                (directory / ORIGIN_FILE).write_text(text, encoding='utf-8')
        owner.unlink()

    def _check_disk(self, splits: Splits, directory: pathlib.Path) -> None:
        """Refuses a disk that cannot hold the records."""
        needed = sum(record.size for records in splits.values() for record in records)
        free = shutil.disk_usage(directory).free
        if needed > free:
            raise InputError(
                f'cannot prepare data set {self.info.full_name!r}: it needs {_gigabytes(needed)} '
                f'in {directory.parent}, where {_gigabytes(free)} are free; make room, or set '
                '--config.data.data_dir to a directory on a larger disk'
            )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable]]:
        del dl_manager  # nothing is downloaded
        return {
            split: [functools.partial(self._read_shard, shard) for shard in shards]
            for split, shards in self._shards.items()
        }

    def _read_shard(self, shard: list[Record]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (name, features) in order while threads read and check the next ones."""
        waiting: _Waiting = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            for record in shard:
                waiting.append((record.name, pool.submit(record.read)))
                if len(waiting) == 2 * self.threads:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)

    def _next(self, waiting: '_Waiting') -> tuple[str, dict[str, Any]]:
        name, future = waiting.popleft()
        features = future.result()
        self._advance(1)
        return name, features

    # Replaces what TFDS prints before and after by our own lines and progress bar.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


# Names of records, and the features that threads are reading.
_Waiting = collections.deque[tuple[str, concurrent.futures.Future[dict[str, Any]]]]


def check_pair(
    decoder: Decoder, image: bytes, label: bytes, *, image_name: str, label_name: str
) -> None:
    """Decodes an image and its label as training would.

    Args:
        decoder: decoder of the data set.
        image: encoded image.
        label: encoded label.
        image_name: name of the image, for error messages.
        label_name: name of the label, for error messages.

    Raises:
        InputError: one cannot be decoded, they differ in size, or a label value is not allowed.
    """
    pixels = decoder.image(image, image_name)
    check_sizes(pixels, decoder.label(label, label_name), image_name)


def _shards(split: str, records: Sequence[Record]) -> list[list[Record]]:
    """Shuffles by the hash that TFDS shuffles by, and cuts into shards of about 128 MiB."""
    if not records:
        raise InputError(f'there are no images for the split {split!r}')
    names = collections.Counter(record.name for record in records)
    if len(names) < len(records):
        name, count = names.most_common(1)[0]
        raise InputError(f'{count} records of {split} are called {name!r}; names must be unique')
    records = sorted(records, key=lambda r: hashlib.md5(f'{split}{r.name}'.encode()).digest())
    size = sum(record.size for record in records)
    count = min(len(records), max(1, round(size / _SHARD_BYTES)))
    edges = [len(records) * i // count for i in range(count + 1)]
    return [records[start:stop] for start, stop in itertools.pairwise(edges)]


def _gigabytes(size: int) -> str:
    return f'{size / 1e9:.3g} GB'
