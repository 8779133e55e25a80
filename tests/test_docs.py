"""The Python snippets of the README and the docs run, and links inside the repository lead on.

The ```python blocks of a file run one after another in one namespace and an empty folder. A block
that cannot run is marked ```python no-run, below a comment <!-- not run: REASON -->.
"""

import ast
import importlib
import inspect
import pathlib
import re
import shutil

import cv2
import numpy as np
import pytest

import ggcf_jax
from docs import api
from ggcf_jax import attention
from tests.helpers import ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# Compile every graph, train a network, load one.
SLOW = ('attention.md', 'tutorial.md', 'README.md')
_BLOCK = re.compile(r'(.*)\n+```python(.*)\n((?:.*\n)*?)```', re.M)
_LINK = re.compile(r'\]\(([^)#\s]+)(?:#[^)\s]*)?\)')


def _blocks(page: pathlib.Path) -> list[tuple[str, str, int, str]]:
    """The line above each Python block, what follows ```python, the line number and the code."""
    text = page.read_text()
    return [
        (m[1], m[2].strip(), text[: m.start(3)].count('\n'), m[3]) for m in _BLOCK.finditer(text)
    ]


def _name(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def _write_torch_file(path: pathlib.Path) -> None:
    torch = pytest.importorskip('torch')
    torch.save({'conv1.weight': torch.ones(2, 3).T}, path)


@pytest.fixture
def reader(tmp_path, monkeypatch, request, rng):
    """The folder of a reader: what the snippets name is there. Returns a function of their code."""

    def prepare(code: str) -> None:
        if 'runs/camvid' in code:
            untrained = request.getfixturevalue('untrained_run')
            shutil.copytree(untrained, tmp_path / 'runs' / 'camvid')
        for name in re.findall(r"'([\w/-]+\.(?:jpg|png))'", code):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
        for name in re.findall(r"'([\w-]+\.pth)'", code):
            _write_torch_file(tmp_path / name)
        monkeypatch.chdir(tmp_path)

    return prepare


@pytest.mark.parametrize(
    'page',
    [
        pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else [], id=_name(page))
        for page in PAGES
        if _blocks(page)
    ],
)
def test_snippets_run(page, reader):
    blocks = _blocks(page)
    reader(''.join(code for *_, code in blocks))
    namespace = {'__name__': 'snippet'}
    for above, mark, line, code in blocks:
        # Line numbers in a traceback are those of the page.
        compiled = compile('\n' * line + code, str(page), 'exec')
        if mark == 'no-run':
            assert re.fullmatch(r'<!-- not run: .+ -->', above), f'{_name(page)}:{line}: no reason'
            continue
        assert not mark, f'{_name(page)}:{line}: unknown mark {mark!r}'
        exec(compiled, namespace)


@pytest.mark.parametrize('page', [*PAGES, ROOT / 'CONTRIBUTING.md'], ids=_name)
def test_links_lead_to_files(page):
    for link in _LINK.findall(page.read_text()):
        if not link.startswith(('http:', 'https:', 'mailto:')):
            assert (page.parent / link).exists(), link


def test_index_has_every_page():
    index = ROOT / 'docs' / 'README.md'
    links = {(index.parent / link).resolve() for link in _LINK.findall(index.read_text())}
    assert {page for page in PAGES if page.parent == index.parent} - {index} <= links


def test_api_reference_is_that_of_the_source():
    text = api.page()
    assert api.PAGE.read_text() == text, 'run python -m docs.api'
    entries = dict(re.findall(r'^### `([\w.]+)`\n\n((?:    .*\n)*)', text, re.M))
    for module, names in ((ggcf_jax, ('load',)), (attention, attention.__all__)):
        assert {f'{module.__name__}.{name}' for name in names} - {
            'ggcf_jax.attention.GRAPHS',
            'ggcf_jax.attention.KINDS',
        } <= set(entries)
    for path, signature in entries.items():
        module, _, name = path.rpartition('.')
        value = getattr(importlib.import_module(module), name)
        if inspect.isfunction(value):
            shown = ast.parse(f'def {inspect.cleandoc(signature)}: ...').body[0].args
            several = [] if shown.vararg is None else [shown.vararg]
            given = [*shown.posonlyargs, *shown.args, *several, *shown.kwonlyargs]
            assert [a.arg for a in given] == list(inspect.signature(value).parameters), path
