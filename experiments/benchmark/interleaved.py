"""Times two calls in turn, so that whatever else the machine does meanwhile falls on both."""

import dataclasses
import statistics
import time
from collections.abc import Callable

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How one call compares with another.

    Attributes:
        milliseconds: smallest wall time of each.
        least: smallest processor time of the process of each, in milliseconds.
        wall: median over the rounds of the wall time of the one over that of the other.
        processor: the same of the processor time of the process.
    """

    milliseconds: tuple[float, float]
    least: tuple[float, float]
    wall: float
    processor: float


def compare(one: Call, other: Call, rounds: int) -> Ratio:
    """Runs both in turn, twice each, and times the second call.

    A call that follows another of its kind, as steps do, finds the memory that the other gave back.
    Where the guest of a virtual machine reports free pages (virtio balloon), the host takes them
    within a second or two, and to get two gigabytes again takes a second of system time.

    Args:
        one: call that is timed.
        other: call that it is compared with.
        rounds: number of rounds.
    """
    pairs = []
    for i in range(rounds):
        row = {}
        for call in (one, other) if i % 2 else (other, one):
            call()
            wall, processor = time.perf_counter(), time.process_time()
            call()
            row[call] = (time.perf_counter() - wall, time.process_time() - processor)
        pairs.append((row[one], row[other]))
    return Ratio(
        (1e3 * min(a[0] for a, _ in pairs), 1e3 * min(b[0] for _, b in pairs)),
        (1e3 * min(a[1] for a, _ in pairs), 1e3 * min(b[1] for _, b in pairs)),
        statistics.median(a[0] / b[0] for a, b in pairs),
        statistics.median(a[1] / b[1] for a, b in pairs),
    )
