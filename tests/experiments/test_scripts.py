"""Every script can be imported beside the others, explains itself and is listed in the README."""

import importlib

import absl.flags
import pytest

from tests.helpers import ROOT

_SOURCES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts): path.read_text()
    for path in sorted((ROOT / 'experiments').rglob('*.py'))
    if path.name != '__init__.py'
}
_SCRIPTS = [name for name, source in _SOURCES.items() if "if __name__ == '__main__'" in source]


def _import(name):
    if name.startswith('experiments.benchmark'):
        pytest.importorskip('torch')
    return importlib.import_module(name)


def test_flags_are_defined_when_a_script_runs_and_not_when_it_is_imported():
    before = set(absl.flags.FLAGS)
    for name in _SCRIPTS:
        if not name.startswith('experiments.benchmark'):  # they need torch
            _import(name)
    modules = absl.flags.FLAGS.flags_by_module_dict()
    assert not [name for name in modules if name.startswith('experiments')]
    assert not {'steps', 'targets', 'workdir'} & (set(absl.flags.FLAGS) - before)


@pytest.mark.parametrize('name', _SCRIPTS)
def test_the_command_line_explains_itself(name, capsys):
    parser = _import(name).make_parser()
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(['--help'])
    assert stopped.value.code == 0
    assert f'python -m {name}' in capsys.readouterr().out
    for action in parser._actions:
        assert action.help, f'{action.option_strings} has no help text'


def test_the_readme_lists_every_script():
    text = (ROOT / 'experiments' / 'README.md').read_text()
    listed = [line.split('`')[1] for line in text.splitlines() if line.startswith('| `')]
    assert sorted(listed) == sorted(_SCRIPTS)
