"""What tests of pages share: a strict reader of HTML, colours of style sheets, and a hostile text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

HOSTILE = '<script>alert("1")</script>\u202e\x00\'&'
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Fails on tags that do not nest; collects ids, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @classmethod
    def of(cls, html: str) -> Reader:
        reader = cls()
        reader.feed(html)
        reader.close()
        assert reader.open == []
        return reader


def check_self_contained(html: str) -> Reader:
    """Parse a page and fail if it is not well formed, or loads, links to or runs anything."""
    reader = Reader.of(html)
    ids = [value for name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in reader.attributes:
        assert name not in ("src", "srcset", "style", "xlink:href")
        assert not name.startswith("on")
        if name == "href":
            assert value[0] == "#"
            assert value[1:] in ids
        if name == "aria-labelledby":
            assert set(value.split()) <= set(ids)
    assert not set(reader.tags) & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert "default-src 'none'; style-src 'unsafe-inline'" in html
    assert not re.search(r"https?://|url\(|@import", html)
    return reader


def colours_of(sheets: tuple[Path, ...], scheme: str) -> dict[str, str]:
    """Colours by name, of the ``"light"`` or the ``"dark"`` scheme."""
    found: dict[str, str] = {}
    for sheet in sheets:
        blocks = re.findall(r":root \{(.*?)\}", sheet.read_text(), re.DOTALL)
        assert len(blocks) == 2
        found |= re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[["light", "dark"].index(scheme)])
    return found


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
