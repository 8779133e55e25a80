"""Times two programs in turn, so that whatever else the machine does meanwhile falls on both."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Times:
    """What a call took.

    Attributes:
        wall: wall time in seconds.
        processor: processor time of the process in seconds.
    """

    wall: float
    processor: float


Turn = Callable[[], Times]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How one program compares with another.

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


def turn(call: Call, count: int = 1) -> Times:
    """Calls once, then times further calls.

    A call that returns arrays of JAX before they are computed is followed by the next one at once;
    those of the last one are waited for.

    A call that follows another of its kind, as steps do, finds the memory that the other gave back.
    Where the guest of a virtual machine reports free pages (virtio balloon), the host takes them
    within a second or two, and to get two gigabytes again takes a second of system time.

    Args:
        call: what is timed.
        count: number of calls that are timed.

    Returns:
        Means over the timed calls.
    """
    jax.block_until_ready(call())
    wall, processor = time.perf_counter(), time.process_time()
    returned = None
    for _ in range(count):
        returned = call()
    jax.block_until_ready(returned)
    return Times((time.perf_counter() - wall) / count, (time.process_time() - processor) / count)


def compare_turns(one: Turn, other: Turn, rounds: int) -> Ratio:
    """Lets two programs have their turns, and the other go first in every second round.

    Args:
        one: program that is timed.
        other: program that it is compared with.
        rounds: number of rounds.
    """
    pairs = []
    for i in range(rounds):
        row = {each: each() for each in ((one, other) if i % 2 else (other, one))}
        pairs.append((row[one], row[other]))
    return Ratio(
        (1e3 * min(a.wall for a, _ in pairs), 1e3 * min(b.wall for _, b in pairs)),
        (1e3 * min(a.processor for a, _ in pairs), 1e3 * min(b.processor for _, b in pairs)),
        statistics.median(a.wall / b.wall for a, b in pairs),
        statistics.median(a.processor / b.processor for a, b in pairs),
    )


def compare(one: Call, other: Call, rounds: int) -> Ratio:
    """Times two calls of this process in turn.

    Args:
        one: call that is timed.
        other: call that it is compared with.
        rounds: number of rounds.
    """
    return compare_turns(lambda: turn(one), lambda: turn(other), rounds)
