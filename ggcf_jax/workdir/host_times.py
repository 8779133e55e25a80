"""How long each host of a run waits for its data, as `metrics.jsonl` has it, and which is slow."""

from collections.abc import Mapping, Sequence

import numpy as np

# A host is slow that waits this much longer than the median, in shares of a step.
_SLOW = 0.1


def key(index: int) -> str:
    """Name of the metric of a process: seconds of a step that it waited for its next batch.

    Args:
        index: index of the process.
    """
    return f'hosts/{index}/data_wait_sec'


def slowest(waits: Sequence[float], step_sec: float | None) -> int | None:
    """Index of the host that holds up the others; None if none does.

    Args:
        waits: seconds of a step that each host waited.
        step_sec: seconds of a step; None where no step was timed.
    """
    if step_sec is None or len(waits) < 2:
        return None
    index = int(np.argmax(waits))
    return index if waits[index] - float(np.median(waits)) > _SLOW * step_sec else None


def medians(rows: Sequence[Mapping[str, float | None]]) -> list[float]:
    """The median wait of each host over rows of metrics; [] for a run of one process.

    Args:
        rows: rows of one start of the run.
    """
    found: list[float] = []
    while waits := [x for row in rows if (x := row.get(key(len(found)))) is not None]:
        found.append(float(np.median(waits)))
    return found
