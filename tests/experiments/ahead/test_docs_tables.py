"""The tables of docs/memory.md and docs/scaling.md are those that their commands print."""

import pytest

from experiments.ahead import memory, scaling
from experiments.common import cli
from tests.helpers import ROOT


@pytest.mark.parametrize('script', [memory, scaling])
def test_the_page_has_the_printed_tables(script, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['script', str(ROOT / 'docs' / 'memory.csv')])
    cli.run(script.main, script.make_parser())
    name = script.__name__.rsplit('.', 1)[-1]
    page = (ROOT / 'docs' / f'{name}.md').read_text().splitlines()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    assert len(printed) > 4
    assert [line for line in printed if line not in page] == []
