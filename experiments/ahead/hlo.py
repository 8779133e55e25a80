"""The text of a compiled program (`jax.stages.Compiled.as_text`), read.

A loop stands there once; `executions` says how often it runs.
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
        name: of the result. result: the text of its shape.
        opcode: such as 'fusion'.
        rest: the line from its operands on.
    """

    name: str
    result: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r'%([\w.\-]+)', self.rest.partition(')')[0])


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Instructions by computation, and the name of the entry."""
    computations: dict[str, list[Instruction]] = {}
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
                current.append(Instruction(*instruction.groups()))
    return computations, entry


def executions(
    computations: dict[str, list[Instruction]], entry: str, through: tuple[str, ...]
) -> collections.Counter:
    """How often a call of the program runs each computation.

    Args:
        computations, entry: of `parse`.
        through: attributes by which an instruction calls a computation that are followed.

    Raises:
        ValueError: a loop of which the text does not tell how often it runs.
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
    # A TPU's compiler does not say: JAX's loops of fixed length count from 0 to a constant.
    condition = dict(CALLED.findall(loop.rest))['condition']
    limits = [
        int(i.rest.partition(')')[0])
        for i in computations[condition]
        if i.opcode == 'constant' and i.result.startswith('s32[]')
    ]
    counts = any('direction=LT' in i.rest for i in computations[condition])
    if len(limits) != 1 or not counts:
        raise ValueError(f'the program does not tell how often its loop {condition} runs')
    return limits[0]


def arrays(result: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(dtype, shape, layout) of each array in the text of a shape."""
    return [
        (dtype, tuple(int(n) for n in shape.split(',') if n), layout)
        for dtype, shape, layout in _ARRAY.findall(result)
    ]


def item_bytes(dtype: str) -> int:
    """Of an element of `dtype`, as the text calls it."""
    return _BYTES[dtype] if dtype in _BYTES else -(-int(re.sub(r'\D', '', dtype)) // 8)
