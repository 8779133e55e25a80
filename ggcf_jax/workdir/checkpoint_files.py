"""One checkpoint on disk: written by Orbax, sealed with checksums, and verified when it is read.

Orbax writes a checkpoint under a temporary name, in the background, and renames it when it is
complete. It does not notice damaged array bytes, so checksums are stored and compared on load. They
are stored with the mIoU in the metadata of the checkpoint, whose presence marks it as complete.

A run saves before it evaluates: the mIoU of an evaluation after the save is in a file of its own.

Process 0 alone writes, and a process that reads does so for itself: Orbax waits for no other one.
It would number the operations in each process and let all meet under that number before each save,
so that they would miss each other after process 0 alone has read what all resume from
(`synchronize_next_operation_id`, orbax/checkpoint/experimental/v1/_src/synchronization, in 0.12.8).

In a bucket a checkpoint has the same files under the same names, `COMMITTED` last, so that Orbax
reads it there as well. Orbax writes them into a folder of temporary files, which is then uploaded;
they are downloaded and verified in the same way. Orbax itself knows no `s3://`.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ggcf_jax import atomic, buckets, json_files
from ggcf_jax.buckets import BucketPath
from ggcf_jax.errors import InputError

TEMPORARY = 'orbax-checkpoint-tmp'  # in the names of checkpoints that Orbax has not finished
COMMITTED = 'commit_success.txt'  # the file that is written last

# In what Orbax logs, with a traceback, of an error in one of its threads, which it raises as well.
TOLD_TWICE = '_SignalingThread.run() raised an exception'
_SCORE = 'score.json'  # mIoU of an evaluation that was made after the save


class Damaged(Exception):
    """A checkpoint whose bytes are not those that were saved."""


@dataclasses.dataclass(frozen=True)
class Sealed:
    """Metadata that is written beside the arrays.

    Attributes:
        miou: mean IoU of the evaluation at this step, made before or after the save; minus infinity
            if that was not a number, None if there was no evaluation.
        checksums: CRC-32 of the arrays of each tree, by its name.
    """

    miou: float | None
    checksums: dict[str, list[int]]


class Saving:
    """A checkpoint that is being written in the background, by process 0."""

    def __init__(self, path: pathlib.Path, trees: dict[str, Any], miou: float | None):
        """Starts to write; returns when the arrays have been copied to the host.

        Args:
            path: directory to write, which does not exist.
            trees: name -> pytree of arrays.
            miou: mean IoU of an evaluation of these arrays; None if there was none.

        Raises:
            InputError: the checkpoint cannot be written, for example because the disk is full.
        """
        self._path = path
        with self._failures():
            if isinstance(path, BucketPath) or jax.process_count() > 1:
                self._response: Any = _in_a_thread(path, jax.device_get(trees), miou)
            else:
                self._response = ocp.save_checkpointables_async(
                    path, trees, custom_metadata=_seal(trees, miou)
                )

    def wait(self) -> None:
        """Waits until the checkpoint is on disk.

        Raises:
            InputError: it could not be written.
        """
        with self._failures():
            self._response.result()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except buckets.BucketError as error:
            raise InputError(
                f'checkpoint {self._path.name} could not be written to {self._path.parent} '
                f'({error}). Earlier checkpoints are intact: repeat the command to resume'
            ) from error
        except Exception as error:  # Orbax and TensorStore report a full disk in many ways
            directory = self._path.parent
            in_bucket = isinstance(directory, BucketPath)
            directory = pathlib.Path(tempfile.gettempdir()) if in_bucket else directory
            free = shutil.disk_usage(directory).free / 2**20
            raise InputError(
                f'checkpoint {self._path.name} could not be written to {directory} '
                f'({_first_line(error)}; {free:.0f} MiB are free there). Earlier checkpoints are '
                'intact: free some disk space and repeat the command to resume'
            ) from error


def _in_a_thread(
    path: pathlib.Path, trees: dict[str, Any], miou: float | None
) -> concurrent.futures.Future[None]:
    """Writes a checkpoint, whose arrays are on the host, in a thread of its own."""
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
    if isinstance(path, BucketPath):
        future = pool.submit(_upload, path, trees, miou)
    else:
        future = pool.submit(_write_alone, path, trees, miou)
    pool.shutdown(wait=False)
    return future


def _upload(path: BucketPath, trees: dict[str, Any], miou: float | None) -> None:
    """Writes a checkpoint into a bucket."""
    with tempfile.TemporaryDirectory(prefix='ggcf_jax-checkpoint-') as folder:
        written = pathlib.Path(folder) / path.name
        _write_alone(written, trees, miou)
        # Of an earlier save of this step, which was not completed or whose end was not seen.
        buckets.remove_tree(path, first=COMMITTED)
        buckets.upload_tree(written, path, last=COMMITTED)


def _write_alone(path: pathlib.Path, trees: dict[str, Any], miou: float | None) -> None:
    """Writes a checkpoint to the disk while other processes take no part."""
    with _alone(), _unasked():
        ocp.save_checkpointables(path, trees, custom_metadata=_seal(trees, miou))


@contextlib.contextmanager
def fetched(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a checkpoint on the disk: itself, or a copy of one that lies in a bucket.

    Args:
        path: directory of the checkpoint.

    Raises:
        Damaged: an object is missing.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix='ggcf_jax-checkpoint-') as folder:
        copy = pathlib.Path(folder) / path.name
        with _unreadable(path):
            buckets.download_tree(path, copy)
        yield copy


def inspect(path: pathlib.Path) -> Sealed:
    """Reads the metadata of a checkpoint, and checks that it is complete.

    Args:
        path: directory of the checkpoint.

    Raises:
        Damaged: a file that Orbax writes last is missing or unreadable.
    """
    marks = [path / '_CHECKPOINT_METADATA', path / COMMITTED]
    for mark in marks:
        if not mark.is_file():
            missing = mark.relative_to(path.parent)
            raise Damaged(f'checkpoint {path} is incomplete: {missing} is missing')
    with _unreadable(path):
        whole = json_files.parse_object(marks[0].read_bytes())
        content = dict(json_files.need(whole, 'custom_metadata', _is_object, 'an object'))
        if content.pop('crc', None) != _crc(content):
            raise ValueError(f'the checksum of {marks[0].name} differs')
        json_files.need(content, 'evaluated', lambda x: isinstance(x, bool), 'true or false')
        json_files.need(content, 'miou', json_files.is_number_or_none, 'a number')
        json_files.need(
            content,
            'checksums',
            lambda x: json_files.is_mapping(
                x, lambda sums: json_files.is_list(sums, json_files.is_count)
            ),
            'an object of lists of checksums',
        )
    if not content['evaluated']:
        return Sealed(_score(path), content['checksums'])
    return Sealed(_known(content['miou']), content['checksums'])


def add_score(path: pathlib.Path, miou: float) -> None:
    """Notes the mean IoU of an evaluation of a checkpoint that is on disk.

    Args:
        path: directory of the checkpoint.
        miou: mean IoU; may be NaN.
    """
    content: dict[str, Any] = {'miou': None if miou != miou else float(miou)}
    content['crc'] = _crc(content)
    atomic.write(path / _SCORE, json.dumps(content).encode(), sync=True)


def _score(path: pathlib.Path) -> float | None:
    """What `add_score` noted; None where it did not, or where the file cannot be read."""
    try:
        content = json_files.parse_object((path / _SCORE).read_bytes())
        intact = content.pop('crc', None) == _crc(content)
        miou = json_files.need(content, 'miou', json_files.is_number_or_none, 'a number')
        return _known(miou) if intact else None
    except (FileNotFoundError, ValueError):
        return None
    except buckets.BucketError:
        raise
    except OSError:
        return None  # as if it had not been evaluated, which the next start does again


def _known(miou: float | None) -> float:
    """mIoU as it is compared: one that is not a number is worse than any other."""
    return float('-inf') if miou is None else miou


def shapes(path: pathlib.Path, names: Iterable[str]) -> dict[str, Any]:
    """Reads the shapes and dtypes of the named trees of a checkpoint, in nested dictionaries.

    Args:
        path: directory of the checkpoint.
        names: names of the trees.

    Raises:
        Damaged: they cannot be read.
    """
    with fetched(path) as there, _unreadable(path), _alone():
        saved = ocp.checkpointables_metadata(there).metadata
        return {
            name: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved[name])
            for name in names
        }


def load(path: pathlib.Path, trees: dict[str, Any]) -> dict[str, Any]:
    """Reads the named trees of a checkpoint onto the host.

    Args:
        path: directory of the checkpoint.
        trees: name -> pytree of arrays or shapes, as they were saved.

    Raises:
        Damaged: the checkpoint cannot be read, or its checksums differ.
        InputError: it belongs to another model.
    """
    with fetched(path) as there:
        return _load(there, trees, path)


def _load(there: pathlib.Path, trees: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """`load` from a directory on the disk; `path` is what messages call it."""
    sealed = inspect(there)
    saved = {name: _by_path(tree) for name, tree in shapes(there, trees).items()}
    for name, tree in trees.items():
        if not saved[name]:
            raise Damaged(f'checkpoint {path} is damaged: {name!r} is not in it')
        _compare(saved[name], _by_path(tree), path)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), trees
    )
    with _unreadable(path), _alone():
        loaded = ocp.load_checkpointables(there, abstract)
    loaded = jax.device_get(loaded)
    for name in trees:
        if checksums(loaded[name]) != sealed.checksums[name]:
            raise Damaged(f'checkpoint {path} is damaged: the checksums of {name!r} differ')
    return loaded


def checksums(tree: Any) -> list[int]:
    """CRC-32 of the bytes of each array of `tree`, in the order of its leaves, on the host."""
    return [
        zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
        for x in jax.tree.leaves(tree)
    ]


def _seal(trees: dict[str, Any], miou: float | None) -> dict[str, Any]:
    """The metadata that `inspect` reads, with a checksum of their own."""
    content = {
        'evaluated': miou is not None,
        'miou': None if miou is None or miou != miou else float(miou),
        'checksums': {name: checksums(tree) for name, tree in trees.items()},
    }
    return content | {'crc': _crc(content)}


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _crc(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


@contextlib.contextmanager
def _unreadable(path: pathlib.Path) -> Iterator[None]:
    """Turns any error into `Damaged`: Orbax, TensorStore and json raise all kinds of them.

    A bucket that cannot be reached says nothing about the checkpoint.
    """
    try:
        yield
    except buckets.NotThere as error:
        raise Damaged(f'checkpoint {path} cannot be read ({_first_line(error)})') from error
    except buckets.BucketError:
        raise
    except Exception as error:
        raise Damaged(f'checkpoint {path} cannot be read ({_first_line(error)})') from error


def _alone() -> ocp.Context:
    """A context in which Orbax works for this process only and waits for no other."""
    own = jax.process_index()
    context = ocp.Context()
    context.multiprocessing.primary_host = own
    context.multiprocessing.active_processes = {own}
    return context


@contextlib.contextmanager
def _unasked() -> Iterator[None]:
    """Lets Orbax save without a word to the other processes, which take no part.

    Before a save it compares the path among all processes, even where the context names one of them
    (`_check_directory_consistency`, orbax/checkpoint/experimental/v1/_src/saving/execution.py, in
    0.12.8): process 0 would wait for the others, or disturb what they compute together.
    """
    if jax.process_count() == 1:
        yield
        return
    from orbax.checkpoint.experimental.v1._src.saving import execution

    name = '_check_directory_consistency'
    check = getattr(execution, name)
    setattr(execution, name, lambda directory: None)
    try:
        yield
    finally:
        setattr(execution, name, check)


def _by_path(tree: Any) -> dict[str, tuple]:
    """Path of each array -> (shape, dtype)."""
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): (tuple(x.shape), np.dtype(x.dtype))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _compare(saved: dict[str, tuple], wanted: dict[str, tuple], path: pathlib.Path) -> None:
    """Refuses another model: Orbax silently casts dtypes and reports only a few mismatches."""
    differences = [
        f'{name}: {_describe(saved.get(name))} saved, {_describe(wanted.get(name))} in this model'
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        shown = '\n  '.join(differences[:5])
        raise InputError(
            f'checkpoint {path} belongs to another model. Arrays that differ ({len(differences)}):'
            f'\n  {shown}\nuse the configuration it was trained with, or another --workdir'
        )


def _describe(entry: tuple | None) -> str:
    return 'nothing' if entry is None else f'{entry[1]} {list(entry[0])}'


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
