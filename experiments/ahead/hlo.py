"""Parser of the text of a compiled program (`jax.stages.Compiled.as_text`).

The body of a loop is in the text once; `executions` returns how often it runs.
"""

import collections
import dataclasses
import re

_BYTES = {'pred': 1, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8}
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^{}]*\})?')
CALLED = re.compile(r'\b(body|condition|calls|to_apply)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
        name: name of the result.
        result: text of the result's shape.
        opcode: name of the operation, such as 'fusion'.
        rest: the line from its operands on.
    """

    name: str
    result: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r'%([\w.\-]+)', self.rest.partition(')')[0])


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Parses a program.

    Returns:
        Computation -> its instructions, and the name of the entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry = ''
    current: list[Instruction] | None = None
    for line in text.splitlines():
        line = re.sub(r'/\*.*?\*/', '', line)  # indices of a long tuple's elements
        header = _COMPUTATION.match(line)
        if header:
            current = computations.setdefault(header.group(2), [])
            entry = header.group(2) if header.group(1) else entry
        elif current is not None:
            instruction = _INSTRUCTION.match(line)
            if instruction:
                current.append(Instruction(*instruction.groups()))
    return computations, entry


def executions(
    computations: dict[str, list[Instruction]], entry: str, through: tuple[str, ...]
) -> collections.Counter[str]:
    """Counts how often a call of the program runs each computation.

    Args:
        computations: instructions by computation, from `parse`.
        entry: name of the entry computation, from `parse`.
        through: attributes of instructions whose computations are followed, of those in `CALLED`.

    Raises:
        ValueError: a loop whose trip count is not in the text.
    """
    times = collections.Counter({entry: 1})
    # Callees stand before their callers.
    for name in reversed(computations):
        for instruction in computations[name] if times[name] else ():
            repeated = 1
            if instruction.opcode == 'while':
                repeated = _trips(instruction, computations)
            for attribute, callee in CALLED.findall(instruction.rest):
                if attribute in through:
                    times[callee] += repeated * times[name]
            for callee in _callees(_BRANCHES.search(instruction.rest)):
                times[callee] += times[name]
    return times


def _callees(branches: re.Match | None) -> list[str]:
    return re.findall(r'[\w.\-]+', branches.group(1)) if branches else []


def _trips(loop: Instruction, computations: dict[str, list[Instruction]]) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if known:
        return int(known.group(1))
    # A TPU's compiler leaves it out; JAX's loops of fixed length count from 0 to a constant.
    condition = dict(CALLED.findall(loop.rest))['condition']
    limits = [
        int(i.rest.partition(')')[0])
        for i in computations[condition]
        if i.opcode == 'constant' and i.result.startswith('s32[]')
    ]
    counts = any('direction=LT' in i.rest for i in computations[condition])
    if len(limits) != 1 or not counts:
        raise ValueError(f'the trip count of loop {condition} is not in the text of the program')
    return limits[0]


def arrays(result: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Returns (dtype, shape, layout) of each array in the text of a shape."""
    return [
        (dtype, tuple(int(n) for n in shape.split(',') if n), layout)
        for dtype, shape, layout in _ARRAY.findall(result)
    ]


def item_bytes(dtype: str) -> int:
    """Returns the size of an element of a dtype of HLO, such as 'bf16'."""
    return _BYTES[dtype] if dtype in _BYTES else -(-int(re.sub(r'\D', '', dtype)) // 8)
