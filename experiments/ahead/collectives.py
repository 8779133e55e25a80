"""Collective operations of compiled programs: what devices send each other.

A collective in a loop counts once for each iteration.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

from experiments.ahead import hlo

KINDS = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute', 'reduce-scatter')

GATHERS = ('all-gather', 'all-to-all')

# A program with replicated parameters and a sharded batch has nothing to gather. The compilers are
# free to gather a few numbers, such as those of a random generator.
LARGEST_GATHER = 4096  # bytes


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`.
        arrays: arrays of its result on one device, such as 'f32[2048]'.
        bytes: size of that result.
        times: number of times that a call of the program runs it.
        source: JAX operation that it comes from.
    """

    kind: str
    arrays: tuple[str, ...]
    bytes: int
    times: int
    source: str


@dataclasses.dataclass(frozen=True)
class Total:
    """All collectives of a kind in one call of the program.

    Attributes:
        count: number of collectives.
        bytes: size of their results on one device.
    """

    count: int
    bytes: int


def of_program(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program, in its order.

    Args:
        text: program as `jax.stages.Compiled.as_text` gives it.

    Raises:
        ValueError: a loop whose trip count is not in the text.
    """
    computations, entry = hlo.parse(text)
    times = hlo.executions(computations, entry, ('body', 'condition', 'calls', 'to_apply'))
    found: list[Collective] = []
    channels: dict[str, int] = {}
    for name, instructions in computations.items():
        for instruction in instructions:
            # In an asynchronous pair, the second instruction results in the result alone.
            kind = instruction.opcode.removesuffix('-done')
            if kind not in KINDS or not times[name]:
                continue
            arrays = [array[:2] for array in hlo.arrays(instruction.result)]
            source = re.search(r'op_name="([^"]*)"', instruction.rest)
            collective = Collective(
                kind,
                tuple(f'{dtype}[{",".join(map(str, shape))}]' for dtype, shape in arrays),
                sum(hlo.item_bytes(dtype) * math.prod(shape) for dtype, shape in arrays),
                times[name],
                source.group(1) if source else '',
            )
            # A TPU's compiler repeats a collective in each fusion that it overlaps with.
            channel = re.search(r'channel_id=(\d+)', instruction.rest)
            if channel and channel.group(1) in channels:
                earlier = channels[channel.group(1)]
                if found[earlier].times < collective.times:
                    found[earlier] = collective
                continue
            if channel:
                channels[channel.group(1)] = len(found)
            found.append(collective)
    return found


def totals(found: Iterable[Collective]) -> dict[str, Total]:
    """Returns count and bytes of the collectives by kind, in the order of `KINDS`."""
    by_kind: dict[str, list[Collective]] = {kind: [] for kind in KINDS}
    for collective in found:
        by_kind[collective.kind].append(collective)
    return {
        kind: Total(sum(c.times for c in each), sum(c.times * c.bytes for c in each))
        for kind, each in by_kind.items()
        if each
    }


def is_in_head(collective: Collective) -> bool:
    """Whether a head asks for it: `mesh.space` shards the rows of its map over devices."""
    return '/shard_map/' in collective.source


def gathers(found: Iterable[Collective]) -> list[Collective]:
    """Returns the collectives that gather activations without a head asking for it."""
    return [
        c for c in found if c.kind in GATHERS and c.bytes > LARGEST_GATHER and not is_in_head(c)
    ]
