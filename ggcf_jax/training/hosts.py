"""How long each process of a run waits for its data: one slow host holds up all of them."""

from collections.abc import Mapping, Sequence

import numpy as np

from ggcf_jax.distributed import processes
from ggcf_jax.workdir import host_times


class HostWatch:
    """Compares the processes of a run; all of them call its methods together."""

    def __init__(self, names: Sequence[str]) -> None:
        """
        Args:
            names: name of the machine of each process.
        """
        self._names = names
        self._told: set[int] = set()

    def row(self, times: Mapping[str, float | None]) -> tuple[dict[str, float], str | None]:
        """The waits of all processes, and a warning about one that was not slow before.

        Args:
            times: row of a `StepClock` of this process.

        Returns:
            Metrics, {} in a run of one process; the warning, or None.
        """
        if len(self._names) == 1:
            return {}, None
        waits = processes.gathered(np.float32(times['train/data_wait_sec'] or 0)).tolist()
        row = {host_times.key(i): wait for i, wait in enumerate(waits)}
        slowest = host_times.slowest(waits, times['train/step_sec'])
        if slowest is None or slowest in self._told:
            return row, None
        self._told.add(slowest)
        return row, (
            f'warning: process {slowest} on {self._names[slowest]} waits '
            f'{waits[slowest]:.3g} s for the data of a step, the others '
            f'{float(np.median(waits)):.3g} s: look at its disk, its cores and what else runs there'
        )
