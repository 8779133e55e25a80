"""docs/troubleshooting.md quotes the messages of the code, and leaves none of them out."""

import ast
import pathlib
import re

import pytest

from tests.helpers import ROOT, name_called, parsed

PAGE = ROOT / 'docs' / 'troubleshooting.md'
SOURCES = [ROOT / 'main.py', *sorted((ROOT / 'ggcf_jax').rglob('*.py'))]

# What the user reads: refusals, damaged checkpoints, and why a run of several processes ended.
ANSWERED = ('InputError', 'BucketError', 'NotThere', 'TooLarge', 'NotFinite', 'Damaged', 'Verdict')
_ALL = (*ANSWERED, 'ValueError', 'NotImplementedError', '_error', 'error')
_VARIABLE = '\0'  # stands for a value that is only known at run time


def _text(node: ast.expr) -> str:
    """The text of an expression, with a mark for every part that is not a literal."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return ''.join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.Call) and name_called(node) == 'join':
        return ' '.join(map(_text, getattr(node.args[0], 'elts', [])))
    return _VARIABLE


def _messages(path: pathlib.Path) -> list[tuple[str, str, str]]:
    """(what is raised, its text, file and line) of every message in a file."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and node.args:
            name = name_called(node)
            if name in _ALL:
                text = ' '.join(_text(node.args[-1]).split())
                found.append((name, text, f'{path.relative_to(ROOT)}:{node.lineno}'))
    return found


MESSAGES = [message for path in SOURCES for message in _messages(path)]
# A message is quoted as bold code at the start of an entry; … stands for a value.
QUOTED = re.findall(r'\*\*`(.+?)`\*\*', PAGE.read_text())


def _is_part(quote: str, text: str) -> bool:
    """Whether a quote can be found in the text of a message; … is any value."""
    pattern = '.*'.join(re.escape(part.strip()) for part in quote.split('…'))
    return re.search(pattern, text, re.DOTALL) is not None


@pytest.mark.parametrize('quote', QUOTED)
def test_quoted_messages_are_in_the_code(quote):
    assert len(quote.replace('…', '').strip()) >= 10, 'too short to be looked for'
    assert any(_is_part(quote, text) for _, text, _ in MESSAGES)


@pytest.mark.parametrize(
    'text', sorted({text for name, text, _ in MESSAGES if name in ANSWERED}), ids=repr
)
def test_every_refusal_is_on_the_page(text):
    if len(text.replace(_VARIABLE, '').strip(' ;:')) < 10:
        pytest.skip('made of messages that are found where they are written')
    where = [place for _, other, place in MESSAGES if other == text]
    assert any(_is_part(quote, text) for quote in QUOTED), f'add the message of {where} to {PAGE}'


def test_no_message_is_quoted_twice():
    assert len(set(QUOTED)) == len(QUOTED)
