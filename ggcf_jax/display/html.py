"""The HTML vocabulary of the report: every function escapes the text that it is given."""

import base64
import html
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence

_NUMBER = re.compile(r'[-+]?\d+(,\d{3})*(\.\d+)?(e[-+]?\d+)?( ?%)?|undefined')
_STYLE = """
:root { color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #1c2430; --soft: #5b6675; --line: #dfe3e9;
  --accent: #2563eb; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161c; --card: #1b2129; --ink: #e6eaf0; --soft: #98a3b3; --line: #2f3843;
  --accent: #60a5fa; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; }
h2 { font-size: 18px; margin: 0 0 12px; }
p { margin: 0 0 12px; }
.soft { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
  gap: 14px; margin: 24px 0 0; }
.fact, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.fact { padding: 12px 16px; }
.fact b { display: block; font-size: 23px; line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.fact:first-child b { color: var(--accent); }
.fact span { display: block; font-size: 13px; color: var(--soft); }
section { padding: 20px 22px; margin-top: 18px; }
section > :last-child { margin-bottom: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 12px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(520px, 100%), 1fr));
  gap: 18px; }
.pair > section { min-width: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
figure { margin: 0 0 14px; }
figure img { display: block; width: 100%; height: auto; border-radius: 6px; }
figure a { display: block; cursor: zoom-in; }
figure a:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
figcaption { font-size: 13px; color: var(--soft); margin-top: 3px; }
.legend { display: flex; flex-wrap: wrap; gap: 5px 18px; margin: 0 0 14px; padding: 0;
  list-style: none; font-size: 13px; }
.legend i { display: inline-block; width: 22px; height: 13px; margin-right: 7px;
  border: 1px solid var(--soft); border-radius: 3px; vertical-align: -1px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); }
th, td { padding: 4px 22px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
.columns { columns: 2 460px; column-gap: 40px; }
.columns table { width: 100%; }
.columns tr { break-inside: avoid; }
td { overflow-wrap: anywhere; }
td:first-child, td.number { white-space: nowrap; }
.wide table { min-width: 100%; }
.wide td { overflow-wrap: normal; }
pre { margin: 0 0 14px; padding: 11px 14px; background: var(--page); border-radius: 6px;
  border: 1px solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media print { body { background: none; } section, .fact { break-inside: avoid; } }
"""


def page(title: str, subtitle: str, body: Iterable[str]) -> str:
    """The whole document; `body` is markup."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n'
        f'<h1>{html.escape(title)}</h1>\n<p class="soft">{html.escape(subtitle)}</p>\n'
        + '\n'.join(body)
        + '\n</main>\n</body>\n</html>\n'
    )


def section(title: str, *parts: str) -> str:
    """A titled card around markup."""
    return f'<section>\n<h2>{html.escape(title)}</h2>\n' + '\n'.join(parts) + '\n</section>'


def group(name: str, parts: Iterable[str]) -> str:
    """Markup in one of the layouts of the style sheet: 'charts', 'pair', 'columns', 'wide'."""
    return f'<div class="{name}">\n' + '\n'.join(parts) + '\n</div>'


def facts(items: Sequence[tuple[str, str, str]]) -> str:
    """Headline figures, each (label, value, remark)."""
    cells = (
        f'<div class="fact"><span>{html.escape(label)}</span><b>{html.escape(value)}</b>'
        f'<span>{html.escape(remark)}</span></div>'
        for label, value, remark in items
    )
    return group('facts', cells)


def text(content: str) -> str:
    """A quiet paragraph."""
    return f'<p class="soft">{html.escape(content)}</p>'


def verbatim(content: str) -> str:
    """Text in a fixed-width box, lines as they are."""
    return f'<pre>{html.escape(content)}</pre>'


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    """A table of text cells; those that are numbers are never broken."""
    head = ''.join(f'<th>{html.escape(cell)}</th>' for cell in header)
    lines = [f'<tr>{head}</tr>'] if header else []
    for row in rows:
        lines.append('<tr>' + ''.join(map(_cell, row)) + '</tr>')
    return '<table>\n' + '\n'.join(lines) + '\n</table>'


def _cell(text: str) -> str:
    number = ' class="number"' if _NUMBER.fullmatch(text) else ''
    return f'<td{number}>{html.escape(text)}</td>'


def legend(colors: Mapping[str, tuple[int, int, int]]) -> str:
    """Colour boxes with the class names."""
    items = ''.join(
        f'<li><i style="background:rgb({int(r)},{int(g)},{int(b)})"></i>{html.escape(name)}</li>'
        for name, (r, g, b) in colors.items()
    )
    return f'<ul class="legend">{items}</ul>'


def thumbnail(webp: bytes, caption: str, target: str) -> str:
    """An embedded picture with a caption, which leads to the picture in full.

    Args:
        webp: the picture, small.
        caption: text below it.
        target: path of the full picture, relative to the page, with slashes.
    """
    data = base64.b64encode(webp).decode('ascii')
    caption = html.escape(caption)
    link = html.escape(urllib.parse.quote(target))
    return (
        f'<figure><a href="{link}" title="open the full picture"><img alt="{caption}" '
        f'loading="lazy" src="data:image/webp;base64,{data}"></a>'
        f'<figcaption>{caption}</figcaption></figure>'
    )
