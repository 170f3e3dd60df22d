"""A report as one HTML file that needs no other: pictures inside, no script, readable on a phone and in print."""

import base64
from collections.abc import Sequence
from html import escape

from alignkit.evaluation.document import Block, Bullets, Heading, Picture, Table, Text, visible

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1.05rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th { border-bottom: 2px solid #888; } .words { text-align: left; }
td:not(.words):not(:last-child) { white-space: nowrap; }
tr.effect td:last-child { color: #006b3c; font-weight: 600; }
tr.harm td:last-child { color: #b00020; font-weight: 600; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; }
summary { cursor: pointer; }
"""


def to_html(blocks: Sequence[Block]) -> str:
    """The blocks as one page; the title is that of the first heading."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    body = "\n".join(map(_html, blocks))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{_escape(text)}</p>"
        case Bullets(items):
            return "<ul>\n" + "\n".join(f"<li>{_bullet(*item)}</li>" for item in items) + "\n</ul>"
        case Table(_, _, _, fold) if fold:
            return f"<details><summary>{_escape(fold)}</summary>\n{_table(block)}\n</details>"
        case Table():
            return _table(block)
        case Picture(_, caption, png):
            source = "data:image/png;base64," + base64.b64encode(png).decode()
            words = _escape(caption)
            return f'<figure><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def _bullet(lead: str, rest: str) -> str:
    return " ".join(filter(None, [f"<strong>{_escape(lead)}</strong>" if lead else "", _escape(rest)]))


def _table(table: Table) -> str:
    lines = [f"<tr>{_cells('th', table.header, table.left)}</tr>"]
    for row in table.rows:
        kind = next((word for word in ("effect", "harm") if row[-1] == word), "")
        lines.append(f"<tr{f' class={kind!r}' if kind else ''}>{_cells('td', row, table.left)}</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _cells(tag: str, cells: Sequence[str], left: int) -> str:
    return "".join(
        f"<{tag}{' class=words' if place < left else ''}>{_escape(cell)}</{tag}>" for place, cell in enumerate(cells)
    )


def _escape(text: str) -> str:
    return escape(visible(text))
