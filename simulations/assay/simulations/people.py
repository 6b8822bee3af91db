"""A few records with their points, the sum they make, and the reasons."""

from __future__ import annotations

from assay.simulations.charts import WIDTH, Span, bar, clipped, label, safe, segment, svg
from assay.simulations.findings import PersonLine, Report
from assay.simulations.page import card, disclosure, items, paragraph, table
from assay.simulations.wording import added, percent, signed

__all__ = ["people_section"]

_SHOWN = 8  # features with the most points; the others are drawn as one
_ROW = 37.0


def people_section(report: Report) -> str:
    """Return the inner HTML of the section, empty where the report has no people."""
    if not report.people:
        return ""
    people = enumerate(report.people, start=1)
    cards = "".join(card(_person(person, f"person-{i}", report.outcome_meaning)) for i, person in people)
    intro = paragraph(
        "Points count from the population's average: +10 is ten points better than average, −10 ten points "
        "worse. Bars to the right add to the score, bars to the left take away."
    )
    return f'{intro}<div class="cards">{cards}</div>'


def _person(person: PersonLine, key: str, outcome: str) -> str:
    total = sum(points for _, _, points in person.points)
    sums = (
        f"{person.base_points} base {added(total)} points {added(person.capped)} capped =\u00a0{person.score}"
    )
    rows = [("Base", "", str(person.base_points))]
    rows += [(name, value, signed(points)) for name, value, points in person.points]
    rows += [("Capped to the range", "", signed(person.capped)), ("Score", "", str(person.score))]
    chance = f"{person.band}, {percent(person.probability)} chance of “{outcome}”"
    reasons = paragraph("Main reasons it is not higher", "reasons") + items(person.reasons, "ol")
    return (
        f'<h3>{safe(person.title)}</h3><p class="score">{person.score}</p>{paragraph(chance)}'
        f"<figure>{_points_chart(person, key)}<figcaption>{safe(sums)}</figcaption></figure>"
        f"{reasons if person.reasons else ''}"
        f"{disclosure('All points', table('All points', ('Feature', 'Value', 'Points'), rows))}"
    )


def _points_chart(person: PersonLine, key: str) -> str:
    """Draw the features with the most points, left for points lost and right for points gained."""
    ranked = sorted(person.points, key=lambda row: -abs(row[2]))
    rows = [(_named(name, value), points) for name, value, points in ranked[:_SHOWN]]
    rest = ranked[_SHOWN:]
    if rest:
        rows.append((f"{len(rest)} more features", sum(points for _, _, points in rest)))
    reach = max([1, *(abs(points) for _, points in rows)])
    across = Span(low=-reach, high=reach, start=1, stop=WIDTH - 1)
    parts = []
    for index, (words, points) in enumerate(rows):
        y = _ROW * index + 14
        left, right = sorted((across(0), across(points)))
        parts += [
            label(1, y, words),
            label(WIDTH - 1, y, signed(points), "strong halo", anchor="end"),
            bar(left, y + 6, right - left, 10, "bar gain" if points > 0 else "bar loss"),
            segment((across(0), y + 4), (across(0), y + 18), "axis"),
        ]
    desc = "; ".join(f"{words}: {signed(points)}" for words, points in rows)
    height = max(1.0, _ROW * len(rows))
    return svg(key, title=f"Points of {person.title}", desc=desc, height=height, parts=parts)


def _named(name: str, value: str) -> str:
    """Fit a feature and its value on one line of 39 characters, the value in at most 14."""
    value = clipped(value, 14)
    return f"{clipped(name, 37 - len(value))}: {value}"
