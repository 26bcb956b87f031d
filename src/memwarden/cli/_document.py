"""A short document of headings, sentences, tables and pictures, and the three ways to write it: text, Markdown, HTML.

Every text of it is foreign until it is written: it becomes one printable line, escaped as the form demands.
"""

from __future__ import annotations

from html import escape
from textwrap import TextWrapper
from typing import TYPE_CHECKING

from memwarden.cli._output import columns, one_line
from memwarden.cli._page import frame
from memwarden.facts import Fact

if TYPE_CHECKING:
    from collections.abc import Sequence

# A line of running text; tables are as wide as they must be.
WIDTH = 100
MOST = 2_000
# What Markdown (CommonMark and its tables) gives a meaning to, within a line.
_MARKED = str.maketrans({**{letter: f"\\{letter}" for letter in "\\`*_[]#|~$"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"})


class Heading(Fact):
    """A heading of the second level, or of the third."""

    text: str
    level: int = 2


class Text(Fact):
    """A paragraph. `mood` is that of one to be read first: good, warn or bad."""

    text: str
    mood: str = ""


class Items(Fact):
    """Some sentences, one below the other."""

    items: tuple[str, ...]
    ordered: bool = False


class Table(Fact):
    """Rows of as many cells as there are heads; the first cell names its row."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


class Picture(Fact):
    """SVG, already safe, for HTML alone; the table has its figures for who cannot see it."""

    svg: str
    caption: str
    figures: Table


Block = Heading | Text | Items | Table | Picture


class Document(Fact):
    """All of it. `under` stands small below the title, `footer` at the end."""

    title: str
    under: str
    blocks: tuple[Block, ...]
    footer: str = ""


# --- text -----------------------------------------------------------------------------------------------------------


def as_text(document: Document) -> str:
    """For a terminal or a mail; pictures are left out."""
    lines = [one_line(document.title, MOST), *_wrap(one_line(document.under, MOST)), ""]
    for block in document.blocks:
        lines += _text_of(block)
    return "\n".join([*lines, *_wrap(one_line(document.footer, MOST))]) + "\n"


def _wrap(text: str, *, first: str = "") -> list[str]:
    """Lines of it; a path or a word is never cut."""
    return TextWrapper(
        WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False, break_on_hyphens=False
    ).wrap(text)


def _text_of(block: Block) -> list[str]:
    if isinstance(block, Heading):
        text = one_line(block.text, MOST)
        return [text.upper() if block.level == 2 else text, ""]
    if isinstance(block, Text):
        return [*_wrap(one_line(block.text, MOST)), ""]
    if isinstance(block, Items):
        marks = [f"{number}. " if block.ordered else "- " for number in range(1, len(block.items) + 1)]
        lines = []
        for mark, item in zip(marks, block.items, strict=True):
            lines += _wrap(one_line(item, MOST), first=mark)
        return [*lines, ""]
    if isinstance(block, Table):
        rows = [[one_line(cell, MOST) for cell in row] for row in (block.heads, *block.rows)]
        return [*columns(rows), *_wrap(one_line(block.caption, MOST)), ""]
    return []


# --- Markdown --------------------------------------------------------------------------------------------------------


def as_markdown(document: Document) -> str:
    """CommonMark with tables; pictures are left out."""
    parts = [f"# {_marked(document.title)}", _marked(document.under)]
    parts += [text for block in document.blocks if (text := _markdown_of(block))]
    return "\n\n".join([*parts, _marked(document.footer)]).rstrip() + "\n"


def _marked(text: str) -> str:
    words = one_line(text, MOST).strip().translate(_MARKED)
    return f"\\{words}" if words[:1] in ("-", "+", "=") else words


def _markdown_of(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_marked(block.text)}"
    if isinstance(block, Text):
        return f"**{_marked(block.text)}**" if block.mood else _marked(block.text)
    if isinstance(block, Items):
        marks = [f"{number}." if block.ordered else "-" for number in range(1, len(block.items) + 1)]
        return "\n".join(f"{mark} {_marked(item)}" for mark, item in zip(marks, block.items, strict=True))
    if isinstance(block, Table):
        rows = [block.heads, ["---"] * len(block.heads), *block.rows]
        lines = ["| " + " | ".join(cell if cell == "---" else _marked(cell) for cell in row) + " |" for row in rows]
        return "\n".join([*lines, *(["", _marked(block.caption)] if block.caption else [])])
    return ""


# --- HTML ------------------------------------------------------------------------------------------------------------


def as_html(document: Document) -> str:
    """One page that needs nothing else: no script, no address."""
    head = f'<h1>{_html(document.title)}</h1>\n<p class="of">{_html(document.under)}</p>'
    body = "\n".join([head, *map(_html_of, document.blocks)])
    return frame(one_line(document.title, MOST), body, one_line(document.footer, MOST))


def _html(text: str) -> str:
    parts = escape(one_line(text, MOST)).split("`")
    if len(parts) % 2 == 0:
        return "`".join(parts)
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


def _html_of(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_html(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        mood = f' class="say {block.mood}"' if block.mood else ""
        return f"<p{mood}>{_html(block.text)}</p>"
    if isinstance(block, Items):
        tag = "ol" if block.ordered else "ul"
        return f"<{tag}>{''.join(f'<li>{_html(item)}</li>' for item in block.items)}</{tag}>"
    if isinstance(block, Table):
        return f'<div class="wide">{_html_table(block)}</div>'
    more = f"<details><summary>The figures of this picture</summary>{_html_table(block.figures)}</details>"
    return f"<figure>{block.svg}<figcaption>{_html(block.caption)}</figcaption></figure>{more}"


def _html_table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{_html(head)}</th>' for head in table.heads)
    rows = "".join(f"<tr>{_html_row(row)}</tr>" for row in table.rows)
    caption = f"<caption>{_html(table.caption)}</caption>" if table.caption else ""
    return f'<table class="list">{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _html_row(row: Sequence[str]) -> str:
    first, *rest = row
    return f'<th scope="row">{_html(first)}</th>' + "".join(f"<td>{_html(cell)}</td>" for cell in rest)
