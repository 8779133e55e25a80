"""How long each process of a run waits for its data: one slow host holds up all of them."""

from collections.abc import Mapping

import numpy as np

from ggcf_jax.distributed import processes

# A process is slow that waits this much longer than the median, in shares of a step.
_SLOW = 0.1


class HostWatch:
    """Compares the processes of a run; all of them call its methods together."""

    def __init__(self) -> None:
        """Collects the names of the machines."""
        self._names = processes.host_names()
        self._told: set[int] = set()

    def row(self, times: Mapping[str, float | None]) -> tuple[dict[str, float], str | None]:
        """The waits of all processes, and a warning about one that was not slow before.

        Args:
            times: row of a `StepClock` of this process.

        Returns:
            Metrics, {} in a run of one process; the warning, or None.
        """
        waited, seconds = times['train/data_wait_sec'], times['train/step_sec']
        if len(self._names) == 1:
            return {}, None
        waits = processes.gathered(np.float32(waited or 0))
        row = {f'hosts/{i}/data_wait_sec': float(wait) for i, wait in enumerate(waits)}
        slowest, usual = int(waits.argmax()), float(np.median(waits))
        is_slow = seconds is not None and waits[slowest] - usual > _SLOW * seconds
        if not is_slow or slowest in self._told:
            return row, None
        self._told.add(slowest)
        return row, (
            f'warning: process {slowest} on {self._names[slowest]} waits '
            f'{waits[slowest]:.3g} s for the data of a step, the others {usual:.3g} s: look at its '
            'disk, its cores and what else runs there'
        )
