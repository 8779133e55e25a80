"""Work of one device in one call of a compiled program: bytes moved, operations, estimated cycles.

The body of a loop counts once for each iteration.
"""

import collections
import dataclasses
import math
import re

from experiments.ahead import hlo

_NOTHING_MOVED = {
    'after-all', 'bitcast', 'conditional', 'constant', 'get-tuple-element', 'opt-barrier',
    'parameter', 'partition-id', 'tuple', 'while',
}  # fmt: skip


def estimated_cycles(text: str) -> int:
    """Sums the cycles that a TPU's compiler estimates for its operations; 0 in other programs.

    Raises:
        ValueError: a loop whose trip count is not in the text.
    """
    computations, entry = hlo.parse(text)
    # The estimate of a fusion includes everything inside.
    times = hlo.executions(computations, entry, ('body', 'condition', 'to_apply'))
    return sum(
        times[name] * int(cycles)
        for name, instructions in computations.items()
        for instruction in instructions
        for cycles in re.findall(r'"estimated_cycles":"(\d+)"', instruction.rest)[:1]
    )


def traffic(text: str, without: str | None = None) -> int:
    """Counts the bytes of device memory that a call of the program reads and writes.

    Every operation outside of a fusion, and every fusion as a whole, reads its operands and writes
    its results once. Of arrays that are sliced or updated in place only the slice counts; arrays in
    a TPU's on-chip memory do not count.

    Args:
        text: text of the compiled program.
        without: how the targets of custom calls begin that are left out; None for none.

    Raises:
        ValueError: a loop whose trip count is not in the text.
    """
    computations, entry = hlo.parse(text)
    times = hlo.executions(computations, entry, ('body', 'condition'))
    bodies = {name: _Body(instructions) for name, instructions in computations.items()}
    return sum(
        times[name] * _moved(instruction, body, bodies)
        for name, body in bodies.items()
        if times[name]
        for instruction in body.instructions
        if without is None or f'custom_call_target="{without}' not in instruction.rest
    )


def operations(text: str) -> int:
    """Counts the operations (on a GPU, kernels) that a call of the program starts on the device.

    Raises:
        ValueError: a loop whose trip count is not in the text.
    """
    computations, entry = hlo.parse(text)
    times = hlo.executions(computations, entry, ('body', 'condition'))
    return sum(
        times[name] * sum(_is_launched(i) for i in instructions)
        for name, instructions in computations.items()
    )


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An operation that is started on the device.

    Attributes:
        opcodes: its opcode and those of the operations fused into it, or the name of a library's
            function.
        moved: bytes of device memory that it reads and writes, see `traffic`.
        times: how often a call of the program starts it.
    """

    opcodes: frozenset[str]
    moved: int
    times: int


def kernels(text: str) -> list[Kernel]:
    """Lists the operations that a call of the program starts on the device, as `operations`.

    Raises:
        ValueError: a loop whose trip count is not in the text.
    """
    computations, entry = hlo.parse(text)
    times = hlo.executions(computations, entry, ('body', 'condition'))
    bodies = {name: _Body(instructions) for name, instructions in computations.items()}
    return [
        Kernel(_opcodes(i, computations), _moved(i, body, bodies), times[name])
        for name, body in bodies.items()
        if times[name]
        for i in body.instructions
        if _is_launched(i)
    ]


def _opcodes(i: hlo.Instruction, computations: dict[str, list[hlo.Instruction]]) -> frozenset[str]:
    if i.opcode == 'custom-call':
        return frozenset(re.findall(r'custom_call_target="([^"]*)"', i.rest))
    if i.opcode != 'fusion':
        return frozenset({i.opcode})
    inner = computations[dict(hlo.CALLED.findall(i.rest))['calls']]
    return frozenset().union(*(_opcodes(each, computations) for each in inner))


def _is_launched(i: hlo.Instruction) -> bool:
    if i.opcode == 'custom-call':  # on TPUs also the allocation of uninitialised memory
        return 'custom_call_target="AllocateBuffer"' not in i.rest
    return i.opcode not in _NOTHING_MOVED and not i.opcode.endswith('-done')


class _Body:
    """Instructions of a computation, by name and by their users; the last is its root."""

    def __init__(self, instructions: list[hlo.Instruction]) -> None:
        self.instructions = instructions
        self.by_name = {i.name: i for i in instructions}
        self.users: dict[str, list[hlo.Instruction]] = collections.defaultdict(list)
        for i in instructions:
            for operand in set(i.operands):
                self.users[operand].append(i)
        self.parameters = {
            int(i.rest.partition(')')[0]): i for i in instructions if i.opcode == 'parameter'
        }

    def size(self, name: str) -> int:
        """Returns the bytes in device memory of an instruction's result."""
        return _size(self.by_name[name].result) if name in self.by_name else 0


def _size(result: str) -> int:
    return sum(
        hlo.item_bytes(dtype) * math.prod(shape)
        for dtype, shape, layout in hlo.arrays(result)
        if 'S(' not in layout
    )


def _moved(i: hlo.Instruction, body: _Body, bodies: dict[str, _Body]) -> int:
    """Returns the bytes that one instruction reads and writes."""
    if not _is_launched(i):
        return 0
    if i.opcode == 'fusion':
        inner = bodies[dict(hlo.CALLED.findall(i.rest))['calls']]
        read = sum(
            min(body.size(name), _read(inner, inner.parameters[n].name, bodies))
            for n, name in enumerate(i.operands)
        )
        return read + min(_size(i.result), _written(inner, inner.instructions[-1]))
    if i.opcode in ('dynamic-slice', 'slice'):
        return 2 * _size(i.result)
    if i.opcode == 'dynamic-update-slice':
        return 2 * body.size(i.operands[1])
    if i.opcode.endswith('-start'):  # its result includes its operand
        return _size(i.result)
    return _size(i.result) + sum(body.size(name) for name in i.operands)


def _read(inner: _Body, name: str, bodies: dict[str, _Body]) -> int:
    """Returns the bytes of the array `name` that a fused computation reads, at most all of it."""
    read = 0
    for user in inner.users[name]:
        if user.opcode in ('dynamic-slice', 'slice'):
            read += _size(user.result)
        elif user.opcode == 'bitcast':
            read += _read(inner, user.name, bodies)
        elif user.opcode == 'fusion':
            called = bodies[dict(hlo.CALLED.findall(user.rest))['calls']]
            read += sum(
                _read(called, called.parameters[n].name, bodies)
                for n, operand in enumerate(user.operands)
                if operand == name
            )
        elif user.opcode != 'dynamic-update-slice' or user.operands[0] != name:
            return inner.size(name)
    return min(read, inner.size(name))


def _written(inner: _Body, root: hlo.Instruction) -> int:
    """Returns the bytes that a fused computation writes."""
    if root.opcode == 'tuple':
        return sum(_written(inner, inner.by_name[name]) for name in root.operands)
    if root.opcode == 'bitcast' and root.operands[0] in inner.by_name:
        return _written(inner, inner.by_name[root.operands[0]])
    if root.opcode == 'dynamic-update-slice':
        return inner.size(root.operands[1])
    return _size(root.result)
