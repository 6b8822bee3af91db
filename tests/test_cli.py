"""The command line as a new user meets it: help with examples, JSON contracts, one-line errors, codes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from federation_support import LOCAL, STUDY, assay, assay_json, write_records
from typer.testing import CliRunner

from assay.simulations.examples import example
from assay.simulations.main import build

COMMANDS = [
    ("demo",), ("population",), ("simulate",), ("study", "check"), ("study", "packs"),
    ("server", "init"), ("server", "admit"), ("server", "revoke"), ("server", "serve"), ("server", "train"),
    ("server", "status"), ("server", "models"), ("server", "witness"),
    ("client", "init"), ("client", "join"), ("client", "check"), ("client", "run"), ("client", "status"),
    ("client", "points"), ("client", "monitor"), ("client", "compare"),
    ("model", "request"), ("model", "assemble"), ("model", "monitor"), ("model", "compare"),
    ("privacy", "ledger"), ("privacy", "audit"), ("privacy", "plan"), ("privacy", "refusals"),
    ("model", "show"), ("model", "verify"), ("model", "score"), ("model", "explain"), ("model", "export"),
]  # fmt: skip


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY.replace("rounds = 40", "rounds = 10"))
    return path


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.csv"
    write_records(path, rows=1500)
    return path


def fails(*arguments, code=2):
    """Run a command that must fail with ``code`` and one line; return the line."""
    result = CliRunner().invoke(build(), [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, (arguments, result.exit_code, result.output)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("assay: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command):
    text = " ".join(assay(*command, "--help").split())
    assert "Example: assay " + " ".join(command) in re.sub(r"[│╭╮╰╯─]", " ", text).replace("  ", " ")


def test_no_command_is_missing_from_the_list_above():
    import click
    import typer

    def leaves(group, prefix=()):
        for name, found in group.commands.items():
            yield from leaves(found, (*prefix, name)) if isinstance(found, click.Group) else [(*prefix, name)]

    root = typer.main.get_command(build())
    assert sorted(leaves(root)) == sorted(COMMANDS)


def test_simulate_gives_the_promised_json_and_files(study, records, tmp_path):
    result = assay_json("simulate", study, "--data", records, "--out", tmp_path / "out")
    keys = "auroc ks gini log_loss brier epsilon delta rounds holders rows seconds bundle report baselines"
    assert set(keys.split()) <= set(result)
    assert {"local_only_auroc", "pooled_auroc"} <= set(result["baselines"])
    assert (result["trust"], result["tolerated"]) == ("distributed", 1)
    assert 1 < result["epsilon_if_aggregation_fails"] < 2
    assert 0.7 < result["auroc"] < 1
    assert (result["epsilon"], result["delta"], result["rounds"]) == (1.0, 1e-6, 10)
    assert (result["holders"], result["rows"]) == (3, 1200)
    assert Path(result["report"]).stat().st_size > 10_000
    assert assay_json("model", "verify", result["bundle"])
    assert "only their noisy sum" in Path(result["report"]).read_text(encoding="utf-8")


def test_a_study_that_says_nothing_about_trust_is_trained_with_secure_aggregation(study, records, tmp_path):
    study.write_text(re.sub(r"trust = .*\n", "", study.read_text()))
    result = assay_json("simulate", study, "--data", records, "--out", tmp_path / "out")
    assert (result["trust"], result["holders"]) == ("distributed", 3)


def test_several_epsilons_give_a_list_and_a_bundle_each(study, records, tmp_path):
    out = tmp_path / "out"
    options = ("--epsilon", 0.5, "--epsilon", 4, "--jobs", 1)
    result = assay_json("simulate", study, "--data", records, "--out", out, *options)
    assert [r["epsilon"] for r in result["results"]] == [0.5, 4.0]
    assert len({r["bundle"] for r in result["results"]}) == 2


def test_a_test_file_and_a_partition_column_are_used(study, records, tmp_path):
    study.write_text(LOCAL)
    held = tmp_path / "held.csv"
    write_records(held, rows=400, seed=9)
    result = assay_json(
        "simulate", study, "--data", records, "--test", held, "--out", tmp_path / "out", "--holders", 2,
        "--partition", "region",
    )  # fmt: skip
    assert (result["rows"], result["test_rows"]) == (1500, 400)
    assert (result["trust"], result["tolerated"]) == ("local", None)
    assert result["epsilon_if_aggregation_fails"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epsilon", "-1"], "epsilon"),
        (["--epsilon", "nan"], "epsilon"),
        (["--epsilon", "1", "--epsilon", "1"], "each value once"),
        (["--holders", "20000"], "--holders"),
        (["--holders", "0"], "--holders"),
        (["--partition", "nowhere"], "--partition"),
        (["--test-fraction", "1.5"], "--test-fraction"),
        (["--seed", "-4"], "--seed"),
    ],
)
def test_simulate_names_the_option_that_is_wrong_and_leaves_nothing_behind(
    study, records, tmp_path, options, words
):
    out = tmp_path / "out"
    assert words in fails("simulate", study, "--data", records, "--out", out, *options)
    assert not out.exists()


def test_simulate_never_overwrites_results(study, records, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert "--out" in fails("simulate", study, "--data", records, "--out", out)
    assert (out / "mine.txt").read_text() == "keep"


BROKEN = {
    "missing column": (lambda t: t.replace("bad", "good", 1), "bad"),
    "wrong label": (lambda t: re.sub(r",[01]\n", ",2\n", t, count=1), "row 1"),
    "NaN": (lambda t: re.sub(r"\n[0-9.]+,", "\nNaN,", t, count=1), "row 1"),
    "infinity": (lambda t: re.sub(r"\n[0-9.]+,", "\n1e309,", t, count=1), "row 1"),
    "text in a number": (lambda t: re.sub(r"\n[0-9.]+,", "\nmuch,", t, count=1), "row 1"),
    "no rows": (lambda t: t.splitlines()[0] + "\n", "row"),
    "empty file": (lambda t: "", "empty"),
    "duplicate column": (lambda t: t.replace("late", "amount", 1), "amount"),
    "not a CSV": (lambda t: "PAR1" + t, ""),
}


@pytest.mark.parametrize("defect", BROKEN)
def test_broken_records_are_refused_by_name(study, records, tmp_path, defect):
    change, words = BROKEN[defect]
    records.write_text(change(records.read_text()))
    line = fails("simulate", study, "--data", records, "--out", tmp_path / "out")
    assert "records.csv" in line
    assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("holders", "engine", "most"), [(1, "fast", 10_000), (2, "full", 1000), (1001, "full", 1000)]
)
def test_holders_that_cannot_be_summed_are_refused_with_the_remedy_before_anything_is_read(
    study, tmp_path, holders, engine, most
):
    out, missing = tmp_path / "out", tmp_path / "none.csv"
    options = ("--out", out, "--holders", holders, "--engine", engine)
    line = fails("simulate", study, "--data", missing, *options, code=3)
    assert f"holders is {holders}; allowed: 3 to {most}" in line
    assert 'trust = "local"' in line
    assert not out.exists()


def test_more_tolerated_holders_need_more_holders(study, records, tmp_path):
    study.write_text(study.read_text().replace("delta = 1e-6", "delta = 1e-6\ntolerated = 2"))
    line = fails("simulate", study, "--data", records, "--out", tmp_path / "out", code=3)
    assert "allowed: 5 to 1000" in line


def test_a_network_is_trained_in_no_live_run(study, tmp_path):
    study.write_text(study.read_text().replace("rounds = 10", 'model = "neural"'))
    line = fails("server", "train", tmp_path, study, code=3)
    assert 'Set model = "additive"' in line


def test_a_refused_purpose_is_named_with_its_code(study):
    study.write_text(study.read_text().replace('"consumer_credit"', '"voting"'))
    assert "D02" in fails("study", "check", study, code=3)


def test_an_unknown_key_is_refused_with_line_and_nearest_key(study):
    study.write_text(study.read_text().replace("epsilon = 1.0", "epsilom = 1.0"))
    line = fails("study", "check", study)
    assert "epsilon" in line
    assert re.search(r"study\.toml:\d+", line)


def test_commands_on_a_directory_that_is_not_theirs_say_what_to_run(tmp_path, study):
    assert "assay server init" in fails("server", "status", tmp_path / "nowhere")
    assert "assay client init" in fails("client", "check", tmp_path / "nowhere", study)
    assert "assay server serve" in fails("server", "train", coordinator(tmp_path), study, code=1)


def coordinator(tmp_path):
    assay("server", "init", tmp_path / "c", "--name", "T", "--port", 9443)
    return tmp_path / "c"


def test_demo_refuses_numbers_out_of_range(tmp_path):
    for holders in (1, 11):
        assert "allowed: 3 to 10" in fails("demo", "--holders", holders, "--out", tmp_path / "d")
    refused = fails("demo", "--holders", 2, "--out", tmp_path / "d", code=3)
    assert "--holders is 2; allowed: 3 to 10" in refused
    assert 'trust = "local"' in refused
    assert "epsilon" in fails("demo", "--epsilon", 0, "--out", tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_the_bundled_example_is_a_valid_study_and_inputs_hold_no_protected_attribute():
    checked = assay_json("study", "check", example("taiwan") / "study.toml")
    assert checked
    text = (example("taiwan") / "study.toml").read_text()
    inputs = re.findall(r'^column = "(\w+)"$', text, re.MULTILINE)
    assert not {"SEX", "MARRIAGE", "AGE"} & set(inputs)


@pytest.mark.slow
def test_the_demo_runs_real_processes_and_ends_with_bundle_report_and_scores(tmp_path):
    out = tmp_path / "demo"
    result = assay_json("demo", "--out", out)
    assert {"auroc", "epsilon", "delta", "rounds", "holders", "bundle", "report"} <= set(result)
    assert (result["epsilon"], result["holders"]) == (1.0, 3)
    assert (result["trust"], result["tolerated"]) == ("distributed", 1)
    assert result["auroc"] >= 0.755
    assert result["auroc"] > result["baselines"]["local_only_auroc"]
    assert_score_adds_up(Path(result["bundle"]), out / "held-out.csv", tmp_path / "scores.csv")
    for holder in ("bank-1", "bank-2", "bank-3"):
        ledger = json.loads(assay("privacy", "ledger", out / holder, "--verify", "--json"))
        assert ledger["verified"] is True
        assert 0.99 < ledger["spent_epsilon"] <= 1.0
        assert assay_json("privacy", "audit", out / holder)["verified"] is True


def assert_score_adds_up(bundle, records, scores):
    assay("model", "score", bundle, "--input", records, "--output", scores, "--purpose", "consumer_credit")
    with scores.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6000
    for row in rows:
        points = sum(int(value) for key, value in row.items() if key.startswith("points_"))
        assert int(row["base_points"]) + points + int(row["capped"]) == int(row["score"])
        assert 350 <= int(row["score"]) <= 950
        assert all(row[f"reason_{i}"] for i in range(1, 5))
