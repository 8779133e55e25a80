"""Graphs by name: the grammar of a list of heads, and all classes of graphs.

    heads = parse('local:8,16,grid:8')

What a graph is, is in `graph`; the graphs with a short name are in `kinds`.
"""

import importlib
import inspect
import re
from typing import Any

from ggcf_jax.attention import kinds
from ggcf_jax.attention.graph import (
    Graph,
    Intersection,
    OffsetGraph,
    SeparableGraph,
    Union,
    written_fields,
)
from ggcf_jax.attention.kinds import Block, Column, Cross, Full, Grid, Learned, Local, Row

__all__ = [
    'GRAPHS',
    'KINDS',
    'Block',
    'Column',
    'Cross',
    'Full',
    'Graph',
    'Grid',
    'Intersection',
    'Learned',
    'Local',
    'OffsetGraph',
    'Row',
    'SeparableGraph',
    'Union',
    'parse',
]

# The graphs that the head grammar knows by a short name: every concrete class of `kinds`.
GRAPHS: dict[str, type[Graph]] = {
    cls.kind(): cls
    for name, cls in vars(kinds).items()
    if inspect.isclass(cls) and issubclass(cls, Graph)
    if not (inspect.isabstract(cls) or name.startswith('_'))
}
# The short names of graphs; those that combine others are written with their signs.
KINDS = (*GRAPHS, Union.kind(), Intersection.kind())

_NUMBER = '[0-9]+(?:x[0-9]+)?'  # of a head: 8, or 4x12
_VALUE = f'{_NUMBER}|[a-z]+'  # behind the number


def parse(text: str) -> tuple[Graph, ...]:
    """The graphs of a list of heads such as 'local:8,16,24,grid:8,16,24', 'full' or 'learned'.

    A graph outside this package is written 'package.module:Class' or 'package.module:Class:NUMBER'
    and is imported. 'local:8|cross' is a union and 'local:12&grid:4' an intersection, which binds
    more tightly; parentheses group.

    Args:
      text: heads separated by commas; a bare number repeats the kind of the head before it, and
        4x12 gives 4 for rows and 12 for columns.

    Returns:
      One graph per head, in order.

    Raises:
      ValueError: an unknown kind, a class that cannot be imported or is no graph, a missing or
        superfluous number, a number below 1, a union or intersection of something else than two
        different graphs without weights, or no head.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'heads are written like local:8,16,24,grid:8,16,24; got {text!r}')
    heads: list[Graph] = []
    kind = None
    for head in (part.strip() for part in text.split(',')):
        if re.search(r'[|&()]', head):
            heads.append(_Expression(head).graph())
            kind = None
        elif head[:1].isdigit():
            if kind is None:
                raise ValueError(f'head {head!r} is a bare number with no kind before it: {text!r}')
            heads.append(_build(_find(kind, head), head, head))
        else:
            kind, arguments = _split_head(head)
            heads.append(_build(_find(kind, head), arguments, head))
    return tuple(heads)


class _Expression:
    """Reads one head in which graphs are combined, from left to right.

    Args:
      head: its text.
    """

    def __init__(self, head: str) -> None:
        self._head = head
        self._left = [token for part in re.split(r'([|&()])', head) if (token := part.strip())]

    def graph(self) -> Graph:
        """The graph of the whole text."""
        found = self._union()
        if self._left:
            raise self._mistake()
        return found

    def _union(self) -> Graph:
        members = [self._intersection()]
        while self._take('|'):
            members.append(self._intersection())
        return Union(tuple(members)) if len(members) > 1 else members[0]

    def _intersection(self) -> Graph:
        members = [self._member()]
        while self._take('&'):
            members.append(self._member())
        return Intersection(tuple(members)) if len(members) > 1 else members[0]

    def _member(self) -> Graph:
        if self._take('('):
            found = self._union()
            if not self._take(')'):
                raise self._mistake()
            return found
        if not self._left or self._left[0] in '|&()':
            raise self._mistake()
        text = self._left.pop(0)
        kind, arguments = _split_head(text)
        return _build(_find(kind, text), arguments, text)

    def _take(self, token: str) -> bool:
        if self._left[:1] != [token]:
            return False
        del self._left[0]
        return True

    def _mistake(self) -> ValueError:
        return ValueError(
            f'head {self._head!r} combines graphs with | or &, such as local:8|cross, and '
            'parentheses, each of which is closed'
        )


def _split_head(head: str) -> tuple[str, str | None]:
    """'local:8' -> ('local', '8'); 'pkg.module:Ring:8' -> ('pkg.module:Ring', '8')."""
    kind, *rest = head.split(':', 2 if '.' in head.partition(':')[0] else 1)
    if '.' in kind and rest:
        kind = f'{kind}:{rest.pop(0)}'
    return kind, rest[0] if rest else None


def _find(kind: str, head: str) -> type[Graph]:
    """The class of a kind; that of another package is imported."""
    if kind in GRAPHS:
        return GRAPHS[kind]
    module_name, colon, class_name = kind.partition(':')
    if not colon:
        raise ValueError(
            f'head {head!r} is not one of {", ".join(map(_usage, GRAPHS))}, '
            'nor package.module:Class of a graph of yours'
        )
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f'head {head!r}: {kind} cannot be imported ({error}); install the package or put its '
            'folder on PYTHONPATH'
        ) from error
    if not (inspect.isclass(cls) and issubclass(cls, Graph)):
        raise ValueError(f'head {head!r}: {kind} is not a subclass of ggcf_jax.attention.Graph')
    return cls


def _build(cls: type[Graph], arguments: str | None, head: str) -> Graph:
    """The graph of a class with the arguments that were written."""
    parameters = inspect.signature(cls).parameters.values()
    required = any(p.default is p.empty for p in parameters)
    if arguments is None and not required:
        return cls()
    if arguments is not None and parameters:
        fields = written_fields(cls)
        behind = ''.join(f'(?:{re.escape(f.metadata["before"])}({_VALUE}))?' for f in fields)
        match = re.fullmatch(f'({_NUMBER}){behind}', arguments)
        if match is None:
            raise ValueError(
                f'head {head!r} needs a whole number of at least 1 after the colon, or one for '
                f'rows and one for columns as in local:4x12: {_usage_of(cls)}'
            )
        number, *values = match.groups()
        options = {f.name: _value(text) for f, text in zip(fields, values) if text is not None}
        return cls(_value(number), **options)  # type: ignore[call-arg]  # of the subclass
    if cls.kind() in GRAPHS:
        raise ValueError(f'head {head!r} is not one of {", ".join(map(_usage, GRAPHS))}')
    raise ValueError(f'head {head!r}: {cls.kind()} takes {inspect.signature(cls)}')


def _value(text: str) -> Any:
    """8 of '8', (4, 12) of '4x12', a word as it is."""
    if not text[0].isdigit():
        return text
    numbers = tuple(map(int, text.split('x')))
    return numbers if len(numbers) == 2 else numbers[0]


def _usage(kind: str) -> str:
    return _usage_of(GRAPHS[kind])


def _usage_of(cls: type[Graph]) -> str:
    """How a kind is written: 'full', 'local:SIZE[@DILATION][:BORDER]', 'learned[:HIDDEN]'."""
    parameters = list(inspect.signature(cls).parameters.values())
    if not parameters:
        return cls.kind()
    behind = ''.join(f'[{f.metadata["before"]}{f.name.upper()}]' for f in written_fields(cls))
    number = f':{parameters[0].name.upper()}{behind}'
    required = parameters[0].default is inspect.Parameter.empty
    return cls.kind() + (number if required else f'[{number}]')
