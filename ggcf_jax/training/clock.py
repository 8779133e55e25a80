"""Where the time of training goes: steps, and the wait for their data."""

import contextlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from ggcf_jax.training.state import TrainState

# Share of the time from which on waiting for data is worth a warning.
INPUT_BOUND = 0.5


class StepClock:
    """Times steps in windows, from one `row` to the next.

    The host hands each step to the devices and makes the next batch meanwhile. It stays at most one
    step ahead: so the time that it waits for batches tells whether the input pipeline or the
    devices are the slower ones. In the first case nearly all of the time is spent waiting for
    batches, in the second next to none.

    Create it when the first step is done, so that its compilation is not counted.
    """

    def __init__(self, step: int) -> None:
        """
        Args:
            step: number of steps done.
        """
        self._step = step
        self._since = time.perf_counter()
        self._waited = 0.0
        self._previous: jax.Array | None = None

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as a wait for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def leave_out(self, seconds: float) -> None:
        """Does not count a time that was spent on something else, in seconds."""
        self._since += seconds

    def keep_up(self, state: TrainState) -> None:
        """Waits until the step before the one that gave `state` is done."""
        if self._previous is not None:
            self._previous.block_until_ready()
        # A copy: the next step takes the buffers of the state.
        self._previous = jnp.copy(state.step)

    def row(self, step: int, batch_size: int) -> dict[str, float | None]:
        """The metrics of the steps since the last row, and starts the next window.

        Args:
            step: number of steps done.
            batch_size: number of images in a step.

        Returns:
            Seconds a step, seconds of it that were waited for data, and images per second; None
            where no step has been timed.
        """
        steps = step - self._step
        now = time.perf_counter()
        seconds, waited = now - self._since, self._waited
        self._step, self._since, self._waited = step, now, 0.0
        if not steps:
            return dict.fromkeys(
                ('train/step_sec', 'train/data_wait_sec', 'train/images_per_sec'), None
            )
        return {
            'train/step_sec': seconds / steps,
            'train/data_wait_sec': waited / steps,
            'train/images_per_sec': batch_size * steps / seconds,
        }


def is_input_bound(row: dict[str, float | None]) -> bool:
    """Whether the devices wait for data rather than the data for the devices, by a clock's row."""
    seconds, waited = row['train/step_sec'], row['train/data_wait_sec']
    return seconds is not None and waited is not None and waited > INPUT_BOUND * seconds
