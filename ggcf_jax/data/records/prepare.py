"""Preparing TFDS data sets without TensorFlow, stored as array_record, and reading them back."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from ggcf_jax.data.records.builder import OWNER_FILE, RecordBuilder
from ggcf_jax.errors import InputError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class PreparedSource:
    """Records of one prepared split, still encoded.

    A class rather than a lambda over the TFDS source because grain's worker processes pickle it.
    """

    def __init__(self, source, directory: pathlib.Path, image: str, label: str, name: str):
        self._source, self._directory = source, directory
        self._image, self._label, self._name = image, label, name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        try:
            record = self._source[index]
        except RuntimeError as error:  # of array_record, which keeps a hash of every record
            raise InputError(
                f'record {index} cannot be read ({error}): the prepared data set is damaged; '
                f'{_remake(self._directory)}'
            ) from error
        name = record[self._name]
        return {
            'name': name.decode() if isinstance(name, bytes) else str(name),
            'image': record[self._image],
            'label': record[self._label],
        }


def prepared_sources(
    builder: tfds.core.DatasetBuilder,
    *,
    image: str = 'image',
    label: str = 'label',
    name: str = 'name',
) -> dict[str, PreparedSource]:
    """Prepares the data set unless it is there, and opens every split.

    TFDS writes into a directory `incomplete.*` and renames it when it is complete, so an
    interrupted preparation is simply done again. A lock makes other processes wait that want the
    same data set at the same time, on every file system that has locks.

    Args:
        builder: of the data set.
        image: its feature of images. label: of labels. name: of names.

    Raises:
        InputError: the data directory cannot be written or is full, what the data set is made
            from is wrong, or what was prepared is damaged or not array_record.
    """
    try:
        _prepare(builder)
    except (OSError, RuntimeError) as error:  # array_record knows only RuntimeError
        full = builder.info.full_name
        if isinstance(error, PermissionError):
            raise InputError(
                f'cannot prepare data set {full!r}: {error}; '
                'set --config.data.data_dir to a writable directory'
            ) from error
        if _is_disk_full(error):
            raise InputError(
                f'cannot prepare data set {full!r}: the disk of {builder.data_path.parent} is '
                f'full ({error}); make room, or set --config.data.data_dir to a directory on a '
                'larger disk'
            ) from error
        raise
    # From the files alone: this builder may have been made before they were.
    builder = _open(pathlib.Path(builder.data_dir))
    skip = tfds.decode.SkipDecoding()
    return {
        split: PreparedSource(
            builder.as_data_source(split, decoders={image: skip, label: skip}),
            pathlib.Path(builder.data_dir),
            image,
            label,
            name,
        )
        for split in builder.info.splits
    }


def data_directory(data_dir: str | None) -> pathlib.Path:
    """Where prepared data sets live: `data_dir`, or the default of TFDS."""
    return pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()


def warn_of_counts(
    name: str, sources: Mapping[str, PreparedSource], published: Mapping[str, tuple[int, ...]]
) -> None:
    """Prints a warning for each split that has another number of images than was published."""
    for split, counts in published.items():
        if split in sources and len(sources[split]) not in counts:
            print(
                f'warning: {name} {split} has {len(sources[split])} images, the published data '
                f'set has {counts[0]}; check that the download was complete',
                file=sys.stderr,
            )


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    path = pathlib.Path(builder.data_dir)
    if path.exists():
        return
    if isinstance(builder, RecordBuilder):
        with builder.records():  # what is missing is found before anything is written
            pass
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.parent / f'.{path.name}.lock') as locked:
        if path.exists():  # another process was faster
            return
        if locked:
            _remove_leftovers(path)
        builder.download_and_prepare(file_format='array_record')


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[bool]:
    """Holds a lock that dies with the process; yields False where locks are not supported."""
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            print(f'waiting for another process that prepares {path.parent}', flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f'warning: {path.parent} has no file locks ({error}); let only one process at a '
                'time prepare data there',
                file=sys.stderr,
            )
            locked = False
        yield locked


def _remove_leftovers(path: pathlib.Path) -> None:
    """Removes what killed preparations of ours left; no live one can be writing it."""
    for left in path.parent.glob(f'incomplete.*_{path.name}'):
        # Other programs' directories are not ours to judge.
        if (left / OWNER_FILE).exists():
            shutil.rmtree(left)


def _is_disk_full(error: BaseException) -> bool:
    return getattr(error, 'errno', None) in _DISK_FULL or any(
        os.strerror(code) in str(error) for code in _DISK_FULL
    )


def _open(path: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Opens a prepared data set; refuses one that cannot be read or has lost records."""
    if not (path / 'dataset_info.json').is_file():
        raise InputError(
            f'{path} is not a prepared data set: dataset_info.json is missing; {_remake(path)}'
        )
    builder = tfds.builder_from_directory(path)
    info = builder.info
    formats = {file_format.value for file_format in info.available_file_formats()}
    if 'array_record' not in formats:
        raise InputError(
            f'{path} was prepared as {", ".join(sorted(formats))}, which cannot be read without '
            'TensorFlow; set --config.data.data_dir to another directory to prepare it there as '
            'array_record, or where TensorFlow is installed convert it with tfds convert_format '
            f'--dataset_version_dir={path} --out_file_format=array_record'
        )
    info.set_file_format('array_record', override=True, override_if_initialized=True)
    for split in info.splits.values():
        for file, expected in zip(split.filepaths, split.shard_lengths):
            found = _num_records(os.fspath(file))
            if found != expected:
                raise InputError(
                    f'{file} holds {found} of its {expected} records: the prepared data set is '
                    f'damaged; {_remake(path)}'
                )
    return builder


def _remake(path: pathlib.Path) -> str:
    return f'remove {path} to have it prepared again'


def _num_records(file: str) -> int:
    """Number of records of an array_record file; 0 for a file that is missing or cut off."""
    try:
        reader = array_record_module.ArrayRecordReader(file)
        found = reader.num_records()
        reader.close()
    except RuntimeError:
        return 0
    return found
