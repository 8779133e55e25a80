"""Files, modules, commands, fields and headings that the pages name exist."""

import importlib
import importlib.util
import pathlib
import re

import pytest

from ggcf_jax import config as config_lib
from tests.helpers import ROOT

PAGES = [
    *sorted(ROOT.glob('*.md')),
    *sorted((ROOT / 'docs').glob('*.md')),
    *sorted((ROOT / 'experiments').glob('*.md')),
]
_FOLDERS = ('tests', 'docs', 'configs', 'experiments', 'ggcf_jax', r'\.ci')
_FILE = re.compile(rf'(?<![\w/.-])(?:{"|".join(_FOLDERS)})/[\w./*-]*[\w*]|(?<![\w/.-])main\.py')
_NAMES_IN = re.compile(r'((?:`\w+(?:\(\))?`(?:, | and )?)+)\s(?:in|of)\s`([\w/]+\.py)`')
_MODULE = re.compile(r'python -m ((?:ggcf_jax|experiments|docs|configs)[\w.]*)')
_NAME = re.compile(r'(?<![\w/.-])(?:ggcf_jax|experiments)(?:\.\w+)+')
_COMMAND = re.compile(r'python (?:-m (experiments[\w.]*)|(main\.py))([^\n`#]*)')
_FIELD = re.compile(r'--config\.([\w.]+)=')
_LINK = re.compile(r'\]\(([^)#\s]*)#([^)\s]+)\)')
_PLACEHOLDER = 'experiments.FOLDER.NAME'  # stands for any command

each_page = pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def _text(page: pathlib.Path) -> str:
    """A page; of the changelog only what is true today, without old versions and old names."""
    text = page.read_text()
    if page.name == 'CHANGELOG.md':
        text = re.sub(r'\n## (?!\[?Unreleased)[^\n]*.*', '', text, flags=re.S)
        text = re.sub(r'^\| `[^|]*\|', '|', text, flags=re.M)
    return text


@each_page
def test_files_exist(page):
    for path in _FILE.findall(_text(page)):
        assert list(ROOT.glob(path)), path


@each_page
def test_names_are_in_the_files_beside_them(page):
    """`Name` in `path.py`, also `One`, `Other` in `path.py`."""
    for names, path in _NAMES_IN.findall(page.read_text()):
        for name in re.findall(r'`(\w+)', names):
            assert re.search(rf'\b{name}\b', (ROOT / path).read_text()), f'{name} in {path}'


@each_page
def test_modules_exist(page):
    for name in _MODULE.findall(_text(page)):
        assert name == _PLACEHOLDER or importlib.util.find_spec(name), name


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what stands before the last dot is no package
        return False


@each_page
def test_python_names_exist(page):
    """Modules are found without being imported: those of the benchmark need the extra `parity`."""
    for name in sorted(set(_NAME.findall(_text(page))) - {_PLACEHOLDER}):
        parts = name.split('.')
        modules = 1
        while modules < len(parts) and _is_module('.'.join(parts[: modules + 1])):
            modules += 1
        if modules < len(parts):
            found = importlib.import_module('.'.join(parts[:modules]))
            for part in parts[modules:]:
                found = getattr(found, part)
        else:
            assert _is_module(name), name


@each_page
def test_flags_exist(page):
    """Every --flag of a command is in the source of its script, or of what scripts share."""
    commands = page.read_text().replace('\\\n', ' ')
    for module, script, rest in _COMMAND.findall(commands):
        path = ROOT / script if script else ROOT / f'{module.replace(".", "/")}.py'
        if module == _PLACEHOLDER:
            continue
        sources = [path] if script else [path, *(ROOT / 'experiments' / 'common').glob('*.py')]
        source = ''.join(source.read_text() for source in sources)
        for flag in re.findall(r' --([a-z_0-9]+)', rest):
            assert re.search(rf"'(--)?{flag}'", source), f'{path.name} --{flag}'


@each_page
def test_fields_exist(page):
    known = set(config_lib.fields(config_lib.default()))
    for name in _FIELD.findall(_text(page)):
        assert name in known, name


@each_page
def test_headings_of_links_exist(page):
    for file, heading in _LINK.findall(page.read_text()):
        if file.startswith('http'):
            continue
        target = (page.parent / file) if file else page
        titles = re.findall(r'^#+ (.+)$', target.read_text(), flags=re.M)
        anchors = {
            re.sub(r'[^\w\- ]', '', title).strip().lower().replace(' ', '-') for title in titles
        }
        assert heading in anchors, f'{file}#{heading}'
