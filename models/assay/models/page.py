"""Pieces of a self-contained HTML page: sections, tables, lists, and the page around them.

The page loads nothing: its policy allows inline styles and forbids the rest, scripts included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from assay.models.svg import safe

__all__ = ["STYLE", "Cell", "disclosure", "items", "page", "paragraph", "section", "table"]

STYLE = Path(__file__).with_name("page.css")
"""What every page looks like; a page adds its own sheet."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

Cell = str | tuple[str, str]
"""A plain text, or one with a smaller explanation under it."""


def page(*, title: str, header: str, sections: Sequence[tuple[str, str, str]], style: Path) -> str:
    """Return a whole page.

    Args:
        title: plain text.
        header: HTML above the table of contents.
        sections: (key, heading, inner HTML), listed in a table of contents.
        style: the page's own style sheet.
    """
    contents = "".join(f'<li><a href="#{key}">{safe(heading)}</a></li>' for key, heading, _ in sections)
    body = "".join(section(key, heading, inner) for key, heading, inner in sections)
    sheets = "".join(sheet.read_text(encoding="utf-8") for sheet in (STYLE, style))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{safe(title)}</title><style>\n{sheets}</style></head>\n"
        f'<body><header>{header}</header>\n<nav aria-label="Contents"><ul>{contents}</ul></nav>\n'
        f"<main>{body}</main></body></html>\n"
    )


def section(key: str, heading: str, inner: str) -> str:
    """Return a section that can be linked to."""
    title = f'<h2 id="{key}-h">{safe(heading)}</h2>'
    return f'<section id="{key}" aria-labelledby="{key}-h">{title}{inner}</section>\n'


def paragraph(words: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{safe(words)}</p>' if kind else f"<p>{safe(words)}</p>"


def items(rows: Iterable[str], kind: str = "ul") -> str:
    """Return a list of plain texts, ``ul`` or ``ol``."""
    return f"<{kind}>{''.join(f'<li>{safe(row)}</li>' for row in rows)}</{kind}>"


def disclosure(summary: str, inner: str, *, opened: bool = False) -> str:
    """Return a block that opens without a script; printing shows its content in any case."""
    return f"<details{' open' if opened else ''}><summary>{safe(summary)}</summary>{inner}</details>"


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Return a table of plain texts whose first column names the row; the others are set as numbers."""
    head = "".join(f'<th scope="col">{safe(cell)}</th>' for cell in heads)
    body = "".join(
        f'<tr><th scope="row">{_cell(first)}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{safe(caption)}" tabindex="0"><table>'
        f"<caption>{safe(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return safe(cell)
    words, explanation = cell
    return f"{safe(words)}<small>{safe(explanation)}</small>"
