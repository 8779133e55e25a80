"""A TFDS builder that writes encoded records straight into their shards.

TFDS' own builder for generators sorts a split larger than 1 GB by way of temporary files that it
opens with TensorFlow. Here the records' names and sizes are known beforehand, so each shard is
written once, in the order that TFDS would have sorted them into, with one shard in memory.
"""

import abc
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ggcf_jax.data.records.codec import check_sizes, decode_image, decode_label, map_labels
from ggcf_jax.errors import InputError

# Lies in a directory while this program writes it, and tells it from one that others write.
OWNER_FILE = 'ggcf_jax_is_preparing'

_SHARD_BYTES = 128 << 20
_SECONDS_BETWEEN_LINES = 30


@dataclasses.dataclass(frozen=True)
class Record:
    """One record to be written.

    Attributes:
        name: unique within its split.
        size: its bytes, about.
        read: returns its features, encoded, or raises InputError; called once, in any thread.
    """

    name: str
    size: int
    read: Callable[[], dict]


class RecordBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """TFDS builder of records that are encoded already. Subclasses list them in `records`.

    Attributes:
        threads: that read records.
    """

    threads = min(8, os.cpu_count() or 1)

    @abc.abstractmethod
    def records(self) -> contextlib.AbstractContextManager[dict[str, Sequence[Record]]]:
        """Lists the records by split, without reading them; they are read within the context."""

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        directory = pathlib.Path(self.data_dir)  # incomplete.*, renamed when all is written
        owner = directory / OWNER_FILE
        owner.write_text(f'{socket.gethostname()} {os.getpid()}\n', encoding='utf-8')
        with self.records() as splits:
            self._check_room(splits, directory)
            self._shards = {split: _shards(split, records) for split, records in splits.items()}
            total = sum(map(len, splits.values()))
            with _progress(self.info.full_name, total) as self._advance:
                super()._download_and_prepare(dl_manager, download_config)
        owner.unlink()

    def _check_room(self, splits: dict[str, Sequence[Record]], directory: pathlib.Path) -> None:
        needed = sum(record.size for records in splits.values() for record in records)
        free = shutil.disk_usage(directory).free
        if needed > free:
            raise InputError(
                f'cannot prepare data set {self.info.full_name!r}: it needs {_gigabytes(needed)} '
                f'in {directory.parent}, where {_gigabytes(free)} are free; make room, or set '
                '--config.data.data_dir to a directory on a larger disk'
            )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {
            split: [functools.partial(self._read_shard, shard) for shard in shards]
            for split, shards in self._shards.items()
        }

    def _read_shard(self, shard: list[Record]) -> Iterator[tuple[str, dict]]:
        """Yields (name, features) in order while threads read and check the next ones."""
        waiting = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            for record in shard:
                waiting.append((record.name, pool.submit(record.read)))
                if len(waiting) == 2 * self.threads:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)

    def _next(self, waiting: collections.deque) -> tuple[str, dict]:
        name, future = waiting.popleft()
        features = future.result()
        self._advance()
        return name, features

    # What TFDS prints before and after; our own lines and bar say it.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


def check_pair(
    image: bytes, label: bytes, label_map: np.ndarray, image_name: str, label_name: str
) -> None:
    """Decodes an image and its label as training would.

    Raises:
        InputError: one cannot be decoded, they differ in size, or a label value is not allowed.
    """
    pixels = decode_image(image, image_name)
    check_sizes(
        pixels, map_labels(decode_label(label, label_name), label_map, label_name), image_name
    )


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


@contextlib.contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, elsewhere a line every half minute; yields a function to count by."""
    console = Console()
    began = spoken = time.monotonic()
    done = 0
    columns = (
        TextColumn('preparing {task.description}'),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, expand=True) if console.is_terminal else None
    task = bar.add_task(name, total=total) if bar else None
    if not bar:
        console.print(f'preparing {name}: {total} images', highlight=False, soft_wrap=True)

    def advance() -> None:
        nonlocal done, spoken
        done += 1
        if bar:
            bar.advance(task)
        elif time.monotonic() - spoken > _SECONDS_BETWEEN_LINES:
            spoken = time.monotonic()
            console.print(
                f'preparing {name}: {done} of {total} images', highlight=False, soft_wrap=True
            )

    with bar or contextlib.nullcontext():
        yield advance
    seconds = time.monotonic() - began
    text = f'prepared {done} images of {name} in {seconds:.0f} s'
    console.print(text, highlight=False, soft_wrap=True)


def _gigabytes(size: int) -> str:
    return f'{size / 1e9:.3g} GB'
