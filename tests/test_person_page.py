"""The page for the person who is scored says all that is owed, adds up, loads nothing and fits a phone."""

import html as markup
import itertools
import json
import re
import shutil
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
from html_support import HOSTILE, Reader, check_self_contained, colours_of, contrast
from typer.testing import CliRunner

from assay.models import person_page as pages
from assay.models import personal
from assay.models.bundle import read_bundle, write_bundle
from assay.models.cli import model_app
from assay.models.encoding import Grid
from assay.models.explain import explain, explanation_in_words
from assay.models.label import privacy_label
from assay.models.page import STYLE
from assay.models.personal_charts import band_chart, band_ranges
from assay.models.points_chart import points_chart
from assay.models.schema import Scale
from assay.models.scorecard import Scorecard, band_cuts
from assay.models.study import parse_study
from assay.models.whatif import parse_asked
from assay.privacy.errors import BadInput
from assay.privacy.keys import Identity

TEXT = """
[study]
name = "card"
purpose = "consumer_credit"
contexts = ["card_application"]
[outcome]
column = "default"
meaning = "missed a payment"
[[features]]
name = "limit"
column = "LIMIT"
component = "third_party"
kind = "numeric"
domain = [10, 1000]
label = "Credit limit"
description = "How much may be owed."
changeable = true
[[features]]
name = "status"
column = "PAY"
component = "payment_history"
kind = "integer"
domain = [-2, 8]
label = "Months late"
description = "0 means paid on time."
changeable = true
[[features]]
name = "kind"
column = "KIND"
component = "identity"
kind = "categorical"
levels = ["a", "b"]
label = "Kind of work"
changeable = true
[[features]]
name = "bill"
column = "BILL"
component = "payment_history"
kind = "numeric"
domain = [0, 500]
label = "Bill"
[privacy]
epsilon = 1
[scale]
cut_off = 560
"""
CONTACT = """
[contact]
ask = "Desk 4, telephone 555 0100."
contest = "Write to desk 4; a human being answers."
"""
STUDY = parse_study(TEXT + CONTACT)
RECORD = {"LIMIT": 300.0, "PAY": 3, "KIND": "b", "BILL": 20.0}
NOW = 1_800_000_000.0


def card_of(study=STUDY, *, near=True, seed=3):
    grid = Grid.of(study)
    rng = np.random.default_rng(seed)
    theta = np.append(rng.normal(size=grid.size) * 0.4, rng.normal(-2.2, 0.1, grid.patterns))
    card = Scorecard.of(study, grid, theta, rng.uniform(1, 100, grid.width))
    means = rng.normal(0, 20, len(grid.features)) if near else None
    return replace(card, near=means), theta


def bundle_of(tmp_path, study=STUDY, *, now=NOW, **changes):
    card, theta = card_of(study, **changes)
    path = tmp_path / "card.bundle"
    write_bundle(
        path,
        study=study,
        theta=theta,
        scorecard=card,
        label=privacy_label(study, rounds=30, holders=3),
        identity=Identity.generate(),
        created=now,
        expires=now + 86400 * 100,
    )
    return read_bundle(path)


def page_of(tmp_path, record=None, *, asked=(), study=STUDY, **changes):
    bundle = bundle_of(tmp_path, study, **changes)
    explained = explain(bundle.scorecard, RECORD if record is None else record, parse_asked(asked))
    return pages.person_page(bundle, explained, now=NOW), explained, bundle


def words_of(html):
    return " ".join(" ".join(Reader.of(html).words).split())


def rows_of(html, caption):
    """Cells of the table with this caption, as plain text; small print left out."""
    table = next(t for t in re.findall(r"<table>.*?</table>", html, re.DOTALL) if caption in t)
    table = re.sub(r"<small>.*?</small>", "", table)
    rows = re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1])
    return [[markup.unescape(c) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def number(text):
    return int(text.replace("−", "-").replace("+", ""))


@pytest.mark.parametrize(
    "record", [RECORD, {"PAY": None}, {"LIMIT": 1e9, "KIND": "zzz"}, {"PAY": 0, "BILL": None, "KIND": None}]
)
@pytest.mark.parametrize("near", [True, False])
def test_page_is_well_formed_self_contained_and_announced(tmp_path, record, near):
    html, _, _ = page_of(tmp_path, record, near=near)
    reader = check_self_contained(html)
    assert '<html lang="en">' in html
    assert reader.tags.count("svg") == reader.tags.count("desc") >= 2
    assert reader.tags.count("table") == reader.tags.count("caption") >= 1
    assert reader.tags.count("h1") == 1
    assert reader.tags.count("h2") == reader.tags.count("section") >= 7
    assert not {"nan", "inf", "None"} & set(words_of(html).split())


@pytest.mark.parametrize(
    "record", [RECORD, {"PAY": 8, "BILL": 500.0}, {"LIMIT": 10.0}, {"KIND": "a", "LIMIT": 999.0, "PAY": -2}]
)
@pytest.mark.parametrize("shift", [0, 250, -250])
def test_points_on_the_page_add_up_to_the_score(tmp_path, record, shift):
    study = parse_study(
        TEXT.replace("[scale]", f"[scale]\nlow = 350\nanchor_score = {650 + shift}\nhigh = 951")
    )
    html, explained, _ = page_of(tmp_path, record, study=study)
    rows = rows_of(html, "they add up to your score")
    *terms, total = [number(row[-1]) for row in rows]
    assert sum(terms) == total == explained["score"]
    assert [row[0] for row in rows] == [
        "Starting points", *(f.label for f in STUDY.features), "Adjusted to the scale", "Your score",
    ]  # fmt: skip
    # The chart says the same numbers, and so does what is read out in its place.
    desc = re.search(r'<desc id="bars-desc">(.*?)</desc>', html)[1]
    *terms, total = [number(part.rsplit(": ", 1)[1]) for part in desc.split("; ")]
    assert sum(terms) == total == explained["score"]


def test_bars_that_do_not_fit_are_drawn_as_one_so_that_the_sum_is_kept():
    rows = [(f"Feature {i}", "1", points) for i, points in enumerate([5, -40, 3, 0, 7, -2])]
    chart = points_chart("k", title="Points", rows=rows, shown=2, longest=40, before=("Start", 600))
    desc = re.search(r'<desc id="k-desc">(.*?)</desc>', chart)[1]
    assert desc == "Start: 600; Feature 1: 1: −40; Feature 4: 1: +7; 4 more features: +6"
    assert chart.count("<rect") == 3


def test_every_text_of_a_study_is_escaped(tmp_path):
    study = replace(
        STUDY,
        outcome=replace(STUDY.outcome, meaning='<script>alert("m")</script>'),
        contexts=("<script>c</script>",),
        features=tuple(
            replace(f, label=f"<script>{i}</script>", description="<script>d</script>'\"&")
            for i, f in enumerate(STUDY.features)
        ),
        contact=replace(STUDY.contact, ask="<script>a</script>", contest="<script>o</script>"),
    )
    card, _ = card_of(study)
    bundle = replace(bundle_of(tmp_path), study=study, scorecard=card, digest=HOSTILE)
    explained = explain(card, RECORD | {"KIND": HOSTILE}, {"status": "0"})
    html = pages.person_page(bundle, explained, now=NOW)
    check_self_contained(html)
    assert "<script" not in html
    assert "\x00" not in html
    assert "\u202e" not in html
    words = words_of(html)
    for said in ("m", "c", "d", "a", "o", "0", "1", "2", "3"):
        assert f"<script>{said}</script>" in words.replace('alert("m")', "m"), said


def test_page_says_what_is_owed(tmp_path):
    html, explained, bundle = page_of(tmp_path)
    words = words_of(html)
    number_of, of = personal.frequency(explained["probability"])
    for said in (
        f"Your score: {explained['score']}",
        explained["band"],
        f"Of {of:,} people with the same points, about {number_of:,} have this outcome: “missed a payment”",
        "Does a person like this keep a promise to pay?",
        "consumer credit (whether to lend to a consumer, and how much)",
        "only here: card application. Any other use is refused.",
        "It is valid until 25 April 2027.",
        "How much may be owed.",
        "0 means paid on time.",
        "Desk 4, telephone 555 0100.",
        "Write to desk 4; a human being answers.",
        "GDPR, Article 15", "GDPR, Article 16", "GDPR, Article 22(3)",
        "Consumer Credit Directive (EU) 2023/2225, Article 18(8)",
        "factor of at most 2.8 (epsilon 1)",
        "1 in 1,000,000",
        "Nothing of this is stored",
        "It is no promise",
        bundle.fingerprint,
        bundle.digest,
    ):  # fmt: skip
        assert said in words, said
    assert not re.search(r"auroc|gini|federated|logit|differential", words, re.IGNORECASE)


@pytest.mark.parametrize(
    ("purpose", "question", "lender"),
    [
        ("fraud_detection", "Is this application or payment genuine?", False),
        ("consumer_credit", "Does a person like this keep a promise to pay?", True),
        ("merchant_protection", "keep the rules of the platform?", False),
        ("attestation", "Is a threshold met, yes or no?", False),
        ("rental_screening", "Does a person like this keep a promise to pay?", False),
    ],
)
def test_the_question_follows_the_purpose(tmp_path, purpose, question, lender):
    html, _, _ = page_of(tmp_path, study=parse_study(TEXT.replace("consumer_credit", purpose)))
    assert question in words_of(html)
    assert ("2023/2225" in html) == lender


def test_a_study_without_contact_says_who_must_be_named(tmp_path):
    html, _, _ = page_of(tmp_path, study=parse_study(TEXT))
    words = words_of(html)
    assert "The institution that gave you this page must name a person" in words
    assert "ask that a human being looks at your case" in words


def test_components_that_are_not_known_are_named_and_count_nothing(tmp_path):
    html, explained, _ = page_of(tmp_path, {"PAY": 2})
    words = words_of(html)
    assert "It counts neither for you nor against you: who you are" in words
    assert "what others report about you" in words
    assert "how you paid in the past" not in words
    rows = {row[0]: row[1:] for row in rows_of(html, "they add up to your score")}
    assert rows["Credit limit"] == rows["Kind of work"] == ["not\u00a0known", "0"]
    assert rows["Bill"][0] == "missing"
    assert "Single values are missing." in words
    named = {reason["feature"] for reason in explained["reasons"] + explained["reasons_near_cut_off"]}
    assert named == {"status", "bill"}
    assert "What is not known" not in words_of(page_of(tmp_path)[0])


def test_reasons_of_both_methods_are_those_that_cost_points(tmp_path):
    html, explained, _ = page_of(tmp_path)
    words = words_of(html)
    assert "Compared with the average of all people" in words
    assert "Compared with people who just pass" in words
    assert "score of 560 or slightly more" in words
    for kind in ("reasons", "reasons_near_cut_off"):
        assert any(reason["points_lost"] > 0 for reason in explained[kind])
        for reason in explained[kind]:
            assert (reason["words"] in words) == (reason["points_lost"] > 0)
            assert (reason["words"] in explanation_in_words(explained)) == (reason["points_lost"] > 0)
    without, _, _ = page_of(tmp_path, near=False)
    assert "just pass" not in words_of(without)


def test_somebody_above_the_baseline_in_all_is_told_so(tmp_path):
    bundle = bundle_of(tmp_path)
    low = np.full(len(STUDY.features), -900.0)
    explained = explain(replace(bundle.scorecard, near=low, means=low), RECORD)
    words = words_of(pages.person_page(bundle, explained, now=NOW))
    assert words.count("Nothing lowers your score") == 2
    assert "fewer than" not in words
    assert explanation_in_words(explained).count("None: nothing that was scored has fewer points") == 2


def test_what_a_person_asks_is_the_score_of_the_changed_record(tmp_path):
    html, explained, bundle = page_of(tmp_path, asked=["status=0", "limit= 5000 "])
    asked = explained["what_if_asked"]
    after = explain(bundle.scorecard, RECORD | {"PAY": 0, "LIMIT": 1000.0})
    assert (asked["score"], asked["band"]) == (after["score"], after["band"])
    assert asked["probability"] == after["probability"]
    points = [sum(f["points"] for f in each["features"]) for each in (explained, after)]
    assert asked["points_gained"] == points[1] - points[0]
    assert [(c["feature"], c["from"], c["to"]) for c in asked["changes"]] == [
        ("status", "3", "0"),
        ("limit", "300", "5,000 (counted as 1,000)"),
    ]
    words = words_of(html)
    assert "Credit limit: 5,000 (counted as 1,000) instead of 300" in words
    assert f"The score would be {asked['score']}" in words
    assert asked["words"] in explanation_in_words(explained)
    assert "Nothing of this is stored" in explanation_in_words(explained)


def test_the_effect_of_each_value_is_the_score_of_that_value(tmp_path):
    html, explained, bundle = page_of(tmp_path)
    listed = {effect["feature"]: effect["values"] for effect in explained["what_if_values"]}
    assert list(listed) == ["limit", "status", "kind"]
    assert [row["value"] for row in listed["kind"]] == ["a", "b"]
    for value, row in zip(range(-2, 9), listed["status"], strict=True):
        assert row["score"] == explain(bundle.scorecard, RECORD | {"PAY": value})["score"]
    rows = rows_of(html, "Months late: points and score")
    assert [number(row[2]) for row in rows] == [row["score"] for row in listed["status"]]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"bill": "3"}, "what-if is 'bill'; allowed: limit, status, kind. It is not changeable"),
        ({"x": "3"}, "what-if is 'x'; allowed: limit, status, kind. It is no feature of the study"),
        ({"status": "1.5"}, "what-if status is '1.5'; allowed: a whole number"),
        ({"limit": "nan"}, "what-if limit is 'nan'; allowed: a number"),
        ({"limit": "inf"}, "allowed: a number"),
        ({"limit": "1,000"}, "allowed: a number"),
        ({"kind": "c"}, "what-if kind is 'c'; allowed: one of a, b"),
    ],
)
def test_a_question_that_may_not_be_asked_is_refused(asked, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        explain(card_of()[0], RECORD, asked)


def test_what_is_not_known_cannot_be_varied():
    with pytest.raises(BadInput, match=r"'limit'; allowed: status\. Nothing of its component is known here"):
        explain(card_of()[0], {"PAY": 2}, {"limit": "20"})


@pytest.mark.parametrize("asked", [["status"], ["=3"], ["status="], ["status=1", "status=2"]])
def test_a_question_is_a_name_and_a_value_once(asked):
    with pytest.raises(BadInput, match="what-if"):
        parse_asked(asked)


@pytest.fixture
def files(tmp_path):
    bundle_of(tmp_path, now=time.time())
    (tmp_path / "in.csv").write_text("LIMIT,PAY,KIND,BILL\n300,3,b,20\n20,0,a,5\n")
    return tmp_path


def run(files, *arguments):
    given = ["explain", str(files / "card.bundle"), "--input", str(files / "in.csv"), *map(str, arguments)]
    return CliRunner().invoke(model_app, given)


def test_the_command_writes_the_page_for_its_reader_only(files):
    target = files / "page.html"
    result = run(files, "--row", 2, "--html", target, "--what-if", "status=8", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    html = target.read_text(encoding="utf-8")
    assert told["html"] == str(target)
    assert f"Your score: {told['score']}" in words_of(html)
    assert "Months late: 8 instead of 0" in words_of(html)
    assert target.stat().st_mode & 0o777 == 0o600
    said = run(files, "--html", target)
    assert "holds personal data" in said.stdout
    assert str(told["score"]) not in said.stdout
    assert sorted(path.name for path in files.iterdir()) == ["card.bundle", "in.csv", "page.html"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--what-if", "bill=3"), 2, "allowed: limit, status, kind"),
        (("--what-if", "status=x"), 2, "a whole number"),
        (("--what-if", "status"), 2, "NAME=VALUE"),
        (("--purpose", "fraud_detection"), 3, "D08"),
        (("--purpose", "rental_screening"), 3, "D03"),
        (("--html", "page.txt"), 2, "ends in .html"),
        (("--html", "/nowhere/page.html"), 2, "existing directory"),
    ],
)
def test_the_command_refuses(files, arguments, code, said):
    result = run(files, *arguments)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert result.stdout == ""
    assert sorted(path.name for path in files.iterdir()) == ["card.bundle", "in.csv"]


def test_the_command_explains_for_the_right_purpose_and_what_was_asked(files):
    said = run(files, "--purpose", "consumer_credit", "--what-if", "status=0", "--what-if", "kind=a")
    assert "What you asked:\n  Months late at 0, Kind of work at a: " in said.stdout
    assert "Whom to ask: Desk 4, telephone 555 0100." in said.stdout
    assert "Main reasons, compared with those who just pass (at 560 or a little more):" in said.stdout


def test_a_question_is_asked_of_no_expired_bundle(tmp_path):
    bundle_of(tmp_path, now=1000.0)
    (tmp_path / "in.csv").write_text("PAY\n3\n")
    result = run(tmp_path, "--html", tmp_path / "page.html")
    assert result.exit_code == 3
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("probability", "told"),
    [
        (0.073, (7, 100)), (0.5, (50, 100)), (0.0142, (14, 1000)), (0.0003, (3, 10_000)), (1e-9, (0, 10_000)),
        (0.9979, (998, 1000)), (1.0, (10_000, 10_000)),
    ],
)  # fmt: skip
def test_chances_are_told_as_people_of_people(probability, told):
    assert personal.frequency(probability) == told
    words = personal.chance(probability, "missed a payment")
    assert ("fewer than 1" in words, "nearly all" in words) == (told[0] == 0, told[0] == told[1])


@pytest.mark.parametrize(
    "scale", [Scale(), Scale(low=600, high=680), Scale(low=640, high=2000), Scale(low=0, high=651)]
)
def test_bands_on_the_page_are_those_of_the_score(scale):
    ranges = band_ranges(scale)
    assert ranges[0][1] == scale.low
    assert ranges[-1][2] == scale.high
    assert all(one[2] + 1 == other[1] for one, other in itertools.pairwise(ranges))
    inner = [cut for cut in band_cuts(scale)[::-1] if scale.low < cut <= scale.high]
    assert [low for _, low, _ in ranges[1:]] == inner
    places = []
    for words, low, high in ranges:
        for score in {low, (low + high) // 2, high}:
            chart = band_chart(score, words, scale)
            assert f"Your score: {score}, {words}" in chart
            places.append((score, float(re.search(r'd="M([\d.]+) [\d.]+ L[^"]*" class="needle"', chart)[1])))
    width = (340 - 2 * 16) / len(ranges)
    for place, (_, low, high) in enumerate(ranges[:-1], start=1):
        # The last score of a band lies one score before the next band.
        assert dict(places)[high] == pytest.approx(16 + width * (place - 1 / (high + 1 - low)), abs=0.051)
    places.sort()
    assert [x for _, x in places] == sorted(x for _, x in places)
    assert places[0][1] == pytest.approx(16)
    assert places[-1][1] == pytest.approx(340 - 16)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(scheme):
    colours = colours_of((STYLE,), scheme)
    for background in (colours["page"], colours["box"]):
        assert all(contrast(colours[name], background) >= 4.5 for name in ("ink", "quiet", "link"))
        assert all(contrast(colours[name], background) >= 3 for name in ("good", "bad"))
    # The page's own sheet brings no colour but a shade behind no text.
    own = pages.STYLE.read_text()
    assert not re.search(r"#[0-9a-f]{3,6}", own)
    assert own.count("--shade:") == 2


MEASURE = """<!DOCTYPE html><body style="margin:0"><iframe id="f"
style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe><script>
onload = () => {{
  const page = document.getElementById("f").contentDocument, out = [];
  for (const each of page.querySelectorAll("body *")) {{
    const box = each.getBoundingClientRect();
    if (box.width && (box.right > {width} + 0.5 || box.left < -0.5)) out.push(each.tagName);
  }}
  for (const each of page.querySelectorAll(".scroll"))
    if (each.scrollWidth > each.clientWidth) out.push("scroll");
  document.title = page.documentElement.scrollWidth + " " + page.querySelectorAll("td").length + " " + out;
}};
</script>"""


def measured(browser, html, folder, width):
    """Width the page wants in a frame of ``width`` pixels, its table cells, and what sticks out."""
    wrapper = folder / "wrapper.html"
    wrapper.write_text(MEASURE.format(width=width, page=markup.escape(html)), encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", wrapper.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    wants, cells, outside = re.search(r"<title>(\d+) (\d+) (.*?)</title>", done.stdout).groups()
    return int(wants), int(cells), outside


@pytest.mark.slow
def test_nothing_sticks_out_on_a_phone(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine: install chromium to have the page laid out")
    long = "Supercalifragilisticexpialidocious" * 3
    study = parse_study((TEXT + CONTACT).replace('label = "Bill"', f'label = "{long}"'))
    html, _, _ = page_of(tmp_path, {**RECORD, "LIMIT": 123456789.123}, asked=["status=0"], study=study)
    opened = html.replace("<details>", "<details open>")
    for width in (360, 390, 1200):
        wants, cells, outside = measured(browser, opened, tmp_path, width)
        assert (wants, outside) == (width, ""), width
        assert cells > 20
    # The measure notices what is too wide.
    wide = opened.replace("</main>", '<p style="width:50rem">wide</p></main>')
    assert measured(browser, wide, tmp_path, 390)[0] > 390
