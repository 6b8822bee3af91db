"""Pieces that only a report's page has: figures with text beside them, and cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from assay.models import page as pages
from assay.models.page import items, paragraph
from assay.models.svg import safe

__all__ = ["STYLE", "card", "columns", "figure", "label_lines", "page", "row"]

STYLE = Path(__file__).with_name("report.css")


def page(*, title: str, header: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """Return a whole page in the style of a report; see :func:`assay.models.page.page`."""
    return pages.page(title=title, header=header, sections=sections, style=STYLE)


def figure(chart: str, caption: str, beside: str) -> str:
    """Return a chart with a sentence on what to see in it, and what stands beside it on a wide screen."""
    return (
        f'<div class="pair"><figure>{chart}<figcaption>{safe(caption)}</figcaption></figure>'
        f'<div class="beside">{beside}</div></div>'
    )


def row(charts: Sequence[str], caption: str, below: str) -> str:
    """Return several charts beside each other on a wide screen, a sentence on them, and what stands below."""
    return (
        f'<figure class="row of-{columns(len(charts))}">{"".join(charts)}'
        f"<figcaption>{safe(caption)}</figcaption></figure>{below}"
    )


def columns(charts: int) -> int:
    """Return how many of so many charts stand beside each other: at most three, and no row with one only."""
    return 2 if charts in (2, 4) else min(charts, 3)


def card(inner: str) -> str:
    """Return a box in a row of boxes."""
    return f'<article class="card">{inner}</article>'


def label_lines(words: str) -> str:
    """Set a privacy label: lines that begin with a dash are items of a list."""
    parts: list[str] = []
    pending: list[str] = []
    for line in (*words.splitlines(), ""):
        if line.lstrip().startswith("- "):
            pending.append(line.lstrip()[2:])
            continue
        if pending:
            parts.append(items(pending))
            pending = []
        if line.strip():
            parts.append(paragraph(line.strip(), "reasons" if line.rstrip().endswith(":") else ""))
    return "".join(parts)
