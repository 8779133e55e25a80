"""Collective operations of compiled programs: what devices send each other.

A collective in a loop counts as often as it runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

from experiments.ahead import hlo

KINDS = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute', 'reduce-scatter')

GATHERS = ('all-gather', 'all-to-all')

# A program of replicated parameters and a divided batch has nothing to gather. The compilers are
# free to gather a few numbers, such as those of a random generator.
LARGEST_GATHER = 4096  # bytes


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`.
        arrays: of its result on one device, such as 'f32[2048]'.
        bytes: of that result.
        times: how often a call of the program runs it.
        source: the JAX operation that it comes from.
    """

    kind: str
    arrays: tuple[str, ...]
    bytes: int
    times: int
    source: str


@dataclasses.dataclass(frozen=True)
class Total:
    """Of all collectives of a kind: how many a call of the program runs, and their bytes."""

    count: int
    bytes: int


def of_program(text: str) -> list[Collective]:
    """The collectives of a compiled program, in its order.

    Raises:
        ValueError: a loop of which the text does not tell how often it runs.
    """
    computations, entry = hlo.parse(text)
    times = hlo.executions(computations, entry, ('body', 'condition', 'calls', 'to_apply'))
    found: list[Collective] = []
    channels: dict[str, int] = {}
    for name, instructions in computations.items():
        for instruction in instructions:
            # Of an asynchronous pair the second has the result alone.
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
            # A TPU's compiler writes one collective into each fusion that it overlaps with.
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
    """Count and bytes of the collectives by kind, for one call of the program."""
    found, sums = list(found), {}
    for kind in KINDS:
        of_kind = [c for c in found if c.kind == kind]
        if of_kind:
            sums[kind] = Total(
                sum(c.times for c in of_kind), sum(c.times * c.bytes for c in of_kind)
            )
    return sums


def of_a_head(collective: Collective) -> bool:
    """Whether a head asks for it, where `mesh.space` deals the rows of its map over devices."""
    return '/shard_map/' in collective.source


def gathers(found: Iterable[Collective]) -> list[Collective]:
    """The collectives that bring activations to other devices and that no head asks for."""
    return [c for c in found if c.kind in GATHERS and c.bytes > LARGEST_GATHER and not of_a_head(c)]
