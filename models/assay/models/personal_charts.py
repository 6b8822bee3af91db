"""The charts of the page for a person: the score among the bands, and people as dots."""

from __future__ import annotations

from collections.abc import Sequence

from assay.models.schema import Scale
from assay.models.scorecard import BANDS, band_cuts
from assay.models.svg import WIDTH, bar, label, marker, path, segment, svg

__all__ = ["band_chart", "band_ranges", "people_chart"]

_EDGE = 16.0  # room for half a number at both ends
_TOP, _HEIGHT = 44.0, 26.0  # of the band
_ACROSS = 20  # dots in a row
_MANY = 100


def band_ranges(scale: Scale) -> list[tuple[str, int, int]]:
    """Return words, lowest and highest score of each band that the scale has room for, from the lowest up."""
    floors = [(words, cut) for (words, _), cut in zip(BANDS, [*band_cuts(scale), scale.low], strict=True)]
    ranges, top = [], scale.high
    for words, floor in floors:
        low = max(floor, scale.low)
        if low <= top:
            ranges.append((words, low, top))
            top = low - 1
    return ranges[::-1]


def band_chart(score: int, band: str, scale: Scale) -> str:
    """Draw the score on the bands from low to high; all bands are equally wide, so that their names fit."""
    ranges = band_ranges(scale)
    width = (WIDTH - 2 * _EDGE) / len(ranges)
    parts = []
    for place, (words, low, _) in enumerate(ranges):
        left, here = _EDGE + place * width, words == band
        parts.append(bar(left, _TOP, width, _HEIGHT, f"band band-{_shade(place, len(ranges))}"))
        parts.append(label(left, _TOP + _HEIGHT + 15, str(low), "quiet", anchor="middle"))
        for row, word in enumerate(_lines(words)):
            y = _TOP + _HEIGHT + 36 + 14 * row
            parts.append(label(left + width / 2, y, word, "strong" if here else "", anchor="middle"))
    parts.append(label(WIDTH - _EDGE, _TOP + _HEIGHT + 15, str(scale.high), "quiet", anchor="middle"))
    x = _EDGE + width * _position(score, ranges, scale)
    top, bottom = _TOP - 12, _TOP + _HEIGHT
    parts.append(label(min(max(x, 34), WIDTH - 34), top - 6, f"You: {score}", "you", anchor="middle"))
    parts.append(path([(x - 7, top), (x + 7, top), (x, top + 10)], "pointer", closed=True))
    parts.append(segment((x, top), (x, bottom), "needle"))
    told = ", ".join(f"{low} to {high} {words}" for words, low, high in ranges)
    return svg(
        "bands",
        title=f"Your score: {score}, {band}",
        desc=f"A higher score is better. {told}.",
        height=_TOP + _HEIGHT + 56,
        parts=parts,
    )


def people_chart(number: int, meaning: str) -> str:
    """Draw a hundred people, ``number`` of them as filled squares, the others as rings."""
    step = WIDTH / _ACROSS
    parts = []
    for place in range(_MANY):
        x, y = (place % _ACROSS + 0.5) * step, (place // _ACROSS + 0.5) * step
        shape, kind = ("square", "with") if place < number else ("circle", "without")
        parts.append(marker(shape, x, y, kind, 6))
    rows = _MANY / _ACROSS
    return svg(
        "people",
        title=f"About {number} of {_MANY} people",
        desc=f"{number} filled squares are people with the outcome “{meaning}”, {_MANY - number} rings are"
        " people without.",
        height=rows * step,
        parts=parts,
    )


def _position(score: int, ranges: Sequence[tuple[str, int, int]], scale: Scale) -> float:
    """Return where ``score`` lies, in bands from the left."""
    inside = min(max(score, scale.low), scale.high)
    for place, (_, low, high) in enumerate(ranges):
        if inside <= high:
            # A band ends where the next begins; the last one ends at the top of the scale.
            end = high if place == len(ranges) - 1 else high + 1
            return place + (inside - low) / max(end - low, 1)
    return float(len(ranges))


def _shade(place: int, bands: int) -> int:
    """Return one of the shades 0 (lowest band) to 4 (highest)."""
    return round(4 * place / max(bands - 1, 1))


def _lines(words: str) -> list[str]:
    first, _, last = words.rpartition(" ")
    return [first, last] if first else [last]
