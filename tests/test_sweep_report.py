"""A sweep's report says what its cells say, and no more: in one safe page, in CSV and in pictures."""

from __future__ import annotations

import copy
import csv
import math
import re
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from html_support import HOSTILE, Reader, check_self_contained, colours_of, contrast

from assay.models.page import STYLE
from assay.models.svg import WIDTH, label, svg
from assay.privacy.errors import BadInput
from assay.simulations import page, picture
from assay.simulations.picture import png
from assay.simulations.sweep_cells import Results, band
from assay.simulations.sweep_marks import floored
from assay.simulations.sweep_report import write_sweep_report
from assay.simulations.sweep_words import answers, verdict

CANARIES = {
    "claimed_epsilon": 1.0,
    "claimed_mu": 0.27,
    "lower_bound": 0.2999,
    "confidence": 0.95,
    "canaries": 1000,
    "guessed": 125,
    "right": 80,
    "estimate": 0.8,
    "estimate_low": 0.6,
    "estimate_high": 1.1,
}
FAULTS = {
    "options": ["drop-mask=0.05", "flip=2", "coordinator=two-lists"],
    "injected": {
        "drop-mask": {"times": 7, "holders": {"h1": 4, "h2": 3}},
        "flip": {"times": 300, "holders": {"h3": 150, "h4": 150}},
        "scale": {"times": 30, "holders": {"h1": 30}},
    },
    "caught": {
        "not_accepted": ["h2"],
        "dropped": [{"holder": "h1", "round": 3, "reason": "no answer of h1"}],
        "ledger": [],
        "refused": [{"question": "gradient", "code": "signature", "times": 4, "holders": ["h2"]}],
        "cut": {"times": 11, "holders": {"h1": 11}},
    },
    "lie": {
        "told": True,
        "learned": None,
        "answers": [{"round": 1, "question": "opened", "answer": "no", "holders": ["h1", "h2"]}],
    },
    "not_caught": [{"kind": "flip", "holders": ["h3"], "what": "their labels are wrong"}],
    "effect": {"auroc": 0.7, "clean_auroc": 0.72, "auroc_change": -0.02},
}


def a_group(column: str, group: str, shift: float = 0.0) -> dict[str, Any]:
    return {
        "column": column,
        "group": group,
        "persons": 1234,
        "auroc": 0.71 + shift,
        "approval_rate": 0.61 + shift,
        "observed": 0.09 + shift,
        "predicted": 0.11,
        "non_private": {"auroc": 0.72, "approval_rate": 0.65},
    }


def a_cell(holders: int = 4, epsilon: float = 1.0, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A cell whose numbers have digits that no rounding hides."""
    lift = 0.01 * math.log(epsilon) + 0.0013579 * seed
    cell = {
        "study": "card-default",
        "outcome": "missed the next payment",
        "holders": holders,
        "epsilon": epsilon,
        "seed": seed,
        "delta": 1e-6,
        "trust": "distributed",
        "engine": "fast",
        "partition": "quantity",
        "rounds": 40,
        "rows": 8000,
        "test_rows": 2000,
        "seconds": 1.25 * holders + 0.125 * seed,
        "spent_epsilon": epsilon,
        "auroc": 0.7512345678901 + lift,
        "ks": 0.3812345,
        "gini": 0.5023456,
        "log_loss": 0.4534567,
        "brier": 0.1445678,
        "ece": 0.0156789,
        "baselines": {
            "local_only_auroc": 0.7012345 - 0.01 * math.log(holders) + lift / 2,
            "pooled_auroc": 0.7598765 + lift,
            "non_private_auroc": 0.7801234,
            "bayes_auroc": 0.8123456,
        },
        "local": [
            {"name": f"h{i}", "rows": 4000 // i, "auroc": 0.71 - 0.007 * i}
            for i in range(1, min(holders, 30) + 1)
        ],
        "groups": [a_group("sex", "f"), a_group("sex", "m", 0.02)],
        "calibration": [
            {"predicted": 0.05, "observed": 0.06, "low": 0.04, "high": 0.09, "rows": 1000},
            {"predicted": 0.31, "observed": 0.22, "low": 0.19, "high": 0.25, "rows": 1000},
        ],
        "label": "Promise: epsilon 1.\nNot covered:\n  - Timing.",
        "label_epsilon": epsilon,
        "canaries": {**CANARIES, "claimed_epsilon": epsilon, "lower_bound": 0.2999 * epsilon},
        "faults": None,
        "bundle": "cells/a.bundle",
        "report": "cells/a.html",
    }
    return {**cell, **changes}


def a_sweep() -> list[dict[str, Any]]:
    return [a_cell(h, e, s) for h in (4, 40, 400) for e in (0.5, 1.0, 4.0) for s in (0, 1, 2)]


def bare(**changes: Any) -> dict[str, Any]:
    """A cell with nothing but a model."""
    nothing = dict.fromkeys(a_cell()["baselines"])
    empty: dict[str, Any] = {
        "baselines": nothing,
        "local": [],
        "groups": [],
        "calibration": [],
        "canaries": None,
    }
    return a_cell(**{**empty, **changes})


def flat() -> list[dict[str, Any]]:
    """Every curve at the same height, ten thousand holders, eight epsilons, one seed missing."""
    same = {"local_only_auroc": 0.5, "pooled_auroc": 0.5, "non_private_auroc": 0.5, "bayes_auroc": 0.5}
    local = [{"name": f"h{i}", "rows": 2, "auroc": 0.5 if i < 30 else None} for i in range(10_000)]
    return [
        a_cell(10_000, 2.0**power, seed, auroc=0.5, baselines=same, local=local, groups=[])
        for power in range(-3, 5)
        for seed in range(1 + (power > 0))
    ]


def long_names() -> list[dict[str, Any]]:
    text = "a name that goes on and on and does not end " * 3
    groups = [a_group(text, f"{text}{i}") for i in range(3)]
    return [
        a_cell(h, 1.0, study=text, outcome=text, groups=groups, faults=FAULTS)
        for h in (3, 1000, 5000, 10_000)
    ]


SWEEPS = {
    "whole": a_sweep,
    "one": lambda: [a_cell()],
    "bare": lambda: [bare()],
    "flat": flat,
    "long": long_names,
    "faults": lambda: [a_cell(4, 1.0, s, faults=FAULTS) for s in (0, 1)],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each sweep's report, written once; only the whole one's pictures in full size, which takes longest."""
    folders = {}
    for name, build in SWEEPS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            if name != "whole":
                small_pictures(patch)
            write_sweep_report(folders[name], build(), f"Sweep {name}")
    return folders


def small_pictures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(picture, "_ZOOM", 1.0)
    patch.setattr(picture, "_ZOOM_OF_SEVERAL", 1.0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_pictures(monkeypatch)


def html_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def tables(html: str) -> dict[str, list[list[str]]]:
    """Rows of each table by its caption: the main text of each cell."""
    found = {}
    for part in re.findall(r"<table>(.*?)</table>", html, re.DOTALL):
        caption = re.search(r"<caption>(.*?)</caption>", part)
        rows = [
            [re.sub(r"<small>.*", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr>(.*?)</tr>", part)
        ]
        found[caption[1]] = rows[1:]
    return found


@pytest.mark.parametrize("name", SWEEPS)
def test_page_is_well_formed_loads_nothing_and_announces_its_charts(name, written):
    html = html_of(written[name])
    reader = check_self_contained(html)
    assert reader.tags.count("svg") == reader.tags.count("desc") == reader.tags.count("title") - 1
    words = re.findall(r"[A-Za-z]+", " ".join(reader.words))
    assert not {"nan", "NaN", "inf", "None", "null"} & set(words)


def test_hostile_texts_are_escaped_everywhere(tmp_path, small):
    groups = [a_group(HOSTILE, HOSTILE), a_group(HOSTILE, "other")]
    local = [{"name": HOSTILE, "rows": 10, "auroc": 0.6}]
    words = dict.fromkeys(("study", "outcome", "trust", "engine", "partition"), HOSTILE)
    faults = copy.deepcopy(FAULTS)
    faults["options"] = [HOSTILE]
    faults["not_caught"][0]["what"] = HOSTILE
    faults["caught"]["dropped"][0]["reason"] = HOSTILE
    cell = a_cell(**words, groups=groups, local=local, faults=faults, label=f"{HOSTILE}\n- {HOSTILE}")
    write_sweep_report(tmp_path, [cell], HOSTILE)
    reader = Reader.of(html_of(tmp_path))
    assert "script" not in reader.tags
    assert not re.search("<script|\x00|\u202e", html_of(tmp_path))
    assert "".join(reader.words).count('<script>alert("1")</script>\ufffd\ufffd\'&') >= 14


def test_every_run_in_the_table_has_the_numbers_of_its_cell(written):
    cells, rows = a_sweep(), tables(html_of(written["whole"]))["Every run, exact numbers in results.csv"]
    assert len(rows) == len(cells) == 27
    for cell, row in zip(cells, rows, strict=True):
        assert row[0] == f"{cell['holders']}, {cell['epsilon']:g}, {cell['seed']}"
        base = cell["baselines"]
        values = [cell["auroc"], base["local_only_auroc"], base["pooled_auroc"]]
        values += [cell[key] for key in ("ks", "gini", "log_loss", "brier", "ece", "spent_epsilon")]
        assert [float(shown) for shown in row[1:]] == pytest.approx(values, abs=5.01e-5)


def test_table_of_settings_has_means_over_seeds_and_the_gain_is_their_difference(written):
    found = tables(html_of(written["whole"]))
    means = {row[0]: row for row in found["AUROC, mean and 95 % interval over seeds"]}
    gains = {row[0]: row for row in found["Gain in AUROC"]}
    for at, holders in enumerate((4, 40, 400)):
        for column, epsilon in enumerate((0.5, 1.0, 4.0), start=1):
            cells = [a_cell(holders, epsilon, seed) for seed in range(3)]
            row = means[f"{holders}, {epsilon:g}"]
            expected = sum(cell["auroc"] for cell in cells) / 3
            assert float(row[1]) == pytest.approx(expected, abs=5.01e-5)
            assert row[6] == "3"
            gain = sum(cell["auroc"] - cell["baselines"]["local_only_auroc"] for cell in cells) / 3
            assert float(gains[str(holders)][column].split()[0]) == pytest.approx(gain, abs=5.01e-4), at


def test_group_and_calibration_tables_have_the_numbers_of_the_cells(written):
    found = tables(html_of(written["one"]))
    rows = found["By sex, means over seeds; small: the same model without privacy"]
    assert rows == [
        ["f", "1,234", "0.710", "61.0", "11.0", "9.0"],
        ["m", "1,234", "0.730", "63.0", "11.0", "11.0"],
    ]
    rows = found["Bad rate, predicted and observed"]
    assert rows == [["5.0", "6.0", "4.0–9.0", "1,000"], ["31.0", "22.0", "19.0–25.0", "1,000"]]
    assert "passes through 1 of 2 intervals" in html_of(written["one"])


def test_csv_files_give_back_the_very_numbers(written):
    with (written["whole"] / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 27
    for cell, row in zip(a_sweep(), rows, strict=True):
        for path, shown in row.items():
            value: Any = cell
            for key in path.split(".") if path != "gain" else ():
                value = value[key]
            if path == "gain":
                value = cell["auroc"] - cell["baselines"]["local_only_auroc"]
            assert (shown if isinstance(value, str) else type(value)(shown)) == value, path
    assert {"auroc", "seconds", "baselines.bayes_auroc", "canaries.lower_bound"} <= set(rows[0])
    with (written["whole"] / "holders.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 9 * (4 + 30 + 30)
    with (written["whole"] / "groups.csv").open(newline="", encoding="utf-8") as file:
        groups = list(csv.DictReader(file))
    assert len(groups) == 27 * 2
    assert float(groups[1]["non_private.approval_rate"]) == 0.65


def test_what_a_cell_does_not_have_is_empty_in_the_csv_and_has_no_section(written):
    with (written["bare"] / "results.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["gain"] == row["baselines.pooled_auroc"] == row["canaries.lower_bound"] == ""
    keys = {name: re.findall(r'<section id="(\w+)"', html_of(folder)) for name, folder in written.items()}
    assert keys["bare"] == ["epsilon", "privacy", "time", "reading"]
    assert keys["one"] == ["gain", "epsilon", "sizes", "groups", "calibrated", "privacy", "time", "reading"]
    everything = ["gain", "epsilon", "sizes", "holders", "groups", "calibrated", "privacy", "time", "reading"]
    assert keys["whole"] == everything
    assert "faults" in keys["faults"]
    pictures = sorted(path.name for path in written["bare"].glob("*.png"))
    assert pictures == ["auroc-by-epsilon.png"]
    assert "Proved ε" not in html_of(written["bare"])


def test_band_is_students_t_interval_by_hand():
    # s = 0.02, n = 3, t(2, 0.975) = 4.302653 (any table): half width 4.302653 * 0.02 / sqrt(3)
    found = band([0.70, None, 0.74, 0.72])
    assert (found.mean, found.seeds) == (pytest.approx(0.72), 3)
    assert found.low == pytest.approx(0.72 - 0.0496827, abs=1e-7)
    assert found.high == pytest.approx(0.72 + 0.0496827, abs=1e-7)
    two = band([0.0, 2.0])  # t(1, 0.975) = 12.706205, s / sqrt(2) = 1
    assert (two.low, two.high) == (
        pytest.approx(1 - 12.706205, abs=1e-6),
        pytest.approx(1 + 12.706205, abs=1e-6),
    )
    alone = band([0.7])
    assert (alone.low, alone.high, alone.sign, alone.ends) == (None, None, None, (0.7, 0.7))
    assert band([None]) is None


def test_gains_are_paired_within_a_seed():
    # Both models differ much from seed to seed, their difference hardly: unpaired, nothing would be sure.
    cells = []
    for seed, level in enumerate((0.6, 0.7, 0.8)):
        cell = a_cell(seed=seed, auroc=level + 0.02 + 0.0001 * seed)
        cell["baselines"]["local_only_auroc"] = level
        cells.append(cell)
    gain = Results.of(cells).gain(4, 1.0)
    assert gain.sign == 1
    assert gain.high - gain.low < 0.001


def settings(*gains: tuple[float, ...]) -> Results:
    """A sweep over epsilons 1, 2, ... with a gain for each seed."""
    cells = []
    for epsilon, each in enumerate(gains, start=1):
        for seed, gain in enumerate(each):
            cell = a_cell(4, float(epsilon), seed, auroc=0.7 + gain)
            cell["baselines"]["local_only_auroc"] = 0.7
            cells.append(cell)
    return Results.of(cells)


UP, DOWN, NEITHER = (0.03, 0.031, 0.032), (-0.03, -0.031, -0.032), (0.03, -0.03, 0.01)


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ((UP, UP), "Yes: joining gains, clearly so in all 2 combinations"),
        ((UP,), "Yes: joining gains, clearly so in 1 combination"),
        ((UP, UP, UP, NEITHER), "Mostly: joining gains clearly in 3 of 4"),
        ((UP, NEITHER), "It depends: joining gains clearly in 1 of 2"),
        (
            (UP, UP, UP, DOWN),
            "It depends: joining gains clearly in 3 of 4 combinations of holders and ε; in 1 it clearly",
        ),
        ((NEITHER, NEITHER), "No gain: joining makes no clear difference in any of 2"),
        (
            (DOWN, NEITHER),
            "No gain: joining gains clearly in none of 2 combinations of holders and ε; in 1 it clearly",
        ),
        (((0.03,), (0.02,)), "A gain was seen in 2 of 2 combinations of holders and ε, but with one seed"),
        (((0.0,),), "No gain was seen, but with one seed"),
    ],
)
def test_headline_claims_no_more_than_the_intervals_show(gains, said):
    assert verdict(settings(*gains)).startswith(said)


def test_headline_without_own_models_says_that_nothing_was_measured():
    sweep = Results.of([bare()])
    assert verdict(sweep).startswith("Not measured")
    assert answers(sweep) == ["4 holders, ε\u00a01: AUROC 0.751; no holder's own model to compare with."]


def test_answers_state_the_gain_with_its_interval_at_the_smallest_epsilon_that_is_enough():
    (said,) = answers(settings(UP, (0.05, 0.051, 0.052), (0.055, 0.056, 0.057)))
    assert said == (
        "4 holders, ε\u00a02: AUROC 0.751 together instead of 0.700 for a holder alone on average, "
        "a gain of 0.051 (95\u00a0% interval +0.049 to +0.053)."
    )
    assert "a loss of 0.031 (95\u00a0% interval −0.033 to −0.029)" in answers(settings(DOWN))[0]
    assert (
        "no clear difference: +0.003 (95\u00a0% interval −0.073 to +0.079)" in answers(settings(NEITHER))[0]
    )


def test_one_run_is_shown_without_an_interval_and_says_so(written):
    words = " ".join(Reader.of(html_of(written["one"])).words)
    assert "One seed: no interval can be shown." in words
    assert "one seed, no interval" in words
    assert "Bands" not in words
    assert "Bands and bars: 95\u00a0% interval of the mean over 3 seeds." in " ".join(
        Reader.of(html_of(written["whole"])).words
    )


def test_order_of_the_cells_changes_nothing(tmp_path, small):
    cells = [bare(epsilon=e, seed=s) for e in (1.0, 4.0) for s in (0, 1)]
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, given in ((one, cells), (other, cells[::-1])):
        folder.mkdir()
        write_sweep_report(folder, given, "Sweep")
    assert html_of(one) == html_of(other)
    assert (one / "results.csv").read_bytes() == (other / "results.csv").read_bytes()


def test_canaries_are_a_defect_only_where_chance_would_not_do_it(tmp_path, written, small):
    html = html_of(written["one"])
    assert "No run proves more than was claimed; at most 30\u00a0% of it is proved" in html
    rows = tables(html)["The middle one of the seeds, at 95\u00a0% confidence or more"]
    assert rows[0][1:3] == ["1", "0.299"]
    assert floored(0.29999) == "0.299"
    for bounds, said in (
        ((0.1, *[0.2] * 18, 1.01), "In 1 of 20 runs the canaries prove more than was claimed, no more often"),
        ((0.1, 0.2, 1.01), "In 1 of 3 runs the canaries prove more than was claimed; chance does that in up"),
        ((1.01, 1.02, 1.03), "In 3 of 3 runs the canaries prove more than was claimed. Chance does that in"),
    ):
        cells = [bare(seed=s, canaries={**CANARIES, "lower_bound": bound}) for s, bound in enumerate(bounds)]
        write_sweep_report(tmp_path, cells, "Sweep")
        assert said in html_of(tmp_path)
        assert ("look for a defect" in html_of(tmp_path)) == (bounds[0] > 1)
        assert f">{bounds[1]:.3f}<" in html_of(tmp_path)  # the bound in the middle


def test_faults_are_counted_as_injected_caught_and_not_caught(written):
    html = html_of(written["faults"])
    found = tables(html)
    assert ["Labels turned round", "600", "4"] in found["Injected"]
    assert ["Answers lost: mask", "14", "4"] in found["Injected"]
    assert ["Refused by holders: gradient, signature", "8"] in found["Caught"]
    assert ["Gone on without, no answer of it", "2"] in found["Caught"]
    assert ["Holders that did not accept the study", "2"] in found["Caught"]
    assert found["Not caught"] == [["Labels turned round: their labels are wrong", "2"]]
    assert found["Questions of a lying coordinator"] == [["opened", "no", "4"]]
    words = " ".join(Reader.of(html).words)
    assert "Of 6 attacks by holders (one holder in one run), 4 were stopped: refused, or the" in words
    assert "learned nothing that it should not" in words
    assert "changed AUROC by −0.020" in words


def test_a_run_that_its_faults_ended_is_told_and_what_attacked_it_is_in_no_model(tmp_path, small):
    ended = {
        "holders": 4,
        "epsilon": 1.0,
        "seed": 1,
        "error": "the sum is larger <than> it can be",
        "exit_code": 1,
    }
    caught = {**FAULTS, "not_caught": [], "lie": None, "effect": None}
    write_sweep_report(tmp_path, [bare(faults=FAULTS)], "Sweep", failed=[{**ended, "faults": caught}])
    html = html_of(tmp_path)
    found, words = tables(html), " ".join(Reader.of(html).words)
    assert "1 run with faults came to a model. 1 run ended without one." in words
    assert "Of 6 attacks by holders (one holder in one run), 5 were stopped" in words
    assert found["Ended without a model"] == [["the sum is larger &lt;than&gt; it can be", "1"]]
    assert found["Runs without a result"] == [["4, 1, 1", "the sum is larger &lt;than&gt; it can be"]]
    write_sweep_report(tmp_path, [bare()], "Sweep", failed=[{**ended, "faults": None}])
    assert 'id="faults"' not in html_of(tmp_path)
    with pytest.raises(BadInput, match="failed run 1: key 'error'"):
        write_sweep_report(tmp_path, [bare()], "Sweep", failed=[{"holders": 4, "epsilon": 1.0, "seed": 1}])


def test_captions_of_several_charts_are_escaped():
    assert "<b>" not in page.row(["<svg></svg>"] * 2, "<b>caption</b>", "")


@pytest.mark.parametrize("key", [key for key in a_cell() if key not in ("bundle", "report")])
def test_a_missing_key_is_named_with_its_cell(key, tmp_path):
    broken = a_cell(seed=1)
    del broken[key]
    with pytest.raises(BadInput, match=rf"cell 2: key '{key}' is 'missing'"):
        write_sweep_report(tmp_path, [a_cell(), broken], "Sweep")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"auroc": float("nan")}, "cell 1: auroc"),
        ({"auroc": 1.2}, "cell 1: auroc"),
        ({"auroc": True}, "cell 1: auroc"),
        ({"auroc": None}, "cell 1: auroc"),
        ({"epsilon": 0.0}, "cell 1: epsilon"),
        ({"epsilon": "1"}, "cell 1: epsilon"),
        ({"holders": 0}, "cell 1: holders"),
        ({"holders": 2.5}, "cell 1: holders"),
        ({"seconds": float("inf")}, "cell 1: seconds"),
        ({"gini": -1.5}, "cell 1: gini"),
        ({"study": 7}, "cell 1: study"),
        ({"groups": None}, "cell 1: groups"),
        ({"baselines": {**a_cell()["baselines"], "pooled_auroc": -0.1}}, "cell 1: baselines: pooled_auroc"),
        ({"local": [{"name": "h", "rows": 1}]}, "cell 1: local: key 'auroc'"),
        ({"groups": [{**a_group("a", "b"), "predicted": 2}]}, "cell 1: groups: predicted"),
        ({"calibration": [{"predicted": 0.1}]}, "cell 1: calibration: key 'observed'"),
        ({"canaries": {**CANARIES, "claimed_epsilon": 0}}, "cell 1: canaries: claimed_epsilon"),
        ({"faults": {"injected": {}}}, "cell 1: faults: key 'caught'"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(change, named, tmp_path):
    with pytest.raises(BadInput, match=re.escape(named)):
        write_sweep_report(tmp_path, [{**a_cell(), **change}], "Sweep")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cells", "named"),
    [
        ([], "cells of a sweep"),
        ([a_cell(), a_cell()], r"cell \(holders, epsilon, seed\) is \(4, 1.0, 0\)"),
        ([a_cell(), a_cell(seed=1, study="another")], "study of the cells"),
    ],
)
def test_cells_that_do_not_belong_together_are_refused(cells, named, tmp_path):
    with pytest.raises(BadInput, match=named):
        write_sweep_report(tmp_path, cells, "Sweep")


# Pictures ----------------------------------------------------------------------------------------------


def pixels(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and decompressed rows of a PNG, its checksums verified."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, body, size = 8, b"", (0, 0)
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, inner = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + inner) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        size = struct.unpack(">II", inner[:8]) if kind == b"IHDR" else size
        body += inner if kind == b"IDAT" else b""
        at += 12 + length
    return *size, zlib.decompress(body)


@pytest.mark.parametrize("name", SWEEPS)
def test_pictures_are_whole_png_files_with_something_on_them(name, written):
    pictures = sorted(written[name].glob("*.png"))
    assert pictures
    for path in pictures:
        wide, high, body = pixels(path.read_bytes())
        assert wide >= (1000 if name == "whole" else 368)
        assert high >= 100
        assert len(body) % high == 0
        assert len(body) - body.count(0) > (20_000 if name == "whole" else 4_000), (
            path.name
        )  # filtered rows: an empty picture is nearly all zeros


def test_every_picture_of_the_whole_sweep_is_there_and_named_in_the_answer(tmp_path, small):
    found = write_sweep_report(tmp_path, [a_cell(h, 1.0) for h in (4, 8)], "Sweep")
    names = [
        "auroc-by-epsilon",
        "auroc-by-holders",
        "calibration",
        "canaries",
        "gain-by-size",
        "groups-1",
        "run-time",
    ]
    assert sorted(found) == sorted(["html", "csv", "holders_csv", "groups_csv", *names])
    assert {Path(path).name for path in found.values()} == {path.name for path in tmp_path.iterdir()}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_letters_of_a_picture_come_from_our_own_fonts():
    def of(words: str, kind: str = "") -> bytes:
        chart = svg("key", title="", desc="", height=60, parts=[label(10, 30, words, kind)])
        return pixels(png([chart], heading="", source=""))[2]

    unknown = of("\ue000")
    drawn = {of(letter) for letter in "εδ–−“”…×Żж"}
    assert len(drawn) == 10
    assert unknown not in drawn
    assert of("bold") != of("bold", "strong")
    with pytest.raises(ValueError, match="svg"):
        png(["<p>no chart</p>"], heading="", source="")


# Geometry ----------------------------------------------------------------------------------------------

EM = {" .,:;|'ijl": 0.33, "frt()-": 0.42, "0123456789": 0.64, "mwMWOQ%—…+−": 0.98}


def width(text: ElementTree.Element) -> float:
    """Width of a chart's text in DejaVu Sans, the widest font that it is drawn in, or a little more."""
    ems = sum(next((em for letters, em in EM.items() if c in letters), 0.62) for c in text.text or "")
    return 11.5 * ems * (1.12 if "strong" in text.attrib["class"] else 1)


def charts_of(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(part) for part in re.findall(r"<svg .*?</svg>", html, re.DOTALL)]


@pytest.mark.parametrize("name", SWEEPS)
def test_no_text_of_a_chart_is_cut_off_at_its_edge(name, written):
    for chart in charts_of(html_of(written[name])):
        high = float(chart.attrib["viewBox"].split()[3])
        for text in chart.iter("text"):
            if "transform" in text.attrib or not text.text:
                continue
            length = width(text)
            left = (
                float(text.attrib["x"])
                - {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]] * length
            )
            assert left >= -2, text.text
            assert left + length <= WIDTH + 4, text.text
            assert 8 <= float(text.attrib["y"]) <= high, text.text


@pytest.mark.parametrize("name", ["whole", "flat", "long", "one"])
def test_words_at_the_ends_of_curves_do_not_lie_on_each_other(name, written):
    curves = [c for c in charts_of(html_of(written[name])) if "auroc-by" in c.attrib["aria-labelledby"]]
    assert curves
    for chart in curves:
        ends = [t for t in chart.iter("text") if re.match(r"0\.\d{3} [a-z]", t.text or "")]
        assert len(ends) == 5
        heights = sorted(float(text.attrib["y"]) for text in ends)
        assert all(below - above >= 13 for above, below in pairwise(heights))


def test_a_curve_is_told_apart_without_its_colour(written):
    html = html_of(written["whole"])
    sheet = page.STYLE.read_text(encoding="utf-8")
    dashes = {}
    for kind in ("federated", "pooled", "local", "open", "limit"):
        assert f'class="line {kind}"' in html
        rules = " ".join(re.findall(rf"\.line\.{kind} {{(.*?)}}", sheet))
        dashes[kind] = (re.findall(r"stroke-dasharray: ([^;}]*)", rules) or ["none"])[0].strip()
    assert len(set(dashes.values())) == 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_the_new_curves_stand_out(scheme):
    colours = colours_of((STYLE, page.STYLE), scheme)
    for name in ("open", "limit"):
        assert contrast(colours[name], colours["page"]) >= 3
