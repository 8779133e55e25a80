"""Prepares TFDS data sets without TensorFlow, stored as array_record, and opens them."""

import contextlib
import errno
import fcntl
import grp
import os
import pathlib
import pwd
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from ggcf_jax import json_files, places
from ggcf_jax.data.records import staging
from ggcf_jax.data.records.builder import (
    ORIGIN_FILE,
    OWNER_FILE,
    Origin,
    RecordBuilder,
    origin_of,
)
from ggcf_jax.data.records.dataset import (
    PreparedSource,
    RecordSource,
    damaged,
)
from ggcf_jax.data.records.shards import Shards, check, is_shard, prepare_again
from ggcf_jax.errors import InputError

FIELD = 'config.data.data_dir'

_INFO = 'dataset_info.json'  # of TFDS: marks a prepared data set as complete
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_ORIGIN = ('sizes', 'checksums')  # fields of `Origin`


def prepared_sources(
    builder: tfds.core.DatasetBuilder,
    *,
    image: str = 'image',
    label: str = 'label',
    name: str = 'name',
) -> dict[str, PreparedSource]:
    """Prepares the data set unless it is there, and opens every split.

    TFDS writes into a directory `incomplete.*` and renames it when it is complete, so an
    interrupted preparation is simply repeated. Where the file system has locks, other processes
    that need the same data set wait meanwhile.

    Args:
        builder: TFDS builder of the data set.
        image: name of the feature that holds the image.
        label: name of the feature that holds the label.
        name: name of the feature that holds the name.

    Returns:
        Split name -> records.

    Raises:
        InputError: the data directory cannot be written or is full, the files that the data set
            is made from are wrong or others than those that it was prepared from, or the prepared
            files are damaged or not array_record.
    """
    try:
        _prepare(builder)
    except (OSError, RuntimeError) as error:  # array_record raises nothing else
        full = builder.info.full_name
        if _is_disk_full(error):
            raise InputError(
                f'cannot prepare data set {full!r}: the disk of {builder.data_path.parent} is '
                f'full ({error}); make room, or set --config.data.data_dir to a directory on a '
                'larger disk'
            ) from error
        if isinstance(error, OSError):
            raise InputError(
                f'cannot prepare data set {full!r}: {error}; '
                'set --config.data.data_dir to a writable directory'
            ) from error
        raise
    directory = pathlib.Path(builder.data_dir)
    origin = _read_origin(directory)
    # A host that takes prepared data from a bucket need not have what they were made from.
    is_shared = staging.origin(directory) is not None
    if origin is not None and isinstance(builder, RecordBuilder) and not is_shared:
        _compare_origin(origin, builder)
    # Opened from the files alone: this builder may have been constructed before they existed.
    builder = _open(directory)
    skip = tfds.decode.SkipDecoding()
    try:
        opened = {
            split: builder.as_data_source(split, decoders={image: skip, label: skip})
            for split in builder.info.splits
        }
        missing = {image, label, name} - set(builder.info.features)
    except Exception as error:
        raise damaged(directory, error) from error
    if missing:
        raise damaged(directory, ValueError(f'it has no feature {min(missing)!r}'))
    return {
        split: PreparedSource(
            source=opened[split],
            directory=directory,
            image=image,
            label=label,
            name=name,
            split=split,
            made_from='' if origin is None else str(origin),
            shards=_shards(builder, split) if is_shared else None,
        )
        for split in opened
    }


def data_directory(data_dir: str | None) -> pathlib.Path:
    """Returns the folder of prepared data sets and other derived files.

    Args:
        data_dir: `config.data.data_dir`; None for the default of TFDS. A folder in a bucket has a
            mirror on this machine.
    """
    return staging.mirror(data_dir or tfds.core.constants.DATA_DIR, FIELD)


def warn_of_counts(
    name: str, sources: Mapping[str, RecordSource], published: Mapping[str, tuple[int, ...]]
) -> None:
    """Warns of each split that does not have the published number of images.

    Args:
        name: name of the data set.
        sources: split name -> records.
        published: split name -> numbers of images that are right, the published one first.
    """
    for split, counts in published.items():
        if split in sources and len(sources[split]) not in counts:
            print(
                f'warning: {name} {split} has {len(sources[split])} images, the published data '
                f'set has {counts[0]}; check that the download was complete',
                file=sys.stderr,
            )


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Prepares the data set unless it exists."""
    path = pathlib.Path(builder.data_dir)

    def is_needed(name: str) -> bool:
        # Shards are copied when it is known which; those that are there have to be the same.
        return not is_shard(name) or (path / name).exists()

    if staging.pull(path, _INFO, is_needed) or (path.exists() and staging.origin(path) is None):
        return
    if isinstance(builder, RecordBuilder):
        with builder.records():  # finds missing files before anything is written
            pass
    places.check_writable(path.parent, FIELD)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.parent / f'.{path.name}.lock') as locked:
        if not path.exists():  # or another process was faster
            if locked:
                _remove_leftovers(path)
            staging.check_writable(path)
            with _owners_without_name():
                builder.download_and_prepare(file_format='array_record')
        staging.push(path, _INFO)


@contextlib.contextmanager
def _owners_without_name() -> Iterator[None]:
    """Takes ids that the system has no name for, as in containers, for their own names.

    For the size of a file TFDS calls `stat` of etils (epath/backend.py), which looks up the names
    of owner and group as well and raises KeyError where there are none. Nobody reads them.
    """
    of_user, of_group = pwd.getpwuid, grp.getgrgid

    def user(uid: int) -> Any:
        try:
            return of_user(uid)
        except KeyError:
            return pwd.struct_passwd((str(uid), '', uid, -1, '', '', ''))

    def group(id: int) -> Any:
        try:
            return of_group(id)
        except KeyError:
            return grp.struct_group((str(id), '', id, []))

    pwd.getpwuid, grp.getgrgid = user, group
    try:
        yield
    finally:
        pwd.getpwuid, grp.getgrgid = of_user, of_group


def _read_origin(directory: pathlib.Path) -> Origin | None:
    """What a data set was prepared from; None if other programs or older versions prepared it."""
    path = directory / ORIGIN_FILE
    try:
        content = json_files.parse_object(path.read_bytes())
        return Origin(*(json_files.need(content, x, json_files.is_text, 'a text') for x in _ORIGIN))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f'{path} is damaged ({error}): what the data set was made from is not known; '
            f'{prepare_again(directory)}'
        ) from error


def _compare_origin(prepared: Origin, builder: RecordBuilder) -> None:
    """Refuses a prepared data set if the files that it was made from have been replaced."""
    try:
        with builder.records() as splits:
            now = origin_of(splits)
    except InputError:  # the files are not there any more, and are not needed
        return
    if now is None:
        return
    kind = 'checksums' if now.checksums and prepared.checksums else 'sizes'
    if getattr(now, kind) != getattr(prepared, kind):
        directory = pathlib.Path(builder.data_dir)
        raise InputError(
            f'{directory} was prepared from other files than config.data.manual_dir has now: their '
            f'{kind} differ; {prepare_again(directory)}, or pass --config.data.manual_dir= to use '
            'it as it is'
        )


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[bool]:
    """Holds a lock that ends with the process; yields False where locks are not supported."""
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            print(f'waiting for another process that prepares data in {path.parent}', flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f'warning: {path.parent} has no file locks ({error}); prepare data there with one '
                'process at a time',
                file=sys.stderr,
            )
            locked = False
        yield locked


def _remove_leftovers(path: pathlib.Path) -> None:
    """Removes what our killed preparations left; the lock says that no live one writes there."""
    for leftover in path.parent.glob(f'incomplete.*_{path.name}'):
        if (leftover / OWNER_FILE).exists():  # otherwise another program may be writing it
            shutil.rmtree(leftover)


def _is_disk_full(error: BaseException) -> bool:
    return getattr(error, 'errno', None) in _DISK_FULL or any(
        os.strerror(code) in str(error) for code in _DISK_FULL
    )


def _open(path: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Opens a prepared data set; refuses one that cannot be read or lacks records."""
    if not (path / _INFO).is_file():
        raise InputError(
            f'{path} is not a prepared data set: dataset_info.json is missing; '
            f'{prepare_again(path)}'
        )
    try:
        builder = tfds.builder_from_directory(path)
        info = builder.info
        formats = {file_format.value for file_format in info.available_file_formats()}
        shards = [
            (pathlib.Path(file), expected)
            for split in info.splits.values()
            for file, expected in zip(split.filepaths, split.shard_lengths)
        ]
    except Exception as error:  # parsers of TFDS raise what they like for damaged files
        raise damaged(path, error) from error
    if 'array_record' not in formats:
        raise InputError(
            f'{path} was prepared as {", ".join(sorted(formats))}, which cannot be read without '
            'TensorFlow; set --config.data.data_dir to another directory to prepare it there as '
            'array_record, or where TensorFlow is installed convert it with tfds convert_format '
            f'--dataset_version_dir={path} --out_file_format=array_record'
        )
    info.set_file_format('array_record', override=True, override_if_initialized=True)
    is_shared = staging.origin(path) is not None
    for file, expected in shards:
        if file.exists() or not is_shared:  # the others are copied when they are needed
            check(file, expected)
    return builder


def _shards(builder: tfds.core.DatasetBuilder, split: str) -> Shards:
    """The files of a split."""
    info = builder.info.splits[split]
    names = tuple(pathlib.Path(file).name for file in info.filepaths)
    return Shards(pathlib.Path(builder.data_dir), _INFO, names, tuple(info.shard_lengths))
