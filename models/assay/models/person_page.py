"""The page for the person who is scored: one HTML file in plain language, without network and script.

What it says is what :func:`assay.models.explain.explain` returns and what the bundle says of itself. The page
is handed to the person; nothing of it is kept here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assay.models import personal
from assay.models.bundle import Bundle
from assay.models.digits import added, count, signed
from assay.models.explain import MISSING, UNKNOWN, own_words, reasons_lost
from assay.models.page import Cell, disclosure, items, page, paragraph, table
from assay.models.personal_charts import band_chart, people_chart
from assay.models.points_chart import points_chart
from assay.models.schema import Scale
from assay.models.svg import safe
from assay.privacy.errors import BadInput
from assay.privacy.files import PRIVATE_FILE, write_durably

__all__ = ["STYLE", "person_page", "require_page", "short_label", "write_person_page"]

STYLE = Path(__file__).with_name("person.css")
_SHOWN = 24  # bars; the features with the fewest points are drawn as one
_UNKNOWN = UNKNOWN.replace(" ", "\u00a0")  # on one line
_LONGEST = 43  # characters of a feature and its value on one line


def require_page(path: Path) -> None:
    """Refuse a file name that is no page, before anything is read.

    Raises:
        BadInput: it does not end in .html, or its directory does not exist.
    """
    if path.suffix not in (".html", ".htm"):
        raise BadInput("html", value=str(path), allowed="a name that ends in .html")
    if not path.parent.is_dir():
        raise BadInput("html", value=str(path), allowed="a file in an existing directory")


def write_person_page(path: Path, bundle: Bundle, explained: Mapping[str, Any], *, now: float) -> None:
    """Write :func:`person_page`, whole or not at all, readable by its owner only.

    Raises:
        OSError: the file cannot be written; an older one is then unchanged.
    """
    page_text = person_page(bundle, explained, now=now)
    write_durably(path, page_text.encode("utf-8"), mode=PRIVATE_FILE)


def person_page(bundle: Bundle, explained: Mapping[str, Any], *, now: float) -> str:
    """Return the page as HTML.

    Args:
        bundle: the verified bundle.
        explained: what :func:`assay.models.explain.explain` returned for the bundle's card.
        now: seconds since 1970, the day on the page.
    """
    sections = (
        ("chance", "What your score means", _chance(bundle, explained)),
        ("about", "What it is for", items(personal.about(bundle.study, _day(bundle.expires)))),
        ("reasons", "Why it is not higher", _reasons(explained)),
        ("points", "All points, one by one", _points(bundle, explained)),
        ("unknown", "What is not known", _unknown(explained)),
        ("change", "What would change it", _change(explained)),
        ("privacy", "How privacy was kept", paragraph(personal.privacy_words(bundle.label)) + _OWN_DATA),
        ("ask", "Questions, mistakes, objections", _ask(bundle, explained)),
        ("file", "Where this comes from", _origin(bundle, now)),
    )
    return page(
        title=f"Your score: {explained['score']}",
        header=_header(bundle, explained),
        sections=[section for section in sections if section[2]],
        style=STYLE,
    )


_OWN_DATA = paragraph(
    "To make this page, one program read your own data, on the computer of the institution that gave it to"
    " you. The page shows these data as they are. Keep it where only you can see it."
)


def _header(bundle: Bundle, explained: Mapping[str, Any]) -> str:
    scale = bundle.study.scale
    lead = (
        f"That is {explained['band']}, on a scale from {scale.low} to {scale.high}. A higher score is better."
    )
    chart = band_chart(explained["score"], explained["band"], scale)
    return (
        f"{paragraph(f'Score “{bundle.study.name}”', 'study')}"
        f"<h1>Your score: {explained['score']}</h1>{paragraph(lead, 'lead')}<figure>{chart}</figure>"
    )


def _chance(bundle: Bundle, explained: Mapping[str, Any]) -> str:
    meaning = bundle.study.outcome.meaning
    number, of = personal.frequency(explained["probability"])
    words = paragraph(personal.chance(explained["probability"], meaning), "lead")
    after = paragraph("The score does not say which of them you are. It can be wrong about you.")
    if of != 100:
        return words + after
    caption = f"Filled squares: {number} of 100 people, “{meaning}”. Rings: the others."
    chart = people_chart(number, meaning)
    return f"{words}<figure>{chart}<figcaption>{safe(caption)}</figcaption></figure>{after}"


def _reasons(explained: Mapping[str, Any]) -> str:
    described = {f["name"]: (f["value"], f["description"]) for f in explained["features"]}
    parts = [
        _compared(
            "Compared with the average of all people", explained["reasons"], described, "the average person"
        )
    ]
    near = explained["reasons_near_cut_off"]
    if near is not None:
        cut_off = explained["cut_off"]
        side = "reaches" if explained["score"] >= cut_off else "is below"
        parts.append(_compared("Compared with people who just pass", near, described, "people who just pass"))
        parts.append(
            paragraph(
                f"People who just pass are those with a score of {cut_off} or slightly more. Your score"
                f" {side} {cut_off}. Whoever decides about you may draw the line elsewhere."
            )
        )
    return "".join(parts)


def _compared(
    heading: str,
    reasons: Sequence[Mapping[str, Any]],
    described: Mapping[str, tuple[str, str | None]],
    whom: str,
) -> str:
    lost = reasons_lost(reasons)
    if not lost:
        words = f"Nothing lowers your score: in everything that was scored, you have as many points as {whom}"
        return f"<h3>{safe(heading)}</h3>{paragraph(f'{words}, or more.')}"
    rows = []
    for reason in lost:
        own = own_words(*described[reason["feature"]])
        rows.append(f"<li>{safe(reason['words'])}<small>{safe(own)}</small></li>")
    return f'<h3>{safe(heading)}</h3><ol class="why">{"".join(rows)}</ol>'


def _points(bundle: Bundle, explained: Mapping[str, Any]) -> str:
    total = sum(feature["points"] for feature in explained["features"])
    sums = (
        f"{explained['base_points']} starting points {added(total)} points {added(explained['capped'])}"
        f" adjusted =\u00a0{explained['score']}"
    )
    unknown = " What is not known counts 0 and has no bar." if explained["missing_components"] else ""
    intro = paragraph(
        "Every piece of data adds points or takes points away. 0 is about the average of all people. Bars to"
        f" the right add to your score, bars to the left take away.{unknown}"
    )
    return (
        f'{intro}<figure class="points">{_bars(explained)}<figcaption>{safe(sums)}</figcaption></figure>'
        f"{_all_points(bundle.study.scale, explained)}"
    )


def _bars(explained: Mapping[str, Any]) -> str:
    labels = {feature["name"]: feature["label"] for feature in explained["features"]}
    return points_chart(
        "bars",
        title="Your points",
        rows=[
            (short_label(feature, labels), feature["value"], feature["points"])
            for feature in explained["features"]
            if feature["component"] not in explained["missing_components"]
        ],
        shown=_SHOWN,
        longest=_LONGEST,
        before=("Starting points", explained["base_points"]),
        after=(
            ("Adjusted to the scale", signed(explained["capped"])),
            ("Your score", str(explained["score"])),
        ),
    )


def short_label(feature: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Say first of a pair that it is one: what does not fit on a line is cut off at its end."""
    if not feature["pair"]:
        return str(feature["label"])
    return f"Together: {' and '.join(labels[name] for name in feature['pair'])}"


def _all_points(scale: Scale, explained: Mapping[str, Any]) -> str:
    start = "where everybody starts of whom the same kinds of data are known"
    rows: list[Sequence[Cell]] = [(("Starting points", start), "", str(explained["base_points"]))]
    rows += [
        (_label(feature), feature["value"].replace(UNKNOWN, _UNKNOWN), signed(feature["points"]))
        for feature in explained["features"]
    ]
    edges = f"a sum outside {scale.low} to {scale.high} is set to the nearest end"
    rows += [
        (("Adjusted to the scale", edges), "", signed(explained["capped"])),
        ("Your score", "", str(explained["score"])),
    ]
    return table("All your points; they add up to your score", ("What", "Your data", "Points"), rows)


def _label(feature: Mapping[str, Any]) -> Cell:
    return (feature["label"], feature["description"]) if feature["description"] else feature["label"]


def _unknown(explained: Mapping[str, Any]) -> str:
    missing = [personal.COMPONENT_WORDS[name] for name in explained["missing_components"]]
    gaps = [f["label"] for f in explained["features"] if f["value"] == MISSING and not f["pair"]]
    parts = []
    if missing:
        words = "Nothing is known here about the following. It counts neither for you nor against you:"
        parts.append(paragraph(words) + items(missing))
    if gaps:
        words = "Single values are missing. A missing value has points of its own, see the table above:"
        parts.append(paragraph(words) + items(gaps))
    return "".join(parts)


def _change(explained: Mapping[str, Any]) -> str:
    parts = []
    if explained["what_if_asked"]:
        parts.append(f"<h3>What you asked</h3>{_asked(explained)}")
    if explained["what_if"]:
        rows = [_single(explained, change) for change in explained["what_if"]]
        heads = ("If only this were different", "Points", "Score")
        parts.append(
            "<h3>One change at a time</h3>"
            + table(
                "The change near your own value that would gain most, all else as it is; others are below",
                heads,
                rows,
            )
        )
    parts += [_effect(effect) for effect in explained["what_if_values"]]
    if not parts:
        return paragraph("None of the data that were scored can be changed from one day to the next.")
    if not explained["what_if"]:
        parts.insert(0, paragraph("No single change that you can make now would raise your score."))
    return "".join(parts) + paragraph(personal.NOT_KEPT, "callout")


def _single(explained: Mapping[str, Any], change: Mapping[str, Any]) -> tuple[Cell, ...]:
    feature = next(f for f in explained["features"] if f["name"] == change["feature"])
    words = f"{change['value']} instead of {feature['value']}"
    return (feature["label"], words), signed(change["points_gained"]), str(change["score"])


def _effect(effect: Mapping[str, Any]) -> str:
    paired = effect["values"][0]["together"] is not None
    shown = ("points", "together") if paired else ("points",)
    rows = [
        (row["value"], *(signed(row[name]) for name in shown), str(row["score"])) for row in effect["values"]
    ]
    caption = f"{effect['label']}: points and score for each value, all else as it is"
    heads = ("Value", "Points", *(["Together with other data"] if paired else ()), "Score")
    return disclosure(f"All values of “{effect['label']}”", table(caption, heads, rows))


def _asked(explained: Mapping[str, Any]) -> str:
    asked = explained["what_if_asked"]
    changes = [f"{each['label']}: {each['to']} instead of {each['from']}" for each in asked["changes"]]
    number, of = personal.frequency(asked["probability"])
    together = " together" if len(changes) > 1 else ""
    words = (
        f"This would{together} change your points by {signed(asked['points_gained'])}. The score would be"
        f" {asked['score']} ({asked['band']}) instead of {explained['score']}. Of {of:,} people with these"
        f" points, about {number:,} have the outcome."
    )
    return items(changes) + paragraph(words)


def _ask(bundle: Bundle, explained: Mapping[str, Any]) -> str:
    lines = personal.contact_lines(explained["contact"])
    contact = "".join(f"<h3>{safe(heading)}</h3>{paragraph(words)}" for heading, words in lines)
    lead = "Where the law of the European Union applies, you have these rights:"
    return f"{contact}<h3>Your rights</h3>{paragraph(lead)}{items(personal.rights(bundle.study.purpose))}"


def _origin(bundle: Bundle, now: float) -> str:
    shown = count(len(bundle.study.features), "feature")
    facts = (
        ("Page made on", _day(now)),
        ("Score", f"{bundle.study.name}, {shown}"),
        ("Score file signed by", bundle.fingerprint),
        ("Score file, SHA-256", bundle.digest),
    )
    rows = "".join(f"<dt>{safe(name)}</dt><dd><code>{safe(value)}</code></dd>" for name, value in facts)
    words = "With these two marks an expert can check that the score comes from the right file, unchanged."
    return f'<dl class="origin">{rows}</dl>{paragraph(words, "small")}'


def _day(seconds: float) -> str:
    day = datetime.fromtimestamp(seconds, tz=UTC).date()
    return f"{day.day} {day:%B %Y}"
