"""Blocks of a report, rendered as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as escape_html
from pathlib import Path
from string import Template

from benchmarks.harness.figures import Plot
from benchmarks.harness.table import escape

BREAKS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[#/_:=+])(?=\w\w)")
SHOWN = 0.69  # display size over pixel size of figures: page width, sharp on high-density screens
PAGE = Path(__file__).with_name("report_page.html")


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    items: list[str]


@dataclass(frozen=True)
class Code:
    """Shell commands."""

    lines: list[str]


@dataclass(frozen=True)
class Cell:
    """A table cell.

    Attributes:
        text: Content.
        note: Smaller note after it, such as an interval.
        value: Sort key; None sorts by the text.
        is_strong: Whether to emphasise it.
    """

    text: str
    note: str = ""
    value: float | None = None
    is_strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under heads.

    Attributes:
        heads: Column heads.
        rows: Rows with a cell per column.
        texts: Number of leading text columns, aligned left; numbers are aligned right.
    """

    heads: list[str]
    rows: list[list[Cell]]
    texts: int = 1


Block = Heading | Text | Items | Code | Table | Plot


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return the blocks as Markdown that links to the figure files."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block]) -> str:
    """Return the blocks as a page with embedded styles, script and figures, for light and dark screens.

    The script only makes tables sortable.
    """
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    body = "\n".join(_html(block) for block in blocks)
    page = Template(PAGE.read_text(encoding="utf-8"))
    return page.substitute(title=escape_html(title), body=body)


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {escape(block.text)}"
        case Text():
            return escape(block.text)
        case Items():
            return "\n".join(f"- {escape(item)}" for item in block.items)
        case Code():
            return "\n".join(f"    {line}" for line in block.lines)
        case Table():
            return _markdown_table(block)
        case Plot():
            return f"![{escape(block.title)}]({block.name}.png)\n\n{escape(block.title)}. {escape(block.caption)}"


def _markdown_table(table: Table) -> str:
    lines = [table.heads, ["---"] * table.texts + ["---:"] * (len(table.heads) - table.texts)]
    for row in table.rows:
        lines.append([])
        for cell in row:
            text = f"**{escape(cell.text)}**" if cell.is_strong else escape(cell.text)
            lines[-1].append(f"{text} ({escape(cell.note)})" if cell.note else text)
    lines[0] = [escape(head) for head in table.heads]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape_html(block.text)}</h{block.level}>"
        case Text():
            return f"<p>{escape_html(block.text)}</p>"
        case Items():
            return f"<ul>{''.join(f'<li>{escape_html(item)}</li>' for item in block.items)}</ul>"
        case Code():
            return f'<pre tabindex="0"><code>{escape_html(chr(10).join(block.lines))}</code></pre>'
        case Table():
            return _html_table(block)
        case Plot():
            light, dark = (_data(block.images[end]) for end in ("", "-dark"))
            title, caption = escape_html(block.title), escape_html(block.caption)
            width, height = (round(int.from_bytes(block.images[""][at : at + 4]) * SHOWN) for at in (16, 20))
            return (
                '<figure><div class="scroll" tabindex="0"><picture>'
                f'<source media="(prefers-color-scheme: dark)" srcset="{dark}"><img src="{light}" alt="{title}"'
                f' width="{width}" height="{height}">'
                f"</picture></div><figcaption><strong>{title}.</strong> {caption}</figcaption></figure>"
            )


def _html_table(table: Table) -> str:
    def kind(column: int) -> str:
        return ' class="words"' if column < table.texts else ""

    heads = "".join(f'<th scope="col"{kind(at)}>{_breakable(head)}</th>' for at, head in enumerate(table.heads))
    rows = []
    for row in table.rows:
        cells = []
        for at, cell in enumerate(row):
            text = f"<strong>{_breakable(cell.text)}</strong>" if cell.is_strong else _breakable(cell.text)
            note = f"<small>{escape_html(cell.note)}</small>" if cell.note else ""
            value = "" if cell.value is None else f' data-value="{cell.value:.6g}"'
            tag = 'th scope="row"' if at == 0 else "td"
            cells.append(f"<{tag}{kind(at)}{value}>{text}{note}</{tag[:2]}>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    table_of = f"<table><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table_of}</div>'


def _breakable(text: str) -> str:
    """Return escaped text with break opportunities after punctuation and before capitals."""
    return "<wbr>".join(escape_html(part) for part in BREAKS.split(text))


def _data(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"
