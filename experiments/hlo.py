"""What a compiled program tells: collectives, memory traffic, cycles that a TPU's compiler expects.

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
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^{}]*\})?')
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
    """Attributes: name, text of the result's shape, opcode, the line from its operands on."""

    name: str
    result: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r'%([\w.\-]+)', self.rest.partition(')')[0])


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
            arrays = [array[:2] for array in _arrays(instruction.result)]
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


def traffic(text: str) -> int:
    """Bytes of device memory that a call of the program reads and writes.

    Every operation outside of a fusion, and every fusion as a whole, reads its operands and writes
    its results once. Of what is sliced or updated in place only the slice counts; arrays in a
    TPU's on-chip memory do not.

    Raises:
        ValueError: as `collectives`.
    """
    computations, entry = _parse(text)
    times = _executions(computations, entry, ('body', 'condition'))
    bodies = {name: _Body(instructions) for name, instructions in computations.items()}
    return sum(
        times[name] * _moved(instruction, body, bodies)
        for name, body in bodies.items()
        if times[name]
        for instruction in body.instructions
    )


def operations(text: str) -> int:
    """How many operations a call of the program starts on the device (kernels, on a GPU).

    Raises:
        ValueError: as `collectives`.
    """
    computations, entry = _parse(text)
    times = _executions(computations, entry, ('body', 'condition'))
    return sum(
        times[name] * sum(_starts_something(i) for i in instructions)
        for name, instructions in computations.items()
    )


def _starts_something(i: _Instruction) -> bool:
    if i.opcode == 'custom-call':  # on TPUs also for memory that nothing has been written to yet
        return 'custom_call_target="AllocateBuffer"' not in i.rest
    return i.opcode not in _NOTHING_MOVED and not i.opcode.endswith('-done')


_NOTHING_MOVED = {
    'after-all', 'bitcast', 'conditional', 'constant', 'get-tuple-element', 'opt-barrier',
    'parameter', 'partition-id', 'tuple', 'while',
}  # fmt: skip


class _Body:
    """Instructions of a computation, by name and by who uses them; the last is its root."""

    def __init__(self, instructions: list[_Instruction]):
        self.instructions = instructions
        self.by_name = {i.name: i for i in instructions}
        self.users: dict[str, list[_Instruction]] = collections.defaultdict(list)
        for i in instructions:
            for operand in set(i.operands):
                self.users[operand].append(i)
        self.parameters = {
            int(i.rest.partition(')')[0]): i for i in instructions if i.opcode == 'parameter'
        }

    def size(self, name: str) -> int:
        """Bytes in device memory of what an instruction results in."""
        return _size(self.by_name[name].result) if name in self.by_name else 0


def _size(result: str) -> int:
    return sum(
        _item_bytes(dtype) * math.prod(shape)
        for dtype, shape, layout in _arrays(result)
        if 'S(' not in layout
    )


def _moved(i: _Instruction, body: _Body, bodies: dict[str, _Body]) -> int:
    """Bytes that one instruction reads and writes."""
    if not _starts_something(i):
        return 0
    if i.opcode == 'fusion':
        inner = bodies[dict(_CALLED.findall(i.rest))['calls']]
        read = sum(
            min(body.size(name), _read(inner, inner.parameters[n].name, bodies))
            for n, name in enumerate(i.operands)
        )
        return read + min(_size(i.result), _written(inner, inner.instructions[-1]))
    if i.opcode in ('dynamic-slice', 'slice'):
        return 2 * _size(i.result)
    if i.opcode == 'dynamic-update-slice':
        return 2 * body.size(i.operands[1])
    if i.opcode.endswith('-start'):  # its result holds its operand once more
        return _size(i.result)
    return _size(i.result) + sum(body.size(name) for name in i.operands)


def _read(inner: _Body, name: str, bodies: dict[str, _Body]) -> int:
    """Bytes of the array `name` that a fused computation reads, at most all of it."""
    read = 0
    for user in inner.users[name]:
        if user.opcode in ('dynamic-slice', 'slice'):
            read += _size(user.result)
        elif user.opcode == 'bitcast':
            read += _read(inner, user.name, bodies)
        elif user.opcode == 'fusion':
            called = bodies[dict(_CALLED.findall(user.rest))['calls']]
            read += sum(
                _read(called, called.parameters[n].name, bodies)
                for n, operand in enumerate(user.operands)
                if operand == name
            )
        elif user.opcode != 'dynamic-update-slice' or user.operands[0] != name:
            return inner.size(name)
    return min(read, inner.size(name))


def _written(inner: _Body, root: _Instruction) -> int:
    """Bytes that a fused computation writes."""
    if root.opcode == 'tuple':
        return sum(_written(inner, inner.by_name[name]) for name in root.operands)
    if root.opcode == 'bitcast' and root.operands[0] in inner.by_name:
        return _written(inner, inner.by_name[root.operands[0]])
    if root.opcode == 'dynamic-update-slice':
        return inner.size(root.operands[1])
    return _size(root.result)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Instructions by computation, and the name of the entry."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = '', None
    for line in text.splitlines():
        line = re.sub(r'/\*.*?\*/', '', line)  # numbers of a long tuple's elements
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


def _arrays(result: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(dtype, shape, layout) of each array in the text of a shape."""
    return [
        (dtype, tuple(int(n) for n in shape.split(',') if n), layout)
        for dtype, shape, layout in _ARRAY.findall(result)
    ]


def _item_bytes(dtype: str) -> int:
    return _BYTES[dtype] if dtype in _BYTES else -(-int(re.sub(r'\D', '', dtype)) // 8)
