"""A report as a list of blocks, which Markdown and HTML render alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# What Markdown reads as markup. An underscore within a word is none, nor a bracket that begins no link.
MARKUP = re.compile(r"[\\`*<>|]|(?<!\w)_|_(?!\w)|\](?=[(\[:])")
# Controls but for tab and line breaks, halves of surrogate pairs, and what turns the direction of writing.
INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Heading:
    """A title of level 1, or a heading of level 2 or 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of (what stands out, the rest); either may be empty."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of text below a header. With a `fold` it is hidden until the reader asks for what `fold` says.

    Attributes:
        left: number of leading columns that hold words and are set left; numbers are set right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    fold: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG, the end of its file's name, and what it shows."""

    name: str
    caption: str
    png: bytes


Block = Heading | Text | Bullets | Table | Picture


def to_markdown(blocks: Sequence[Block], picture_prefix: str) -> str:
    """The blocks as GitHub's Markdown; pictures are looked for at `picture_prefix` + name."""
    return "\n\n".join(_markdown(block, picture_prefix) for block in blocks) + "\n"


def _markdown(block: Block, picture_prefix: str) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_escape(text)}"
        case Text(text):
            return _escape(text)
        case Bullets(items):
            return "\n".join(f"- {' '.join(filter(None, [_strong(lead), _escape(rest)]))}" for lead, rest in items)
        case Table(_, _, _, fold) if fold:
            return f"<details><summary>{_escape(fold)}</summary>\n\n{_markdown_table(block)}\n\n</details>"
        case Table():
            return _markdown_table(block)
        case Picture(name, caption, _):
            return f"![{_escape(caption)}]({picture_prefix}{name}.png)\n\n{_escape(caption)}"


def _strong(text: str) -> str:
    return f"**{_escape(text)}**" if text else ""


def _markdown_table(table: Table) -> str:
    rule = ["---" if column < table.left else "---:" for column in range(len(table.header))]
    lines = [[_escape(cell) for cell in table.header], rule, *([_escape(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def visible(text: str) -> str:
    """The text with U+FFFD for what a terminal or a page would obey instead of showing it, or what is no character."""
    return INVISIBLE.sub("\ufffd", text)


def _escape(text: str) -> str:
    return MARKUP.sub(lambda found: "\\" + found[0], visible(" ".join(text.split())))
