"""Versions and commands that stand in several files agree."""

import re
import tomllib

import ggcf_jax
from tests.helpers import ROOT

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_the_citation_has_the_version():
    citation = (ROOT / 'CITATION.cff').read_text()
    assert f'\nversion: {ggcf_jax.__version__}\n' in citation


def test_pre_commit_runs_the_versions_of_the_extra():
    """Or a formatting that CI refuses would pass here."""
    hooks = (ROOT / '.pre-commit-config.yaml').read_text()
    found = dict(re.findall(r'repo: \S+/([\w-]+?)(?:-pre-commit)?\n +rev: v(\S+)', hooks))
    pins = dict(
        pin.split('==')
        for pin in PROJECT['project']['optional-dependencies']['test']
        if '==' in pin
    )
    assert found == {name: pins[name] for name in ('ruff', 'codespell')}


def test_the_test_command_is_the_same_everywhere():
    command = (ROOT / '.ci' / 'run').read_text().splitlines()[-1]
    assert command.startswith('.venv/bin/pytest -n 2')
    assert f'&& {command}\n' in (ROOT / 'README.md').read_text()
    assert f'\n    {command}\n' in (ROOT / 'CONTRIBUTING.md').read_text()
