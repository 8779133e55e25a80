"""Metrics of a run: `metrics.jsonl` and TensorBoard event files in the workdir.

`metrics.jsonl` is the record that analyses read: one JSON object a line, `step` first, written
through to the file line by line. The event files repeat it, with image panels, for TensorBoard.
"""

import contextlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX

from ggcf_jax.errors import InputError

FILE_NAME = 'metrics.jsonl'


class Writer:
    """Appends rows to `metrics.jsonl` and to a TensorBoard event file.

    Opening drops the rows of later steps than the run resumes from, so that an interrupted run
    leaves the same rows as an uninterrupted one; TensorBoard is told to hide them as well.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        """Opens the files of `workdir`, which is made if it is missing.

        Args:
            workdir: the run's directory.
            step: the step that the run resumes from, 0 for a fresh one; rows of later steps go.

        Raises:
            InputError: metrics.jsonl is damaged before its last line; nothing is changed then.
        """
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / FILE_NAME
        _truncate(path, step)
        self._file = path.open('a', encoding='utf-8')
        # The event file's name has a resolution of one second, and a second writer would empty
        # the first one's file: number them.
        number = len(list(workdir.glob('events.out.tfevents.*')))
        self._events = tensorboardX.SummaryWriter(
            str(workdir), purge_step=step + 1, flush_secs=10, filename_suffix=f'.{number}'
        )

    def scalars(self, step: int, row: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
            step: the optimizer step that the values belong to.
            row: name -> scalar (Python, NumPy or JAX). NaN, infinity and None become null.
                Times and rates are named `..._sec` and `...per_sec`: by that name comparisons
                of two runs leave them out.

        Raises:
            ValueError: `row` has a `step` of its own, or a value is not a scalar number.
        """
        if 'step' in row:
            raise ValueError("the row has a key 'step' of its own; give the step as an argument")
        values = {name: _number(name, value) for name, value in row.items()}
        line = json.dumps({'step': int(step)} | values, ensure_ascii=False, allow_nan=False)
        self._file.write(line + '\n')
        self._file.flush()
        for name, value in values.items():
            if value is not None:  # TensorBoard shows a gap there.
                self._events.add_scalar(name, value, int(step))

    def image(self, step: int, tag: str, array: np.ndarray) -> None:
        """Writes a uint8 [h, w, 3] RGB image to TensorBoard under `tag`."""
        array = np.asarray(array)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(
                f'image {tag!r} is {array.dtype} {list(array.shape)}; give uint8 [h, w, 3]'
            )
        self._events.add_image(tag, array, int(step), dataformats='HWC')

    def close(self) -> None:
        """Flushes and closes both files; a second call does nothing."""
        self._file.close()
        self._events.close()

    def __enter__(self) -> 'Writer':
        return self

    def __exit__(self, *unused) -> None:
        self.close()


class NoWriter(contextlib.AbstractContextManager):
    """Takes the place of `Writer` in processes that write nothing."""

    def scalars(self, step: int, row: Mapping[str, Any]) -> None:
        pass

    def image(self, step: int, tag: str, array: np.ndarray) -> None:
        pass

    def __exit__(self, *unused) -> None:
        pass


def read_rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of the workdir's `metrics.jsonl` in file order, [] if there is none.

    A last line that a kill has cut short is left out. null (NaN or infinity) reads as None.

    Raises:
        InputError: another line is not a JSON object with an integer `step`.
    """
    return [row for _, row in _read(pathlib.Path(workdir) / FILE_NAME)]


def _read(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The whole lines of the file, each as its bytes (no newline) and its parsed row."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b'\n')
    result = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or type(row.get('step')) is not int:
                raise ValueError('no integer step')
        except ValueError as error:
            # Only the last line can lack its newline, and then a kill cut it short.
            if number == len(lines):
                break
            raise InputError(
                f'{path}, line {number} is not a JSON object with an integer step; '
                'repair or delete that line'
            ) from error
        result.append((line, row))
    return result


def _truncate(path: pathlib.Path, step: int) -> None:
    """Leaves the whole rows up to `step`, their bytes as they were, in one atomic replacement."""
    if not path.exists():
        return
    kept = b''.join(line + b'\n' for line, row in _read(path) if row['step'] <= step)
    if kept == path.read_bytes():
        return
    handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _number(name: str, value: Any) -> int | float | None:
    """`value` as a Python number, None if it is not finite.

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
