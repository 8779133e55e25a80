"""The import direction: every file of the package imports only what stands above it.

The imports are read from the source, those inside functions among them. Imports under
`if TYPE_CHECKING:` are left out: they name a type and are never carried out.
"""

import ast
import pathlib
import sys
from collections.abc import Iterator

import pytest

from tests.helpers import ROOT, parsed

# Room or file -> the rooms and files it may import besides itself. The longest name that fits a
# file holds; a room stands for all its files. Whatever is named stands in a row above, so that no
# two rooms can import each other.
RULES = {
    # Foundations
    'errors': '',
    'json_files': '',
    'buckets': 'errors json_files',
    'places': 'errors buckets',
    'atomic': 'buckets',
    'registry': 'errors',
    # Attention could be released alone.
    'attention': '',
    # What people look at
    'display': 'atomic',
    # Data: never jax, since worker processes load it
    'data.records': 'errors buckets places atomic json_files registry',
    'data.datasets.street_painter': '',
    'data.datasets': 'errors places atomic registry data.records data.datasets.street_painter',
    'data': 'errors places atomic json_files registry data.records data.datasets',
    # Networks
    'models.layers': 'errors registry attention',
    'models.backbones': 'errors registry attention models.layers',
    'models.contexts': 'errors registry attention models.layers',
    'models.segmenter': 'errors registry attention models.layers models.backbones models.contexts',
    'models.pretrained': 'errors places registry models.layers models.backbones',
    'models': (
        'errors registry attention models.layers models.backbones models.contexts models.segmenter'
    ),
    'distributed': 'errors buckets places data.pipeline',
    'config': 'errors registry data',
    # A trained network and its workdir
    'evaluation': 'errors registry attention display data models distributed',
    'prediction': (
        'errors buckets places atomic json_files display data models distributed evaluation'
    ),
    'workdir': (
        'errors buckets places atomic json_files registry display data models distributed config '
        'evaluation prediction'
    ),
    'training': 'errors buckets places registry attention data models distributed config workdir',
    'exporting': 'errors attention models evaluation',
    'serving': 'errors json_files display data models distributed evaluation prediction workdir',
}
# One a --mode: they may import every room and each other, and no room imports them.
DOORS = ('train', 'evaluate', 'predict', 'export', 'serve', 'doctor', 'score')
# Code beside the package: nothing in the package imports it.
OUTSIDE = {
    'configs': 'ggcf_jax.config ggcf_jax.errors',
    'configs.from_workdir': 'ggcf_jax.places ggcf_jax.workdir.config',
    'main': 'ggcf_jax',
    'experiments.common': 'ggcf_jax',
    'experiments': 'ggcf_jax experiments.common',
}
_FOR_TYPES = ('TYPE_CHECKING', 'typing.TYPE_CHECKING')
DEVICE_LIBRARIES = {'jax', 'jaxlib', 'flax', 'optax', 'orbax'}


def _modules(folder: str) -> dict[str, pathlib.Path]:
    """Dotted name of every file in a folder of the repository, or of the one file."""
    paths = (ROOT / folder).rglob('*.py') if (ROOT / folder).is_dir() else [ROOT / f'{folder}.py']
    names = {path: path.relative_to(ROOT).with_suffix('').parts for path in sorted(paths)}
    return {'.'.join(n[:-1] if n[-1] == '__init__' else n): path for path, n in names.items()}


PACKAGE = _modules('ggcf_jax')
KNOWN = PACKAGE | _modules('experiments') | _modules('configs') | _modules('main')


def _imported(path: pathlib.Path) -> Iterator[str]:
    """The modules that a file imports: `from a import b` is a.b where that is a file of ours."""

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in _FOR_TYPES:
            for child in node.orelse:
                yield from walk(child)
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: imports are absolute'
            full = [f'{node.module}.{alias.name}' for alias in node.names]
            yield from (name if name in KNOWN else node.module for name in full)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(parsed(path))


IMPORTS = {name: set(_imported(path)) for name, path in KNOWN.items()}


def _short(name: str) -> str:
    return name.removeprefix('ggcf_jax.')


def _within(name: str, room: str) -> bool:
    return name == room or name.startswith(f'{room}.')


def _room(name: str, rooms) -> str | None:
    """The longest of the rooms that a file lies in."""
    return max((room for room in rooms if _within(name, room)), key=len, default=None)


def _allowed(name: str, other: str) -> bool:
    """Whether one file of the package may import the other."""
    if name == 'ggcf_jax' or _short(name) in DOORS:
        return True
    room = _room(_short(name), RULES)
    if _room(_short(other), RULES) == room:
        return True
    return any(_within(_short(other), each) for each in RULES[room].split())


def _reached(name: str) -> set[str]:
    """All files of ours that an import loads, the packages around them left out."""
    seen, new = set(), [name]
    while new:
        seen.update(new)
        new = [m for each in new for m in IMPORTS[each] if m in KNOWN and m not in seen]
    return seen


VIOLATIONS = {
    (_short(name), _short(other))
    for name in PACKAGE
    for other in IMPORTS[name] & KNOWN.keys()
    if other not in PACKAGE or not _allowed(name, other) or name in _reached(other)
}


def test_every_file_has_a_rule():
    for name in PACKAGE:
        assert name == 'ggcf_jax' or _short(name) in DOORS or _room(_short(name), RULES), name
    for room in (*RULES, *DOORS):
        assert f'ggcf_jax.{room}' in PACKAGE, f'the rule of {room} is of no file'


def test_rules_name_only_what_stands_above():
    above = set()
    for room, allowed in RULES.items():
        for each in allowed.split():
            assert any(_within(row, each) or _within(each, row) for row in above), (room, each)
        above.add(room)


def test_imports_follow_the_rules():
    """And no two files import each other, directly or by others between them."""
    assert not VIOLATIONS


@pytest.mark.parametrize('name', [n for n in PACKAGE if _within(n, 'ggcf_jax.data')])
def test_data_never_loads_jax(name):
    """Nor does anything that it imports: its worker processes start without."""
    loaded = {m.partition('.')[0] for each in _reached(name) for m in IMPORTS[each]}
    assert not loaded & DEVICE_LIBRARIES


@pytest.mark.parametrize('name', [n for n in PACKAGE if _within(n, 'ggcf_jax.attention')])
def test_attention_needs_jax_alone(name):
    libraries = {m.partition('.')[0] for m in IMPORTS[name]} - {'ggcf_jax'}
    assert {m for m in libraries if m not in sys.stdlib_module_names} <= {
        'jax',
        'numpy',
        'jaxtyping',
    }


def test_code_beside_the_package():
    for name in KNOWN.keys() - PACKAGE.keys():
        room = _room(name, OUTSIDE)
        for other in IMPORTS[name] & KNOWN.keys():
            allowed = (room, *OUTSIDE[room].split())
            assert any(_within(other, each) for each in allowed), (name, other)
            assert name not in _reached(other), f'circle: {name}, {other}'
