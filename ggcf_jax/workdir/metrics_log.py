"""Metrics of a run: `metrics.jsonl` and TensorBoard event files in the workdir.

Analyses read `metrics.jsonl`: one JSON object a line, `step` first, flushed after every line. The
event files repeat it, with image panels, for TensorBoard.

Nothing can be appended to an object of a bucket. There the files grow in a folder of temporary
files and are uploaded before each checkpoint is written and before its evaluation is noted, so that
the log never lacks rows of what a run resumes from.
"""

import contextlib
import functools
import json
import math
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ggcf_jax import atomic, json_files, places
from ggcf_jax.buckets import BucketPath
from ggcf_jax.errors import InputError
from ggcf_jax.workdir.event_file import EventFile

FILE_NAME = 'metrics.jsonl'

_EVENTS = 'events.out.tfevents.*'
# An event file in a bucket is uploaded again whenever it has grown; above this size a new one is
# begun.
_EVENT_BYTES = 8 << 20


class Writer:
    """Appends rows to `metrics.jsonl` and to a TensorBoard event file.

    Opening drops the rows after the step that the run resumes from, so that an interrupted run
    leaves the same rows as an uninterrupted one; TensorBoard hides them as well.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        step: int,
        *,
        evaluate_again: bool = False,
        echo: Callable[[str], None] | None = None,
    ):
        """Opens the files of `workdir`, which is made if it is missing.

        Args:
            workdir: directory of the run.
            step: step that the run resumes from, 0 for a new run; later rows are dropped.
            evaluate_again: whether the evaluation of this step is made again, so that its row is
                dropped as well.
            echo: called with each line of metrics.jsonl as it is written.

        Raises:
            InputError: metrics.jsonl is damaged before its last line, and nothing has been
                changed; or the workdir cannot be written.
        """
        self._workdir = places.expand(workdir)
        self._step = step
        self._echo = echo
        self._folder = self._workdir
        self._spool: tempfile.TemporaryDirectory | None = None
        self._uploaded: dict[str, int] = {}  # name -> size, of files in the spool
        self._writing = functools.partial(places.writing, self._workdir, '--workdir')
        with self._writing():
            self._workdir.mkdir(parents=True, exist_ok=True)
            _truncate(self._workdir / FILE_NAME, step, evaluate_again=evaluate_again)
            if isinstance(self._workdir, BucketPath):
                self._spool = tempfile.TemporaryDirectory(prefix='ggcf_jax-log-')
                self._folder = pathlib.Path(self._spool.name)
                with contextlib.suppress(FileNotFoundError):
                    content = (self._workdir / FILE_NAME).read_bytes()
                    (self._folder / FILE_NAME).write_bytes(content)
                    self._uploaded[FILE_NAME] = len(content)
            self._file = (self._folder / FILE_NAME).open('a', encoding='utf-8')
            self._number = len(list(self._workdir.glob(_EVENTS)))
            self._events = EventFile(self._folder, step, self._number)

    def scalars(self, step: int, row: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
            step: training step that the values belong to.
            row: name -> scalar (Python, NumPy or JAX). NaN, infinity and None become null. Names of
                times and rates end in `_sec`, by which comparisons of two runs leave them out.

        Raises:
            ValueError: `row` has a key `step`, or a value is not a scalar number.
            InputError: the workdir cannot be written.
        """
        if 'step' in row:
            raise ValueError("the row has a key 'step' of its own; give the step as an argument")
        values = {name: _number(name, value) for name, value in row.items()}
        line = json.dumps({'step': int(step)} | values, ensure_ascii=False, allow_nan=False)
        self._step = int(step)
        with self._writing():
            self._file.write(line + '\n')
            self._file.flush()
            if self._echo is not None:
                self._echo(line)
            for name, value in values.items():
                if value is not None:  # TensorBoard shows a gap there.
                    self._events.scalar(int(step), name, value)

    def image(self, step: int, tag: str, array: UInt8[np.ndarray, 'h w 3']) -> None:
        """Writes an image to TensorBoard.

        Args:
            step: training step that the image belongs to.
            tag: name of the image.
            array: RGB.

        Raises:
            ValueError: another dtype or shape.
            InputError: the workdir cannot be written.
        """
        array = np.asarray(array)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(
                f'image {tag!r} is {array.dtype} {list(array.shape)}; give uint8 [h, w, 3]'
            )
        with self._writing():
            self._events.image(int(step), tag, array)

    def upload(self) -> None:
        """Copies what was written so far into the bucket; nothing to do for a local workdir.

        Raises:
            InputError: the bucket cannot be written.
        """
        if self._spool is not None:
            with self._writing():
                self._upload()

    def _upload(self) -> None:
        self._events.flush()
        self._send()
        if any(size > _EVENT_BYTES for name, size in self._uploaded.items() if name != FILE_NAME):
            self._events.close()
            self._send()
            for path in self._folder.glob(_EVENTS):
                path.unlink()
                del self._uploaded[path.name]
            self._number += 1
            self._events = EventFile(self._folder, self._step, self._number)

    def _send(self) -> None:
        for path in sorted(self._folder.iterdir()):
            size = path.stat().st_size
            if self._uploaded.get(path.name) != size:
                atomic.write(self._workdir / path.name, path.read_bytes()[:size])
                self._uploaded[path.name] = size

    def close(self) -> None:
        """Flushes and closes both files; a second call does nothing.

        Raises:
            InputError: the workdir cannot be written.
        """
        with self._writing(), contextlib.closing(self._events):
            self._file.close()
        if self._spool is not None:
            with self._writing():
                self._send()
            self._spool.cleanup()
            self._spool = None

    def __enter__(self) -> 'Writer':
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        # On a full disk closing fails as well, which must not replace what was said first.
        with contextlib.suppress(InputError) if kind else contextlib.nullcontext():
            self.close()


class NoWriter(contextlib.AbstractContextManager):
    """Stands in for `Writer` in processes that write nothing."""

    def scalars(self, step: int, row: Mapping[str, Any]) -> None:
        pass

    def image(self, step: int, tag: str, array: UInt8[np.ndarray, 'h w 3']) -> None:
        pass

    def upload(self) -> None:
        pass

    def __exit__(self, *unused: object) -> None:
        pass


def read_rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of the workdir's `metrics.jsonl` in file order, [] if there is none.

    A last line that was cut off when the run was killed is left out. null, which stands for NaN or
    infinity, reads as None.

    Args:
        workdir: directory of the run.

    Raises:
        InputError: another line is not a JSON object of numbers with an integer `step`.
    """
    return [row for _, row in _read(places.expand(workdir) / FILE_NAME)]


def _read(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The complete lines of the file, each as its bytes (no newline) and its parsed row."""
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b'\n')
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error
    result = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json_files.parse_object(line)
            json_files.need(row, 'step', json_files.is_count, 'a step')
            for name in row:
                json_files.need(row, name, json_files.is_number_or_none, 'a number')
        except ValueError as error:
            # Only the last line can lack its newline, when the run was killed while writing it.
            if number == len(lines):
                break
            raise InputError(
                f'{path}, line {number} is not a JSON object of numbers with an integer step '
                f'({error}); repair or delete that line'
            ) from error
        result.append((line, row))
    return result


def _truncate(path: pathlib.Path, step: int, *, evaluate_again: bool) -> None:
    """Drops the rows after `step` and an incomplete last line, atomically."""
    if not path.exists():
        return

    def keeps(row: Mapping[str, Any]) -> bool:
        if row['step'] == step and evaluate_again:
            return not any(name.startswith('val/') for name in row)
        return row['step'] <= step

    kept = b''.join(line + b'\n' for line, row in _read(path) if keeps(row))
    if kept == path.read_bytes():
        return
    atomic.write(path, kept, sync=True)


def _number(name: str, value: Any) -> int | float | None:
    """Converts a value to a Python number, None if it is not finite.

    A float32 keeps its own shortest digits (0.1, not 0.10000000149): float(str(x)) does that for
    every float type, bfloat16 included, and still round-trips.
    """
    if value is None:
        return None
    scalar = np.asarray(value)
    if scalar.ndim or scalar.dtype.kind in 'OSUMmcb':
        raise ValueError(f'metric {name!r} is {value!r}; give a scalar number')
    if scalar.dtype.kind in 'iu':
        return int(scalar)
    number = float(str(scalar[()]))
    return number if math.isfinite(number) else None
