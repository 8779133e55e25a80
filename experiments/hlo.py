"""What a compiled program tells: its collectives, and the cycles that a TPU's compiler expects.

Programs are the text of `jax.stages.Compiled.as_text`. A loop stands there once; here everything
counts as often as it runs.
"""

import collections
import dataclasses
import math
import re

KINDS = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute', 'reduce-scatter')
_BYTES = {'pred': 1, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8}
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+)\[([\d,]*)\]')
_CALLED = re.compile(r'\b(body|condition|calls|to_apply)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


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


@dataclasses.dataclass(frozen=True)
class _Instruction:
    result: str
    opcode: str
    rest: str


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, in its order.

    Raises:
        ValueError: a loop of which the text does not tell how often it runs.
    """
    computations, entry = _parse(text)
    times = _executions(computations, entry, ('body', 'condition', 'calls', 'to_apply'))
    found: list[Collective] = []
    channels: dict[str, int] = {}
    for name, instructions in computations.items():
        for instruction in instructions:
            # Of an asynchronous pair the second has the result alone.
            kind = instruction.opcode.removesuffix('-done')
            if kind not in KINDS or not times[name]:
                continue
            arrays = _arrays(instruction.result)
            source = re.search(r'op_name="([^"]*)"', instruction.rest)
            collective = Collective(
                kind,
                tuple(f'{dtype}[{",".join(map(str, shape))}]' for dtype, shape in arrays),
                sum(_item_bytes(dtype) * math.prod(shape) for dtype, shape in arrays),
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


def totals(found: list[Collective]) -> dict[str, Total]:
    """Count and bytes of the collectives by kind, for one call of the program."""
    sums = {}
    for kind in KINDS:
        of_kind = [c for c in found if c.kind == kind]
        if of_kind:
            sums[kind] = Total(
                sum(c.times for c in of_kind), sum(c.times * c.bytes for c in of_kind)
            )
    return sums


def estimated_cycles(text: str) -> int:
    """Sum of what a TPU's compiler expects its operations to take; 0 in other programs.

    Raises:
        ValueError: as `collectives`.
    """
    computations, entry = _parse(text)
    # A fusion carries the estimate of all that is inside.
    times = _executions(computations, entry, ('body', 'condition', 'to_apply'))
    return sum(
        times[name] * int(cycles)
        for name, instructions in computations.items()
        for instruction in instructions
        for cycles in re.findall(r'"estimated_cycles":"(\d+)"', instruction.rest)[:1]
    )


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Instructions by computation, and the name of the entry."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = '', None
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = computations.setdefault(header.group(2), [])
            entry = header.group(2) if header.group(1) else entry
        elif current is not None:
            instruction = _INSTRUCTION.match(line)
            if instruction:
                current.append(_Instruction(*instruction.groups()))
    return computations, entry


def _executions(
    computations: dict[str, list[_Instruction]], entry: str, through: tuple[str, ...]
) -> collections.Counter:
    """How often a call of the program runs each computation.

    Args:
        through: attributes by which an instruction calls a computation that are followed.
    """
    times = collections.Counter({entry: 1})
    # Callees stand before their callers.
    for name in reversed(computations):
        for instruction in computations[name] if times[name] else ():
            repeated = 1
            if instruction.opcode == 'while':
                repeated = _trips(instruction, computations)
            for attribute, callee in _CALLED.findall(instruction.rest):
                if attribute in through:
                    times[callee] += repeated * times[name]
            for callee in _callees(_BRANCHES.search(instruction.rest)):
                times[callee] += times[name]
    return times


def _callees(branches: re.Match | None) -> list[str]:
    return re.findall(r'[\w.\-]+', branches.group(1)) if branches else []


def _trips(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if known:
        return int(known.group(1))
    # A TPU's compiler does not say: JAX's loops of fixed length count from 0 to a constant.
    condition = dict(_CALLED.findall(loop.rest))['condition']
    limits = [
        int(i.rest.partition(')')[0])
        for i in computations[condition]
        if i.opcode == 'constant' and i.result.startswith('s32[]')
    ]
    counts = any('direction=LT' in i.rest for i in computations[condition])
    if len(limits) != 1 or not counts:
        raise ValueError(f'the program does not tell how often its loop {condition} runs')
    return limits[0]


def _arrays(result: str) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (dtype, tuple(int(n) for n in shape.split(',') if n))
        for dtype, shape in _ARRAY.findall(re.sub(r'/\*.*?\*/', '', result))
    ]


def _item_bytes(dtype: str) -> int:
    return _BYTES[dtype] if dtype in _BYTES else -(-int(re.sub(r'\D', '', dtype)) // 8)
