"""The report is one safe, readable HTML file that says what it was given."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from html_support import HOSTILE, Reader, check_self_contained, colours_of, contrast

from assay.models import digits, svg
from assay.models.page import STYLE
from assay.models.schema import Scale
from assay.privacy.errors import BadInput
from assay.simulations import charts, page, wording
from assay.simulations.report import (
    Comparison,
    HolderLine,
    LocalSpread,
    Metrics,
    PersonLine,
    Report,
    Trust,
    write_report,
)
from assay.simulations.tallies import calibration_rows, score_rows

DISTRIBUTED = Trust(mode="distributed", tolerated=2, fallback_epsilon=2.345)
LOCAL = Trust(mode="local", tolerated=None, fallback_epsilon=None)


def a_person(**changes: object) -> PersonLine:
    values = {
        "title": "Record 17",
        "score": 612,
        "band": "medium risk",
        "probability": 0.0612,
        "points": (("Credit limit", "120,000", 34), ("Status in September", "2 months late", -71)),
        "base_points": 648,
        "capped": 1,
        "reasons": ("Status in September",),
    }
    return PersonLine(**{**values, **changes})


def a_report(rows: int = 400, **changes: object) -> Report:
    rng = np.random.default_rng(5)
    y = (np.arange(rows) % 4 == 0).astype(np.float64)
    logit = -1.3 + y + rng.normal(size=rows)
    p = 1 / (1 + np.exp(-logit))
    pooled = 1 / (1 + np.exp(-logit - 0.2 * y))
    scale = Scale()
    score = np.clip(np.round(scale.offset - scale.factor * logit), 350, 950).astype(np.int32)
    values = {
        "title": "Card default",
        "study_name": "card-default",
        "purpose": "consumer_credit",
        "outcome_meaning": "missed the next payment",
        "holders": (
            HolderLine(name="north", rows=1234, epsilon_spent=0.75, epsilon_limit=3.0, local_auroc=0.701),
            HolderLine(name="south", rows=2000, epsilon_spent=1.25),
        ),
        "epsilon": 1.5,
        "delta": 1e-6,
        "trust": DISTRIBUTED,
        "rounds": 37,
        "seconds": 4.25,
        "label_words": "Privacy: epsilon 1.5.\nNot covered:\n  - What a score tells.\n  - Timing.",
        "comparison": Comparison(
            local=LocalSpread(mean=0.701, low=0.691, high=0.711),
            federated=Metrics.of(y, p),
            pooled=Metrics.of(y, pooled),
        ),
        "y_true": y,
        "probability": p,
        "score": score,
        "pooled_probability": pooled,
        "local_probability": p**2,
        "people": (a_person(),),
        "bundle_name": "card-default.bundle",
        "fingerprint": "3f9a17c2",
        "notes": ("Held-out rows are the last fifth.",),
    }
    return Report(**{**values, **changes})


def html_of(report: Report, folder: Path) -> str:
    write_report(folder / "report.html", report)
    return (folder / "report.html").read_text(encoding="utf-8")


def tiny(**changes: object) -> Report:
    y, p = np.array([0.0, 1.0]), np.array([0.2, 0.6])
    values = {
        "holders": (HolderLine(name="only", rows=1, epsilon_spent=0.0),),
        "comparison": Comparison(local=None, federated=Metrics.of(y, p), pooled=None),
        "y_true": y,
        "probability": p,
        "score": np.array([350, 950]),
        "pooled_probability": None,
        "local_probability": None,
        "people": (),
        "notes": (),
    }
    return a_report(**{**values, **changes})


def many() -> Report:
    holders = tuple(
        HolderLine(name=f"holder-{i}", rows=10, epsilon_spent=1.0, epsilon_limit=2.0, local_auroc=0.7)
        for i in range(500)
    )
    return a_report(holders=holders)


def reversed_ranking() -> Report:
    y, p = np.array([0.0, 1.0] * 40), np.array([0.6, 0.2] * 40)
    return tiny(
        comparison=Comparison(local=None, federated=Metrics.of(y, p), pooled=None),
        y_true=y,
        probability=p,
        score=np.array([350, 950] * 40),
        people=(a_person(points=(), base_points=1000, capped=-50, score=950, reasons=()),),
    )


@pytest.mark.parametrize("build", [a_report, tiny, many, reversed_ranking])
def test_page_is_well_formed_self_contained_and_announced(build, tmp_path):
    html = html_of(build(), tmp_path)
    reader = check_self_contained(html)
    assert reader.tags.count("svg") == reader.tags.count("desc") >= 5
    assert "nan" not in re.findall(r"[a-z]+", html)
    assert "inf" not in re.findall(r"[a-z]+", html)


def test_hostile_texts_are_escaped_everywhere(tmp_path):
    report = a_report(
        title=HOSTILE,
        study_name=HOSTILE,
        purpose=HOSTILE,
        outcome_meaning=HOSTILE,
        label_words=HOSTILE + "\n - " + HOSTILE,
        holders=(HolderLine(name=HOSTILE, rows=1, epsilon_spent=1.0, local_auroc=0.7),),
        people=(
            a_person(title=HOSTILE, band=HOSTILE, points=((HOSTILE, HOSTILE, -37),), reasons=(HOSTILE,)),
        ),
        bundle_name=HOSTILE,
        fingerprint=HOSTILE,
        notes=(HOSTILE,),
    )
    html = html_of(report, tmp_path)
    reader = Reader.of(html)
    assert "script" not in reader.tags
    assert "<script" not in html
    assert "\x00" not in html
    assert "\u202e" not in html
    assert "".join(reader.words).count('<script>alert("1")</script>\ufffd\ufffd\'&') >= 12


def test_numbers_shown_are_those_given(tmp_path):
    report = a_report()
    words = " ".join(Reader.of(html_of(report, tmp_path)).words)
    for metrics in (report.comparison.federated, report.comparison.pooled):
        for value in (metrics.auroc, metrics.ks, metrics.gini, metrics.log_loss, metrics.brier):
            assert f"{value:.3f}" in words
    for shown in (
        "0.701", "0.691", "0.711", "1,234", "3,234 records", "ε 0.75 of 3", "ε 1.25, no cap", "1e-6", "37",
        "4.2 s", "648 base − 37 points + 1 capped =\u00a0612", "6.1\u00a0% chance", "+34", "−71", "3f9a17c2",
        "1 in 1,000,000", "at most 4.5", "Held-out rows are the last fifth.", "What a score tells.",
    ):  # fmt: skip
        assert shown in words, shown
    assert "A live coordinator cannot" in words


def test_page_says_whom_the_promise_relies_on_and_what_is_left_without_them(tmp_path):
    words = " ".join(Reader.of(html_of(a_report(), tmp_path)).words)
    for said in (
        "only their noisy sum",
        "at most 2 holders are curious, colluding or gone",
        "ε\u00a02.35 would be left",
    ):
        assert said in words, said
    words = " ".join(Reader.of(html_of(a_report(trust=LOCAL), tmp_path)).words)
    assert "Nobody outside a holder is relied on" in words
    assert "would be left" not in words


def test_trust_is_read_from_the_label_and_told_under_the_same_keys():
    label = {"trust": "distributed", "tolerated": 1, "epsilon_if_aggregation_fails": 1.5}
    assert Trust.of({**label, "unit": "one person"}).to_json() == label
    none = {"trust": "local", "tolerated": None, "epsilon_if_aggregation_fails": None}
    assert Trust.of(none).to_json() == none


def test_score_table_counts_every_record_once_and_keeps_bands_apart():
    report = a_report()
    rows = score_rows(report)
    assert sum(row.rows for row in rows) == 400
    assert sum(row.bad for row in rows) == 100
    assert [row.low for row in rows] == sorted((row.low for row in rows), reverse=True)
    for row in rows:
        inside = (report.score >= row.low) & (report.score <= row.high)
        assert (int(inside.sum()), int(report.y_true[inside].sum())) == (row.rows, row.bad)
    assert {row.low: row.band for row in rows}[600] == "medium risk"
    odd = dataclasses.replace(report, scale=Scale(anchor_score=640, pdo=37))
    assert 640 in {row.low for row in score_rows(odd)}


def test_wilson_interval_equals_published_values():
    # 0 of 20 and 1 of 29: Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    y = np.array([0.0] * 48 + [1.0])
    p = np.array([0.1] * 20 + [0.2] * 29)
    comparison = Comparison(local=None, federated=Metrics.of(y, p), pooled=None)
    report = tiny(comparison=comparison, y_true=y, probability=p, score=np.full(49, 600))
    none, one = calibration_rows(report)
    assert (none.rows, none.observed, one.rows) == (20, 0.0, 29)
    assert (none.low, none.high) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert (one.low, one.high) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert none.holds
    assert not one.holds


@pytest.mark.parametrize(
    "changes",
    [
        {"holders": ()},
        {"epsilon": float("nan")},
        {"epsilon": 0.0},
        {"delta": 0.0},
        {"delta": 1.5},
        {"seconds": float("inf")},
        {"probability": np.full(400, 0.5)},
        {"y_true": np.zeros(400)},
        {"score": np.full(400, 349)},
        {"score": np.full(400, 600.0)},
        {"score": np.full(399, 600)},
        {"pooled_probability": np.full(400, 0.5)},
        {"local_probability": np.full(399, 0.5)},
    ],
)
def test_a_report_that_contradicts_itself_is_refused(changes):
    with pytest.raises(BadInput):
        a_report(**changes)


@pytest.mark.parametrize(
    "build",
    [
        lambda: a_person(capped=0),
        lambda: a_person(probability=float("nan")),
        lambda: HolderLine(name="a", rows=-1, epsilon_spent=0.0),
        lambda: HolderLine(name="a", rows=1, epsilon_spent=float("nan")),
        lambda: HolderLine(name="a", rows=1, epsilon_spent=0.0, epsilon_limit=0.0),
        lambda: HolderLine(name="a", rows=1, epsilon_spent=0.0, local_auroc=1.1),
        lambda: Trust(mode="blind", tolerated=None, fallback_epsilon=None),
        lambda: Trust(mode="distributed", tolerated=None, fallback_epsilon=2.0),
        lambda: Trust(mode="distributed", tolerated=0, fallback_epsilon=2.0),
        lambda: Trust(mode="distributed", tolerated=1, fallback_epsilon=float("nan")),
        lambda: Trust(mode="local", tolerated=1, fallback_epsilon=None),
        lambda: LocalSpread(mean=0.8, low=0.6, high=0.7),
        lambda: Metrics(auroc=0.7, ks=0.3, gini=float("nan"), log_loss=0.4, brier=0.1),
    ],
)
def test_lines_that_cannot_be_are_refused(build):
    with pytest.raises(BadInput):
        build()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(scheme):
    colours = colours_of((STYLE, page.STYLE), scheme)
    for background in (colours["page"], colours["box"]):
        for name in ("ink", "quiet", "link"):
            assert contrast(colours[name], background) >= 4.5, name
        for name in ("federated", "pooled", "local", "good", "bad"):
            assert contrast(colours[name], background) >= 3, name
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#999999", "#ffffff") < 3  # what the check is there to notice


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.5, 0.8), (0, 0.1), (350, 950), (0, 0.137), (0.45, 0.5)])
def test_ticks_are_few_round_and_inside(low, high):
    values = charts.ticks(low, high)
    assert 2 <= len(values) <= 6
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)
    assert all(float(f"{value:.2g}") == pytest.approx(value) for value in values)


def test_values_outside_a_plot_are_drawn_at_its_edge():
    span = svg.Span(low=0, high=1, start=10, stop=20)
    assert [span(value) for value in (-1, 0, 0.5, 2)] == [10, 10, 15, 20]
    assert svg.Span(low=1, high=1, start=10, stop=20)(1) == 10


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (digits.short(1e-6), "1e-6"),
        (digits.short(0.9996), "1"),
        (digits.short(0.75), "0.75"),
        (digits.percent(0.0949), "9.5\u00a0%"),
        (digits.percent(0.22), "22\u00a0%"),
        (digits.tenths(0.0001), "< 0.1"),
        (digits.tenths(0.0), "0.0"),
        (digits.signed(-3), "−3"),
        (digits.signed(0), "0"),
        (digits.added(-3), "− 3"),
        (digits.odds_factor(1.0), "2.8"),
        (digits.odds_factor(8.0), "3,000"),
        (digits.odds_factor(1e9), "over a million"),
        (wording.duration(4.25), "4.2 s"),
        (wording.duration(48.3), "48 s"),
        (wording.duration(600), "10 min"),
        (wording.duration(9000), "2.5 h"),
        (wording.moved(0.0004), "changes AUROC by less than 0.001"),
        (wording.moved(-0.012), "loses 0.012 of AUROC"),
        (digits.count(1, "bin"), "1 bin"),
    ],
)
def test_numbers_are_worded_with_sensible_digits(given, shown):
    assert given == shown


def test_a_failed_write_leaves_the_old_report(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    with pytest.raises(OSError, match="No such file"):
        write_report(tmp_path / "absent" / "report.html", a_report())
    assert target.read_text() == "old"
