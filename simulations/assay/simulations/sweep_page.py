"""Pieces of a sweep's page: sections, and charts that also become pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from assay.simulations.page import figure, row

__all__ = ["LISTED", "Picture", "Section", "drawn", "span"]

LISTED = 300
"""Rows of a table; the CSV files have all."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Charts that also become a PNG of this name, side by side.

    Attributes:
        name: of the file, without ``.png``.
        heading: above it, plain text.
        charts: SVGs, at least one.
        caption: what they show, plain text.
    """

    name: str
    heading: str
    charts: tuple[str, ...]
    caption: str

    def figure(self, beside: str) -> str:
        """Return the charts with their caption, and what stands beside one, or below several."""
        if len(self.charts) == 1:
            return figure(self.charts[0], self.caption, beside)
        return row(self.charts, self.caption, beside)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page, with the pictures in it."""

    key: str
    heading: str
    inner: str
    pictures: tuple[Picture, ...] = ()


def drawn(key: str, picture: Picture, beside: str) -> Section:
    """Return a section that is one picture with something beside it."""
    return Section(key=key, heading=picture.heading, inner=picture.figure(beside), pictures=(picture,))


def span(values: Iterable[str]) -> str:
    """Return the one value that all have, or the first and the last."""
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"
