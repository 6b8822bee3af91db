"""A few records with their points, the sum they make, and the reasons."""

from __future__ import annotations

from assay.models.digits import added, percent, signed
from assay.models.page import disclosure, items, paragraph, table
from assay.models.points_chart import points_chart
from assay.models.svg import safe
from assay.simulations.findings import PersonLine, Report
from assay.simulations.page import card

__all__ = ["people_section"]

_SHOWN = 8  # features with the most points; the others are drawn as one
_LONGEST = 39  # characters of a feature and its value on one line


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
    title = f"Points of {person.title}"
    chart = points_chart(key, title=title, rows=person.points, shown=_SHOWN, longest=_LONGEST)
    chance = f"{person.band}, {percent(person.probability)} chance of “{outcome}”"
    reasons = paragraph("Main reasons it is not higher", "reasons") + items(person.reasons, "ol")
    return (
        f'<h3>{safe(person.title)}</h3><p class="score">{person.score}</p>{paragraph(chance)}'
        f"<figure>{chart}<figcaption>{safe(sums)}</figcaption></figure>"
        f"{reasons if person.reasons else ''}"
        f"{disclosure('All points', table('All points', ('Feature', 'Value', 'Points'), rows))}"
    )
