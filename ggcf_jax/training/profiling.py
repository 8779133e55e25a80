"""A trace of some training steps for XProf or TensorBoard, `config.train.profile`."""

import dataclasses
import pathlib
import re
import tempfile

import jax

from ggcf_jax import buckets
from ggcf_jax.errors import InputError

FOLDER = 'profile'


@dataclasses.dataclass(frozen=True)
class Span:
    """Training steps that are profiled.

    Attributes:
        first: number of the first step, from 1.
        last: number of the last step.
    """

    first: int
    last: int


def parse(text: str, steps: int) -> Span | None:
    """Reads `config.train.profile`.

    Args:
        text: 'START:STOP', both included; '' for none.
        steps: number of training steps.

    Raises:
        InputError: something else, or steps that the run does not have.
    """
    if not text:
        return None
    match = re.fullmatch(r'(\d+):(\d+)', text)
    span = Span(*map(int, match.groups())) if match else Span(0, 0)
    if not 1 <= span.first <= span.last <= steps:
        raise InputError(
            f'config.train.profile={text!r} must be START:STOP, the first and the last step to '
            f'profile, of the steps 1 to {steps}, such as 10:12'
        )
    return span


class Profiler:
    """Writes the trace of a span of steps into a folder; does nothing without a span."""

    def __init__(self, span: Span | None, folder: pathlib.Path) -> None:
        """
        Args:
            span: steps to profile.
            folder: where the profiler makes its folders `plugins/profile/TIME`.
        """
        self._span = span
        self._folder = folder
        self._running = False
        self._spool: tempfile.TemporaryDirectory | None = None  # of a folder in a bucket

    def before(self, step: int, state: object) -> None:
        """To be called before each step.

        Args:
            step: number of the step.
            state: what the step takes; waited for, so that earlier steps are not in the trace.
        """
        # A resumed run may begin inside the span.
        if self._span and not self._running and self._span.first <= step <= self._span.last:
            jax.block_until_ready(state)
            if isinstance(self._folder, buckets.BucketPath):
                self._spool = tempfile.TemporaryDirectory(prefix='ggcf_jax-profile-')
            jax.profiler.start_trace(self._spool.name if self._spool else str(self._folder))
            self._running = True

    def after(self, step: int, state: object) -> bool:
        """To be called after each step; returns whether the trace was written.

        Args:
            step: number of the step.
            state: what the step returned; waited for, so that the last step is in the trace.
        """
        if self._span is None or step < self._span.last:
            return False
        jax.block_until_ready(state)
        return self.close()

    def close(self) -> bool:
        """Ends a trace that has begun, if there is one; returns whether it was written."""
        if not self._running:
            return False
        self._running, self._span = False, None
        jax.profiler.stop_trace()
        if self._spool is not None and isinstance(self._folder, buckets.BucketPath):
            with self._spool as name:
                for file in pathlib.Path(name).rglob('*.*'):
                    buckets.upload(file, self._folder / file.relative_to(name).as_posix())
        return True
