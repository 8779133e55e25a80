"""Writes docs/configuration.md from the source of `ggcf_jax.config.default`.

python -m docs.configuration
"""

import inspect
import pathlib
import re

from ml_collections import ConfigDict

from ggcf_jax import config as config_lib

PAGE = pathlib.Path(__file__).with_suffix('.md')

_INTRODUCTION = """\
# Configuration

Every field, its default and what it means. A recipe in `configs/` starts from the defaults and sets
what differs; the command line overrides both: `--config.train.steps=500`. In Python:

    from ggcf_jax import config

    mine = config.default()
    mine.train.steps = 500

This page is made from the comments in `ggcf_jax/config.py` by `python -m docs.configuration`.

| field | default | meaning |
|---|---|---|
"""

_SECTION = """
## {name}

{text}

| field | default | meaning |
|---|---|---|
"""

# An assignment with or without a comment behind it, or a comment alone.
_LINE = re.compile(r' +(?:config\.(?P<name>[a-z0-9_.]+) = [^#]+)?(?:# (?P<comment>.*))?')


def page() -> str:
    """Returns the page: for each section its comment and a table of its fields."""
    config = config_lib.default()
    sections = {'': _INTRODUCTION}
    comments: list[str] = []
    for line in inspect.getsource(config_lib.default).splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        if match['comment']:
            comments.append(match['comment'])
        if match['name'] is None:
            continue
        name, text = match['name'], re.sub(r'docs/(\w+\.md)', r'[\1](\1)', ' '.join(comments))
        comments = []
        value = config_lib.get(config, name)
        if isinstance(value, ConfigDict):
            sections[name] = _SECTION.format(name=name, text=text)
        else:
            section = name.rpartition('.')[0]
            sections[section] += f'| `{name}` | `{value!r}` | {text} |\n'
    return ''.join(sections.values())


if __name__ == '__main__':
    PAGE.write_text(page(), encoding='utf-8')
