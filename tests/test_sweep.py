"""Sweeps: every cell once and durably, stopped and gone on with, compared fairly, and refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from federation_support import assay_json, wait_for
from sweep_support import GROUPED, MAIN, command, content, process, results, runs, write_people
from sweep_support import children as children_of
from test_cli import fails
from toy_study import SUMMED, records
from typer.testing import CliRunner

import assay.simulations as simulations
from assay.models import metrics
from assay.models.study import parse_study, read_study
from assay.privacy.errors import AssayError, BadInput
from assay.simulations import baselines
from assay.simulations import sweep as sweeps
from assay.simulations.baselines import MOST_ALONE, alone
from assay.simulations.cell import Cell
from assay.simulations.dataset import Dataset, Groups
from assay.simulations.grouping import group_rows
from assay.simulations.main import build
from assay.simulations.partition import Partition
from assay.simulations.population_read import read_parameters
from assay.simulations.population_risk import true_risk
from assay.simulations.resumption import alone_in
from assay.simulations.simulate import Simulation
from assay.simulations.workers import Workers

KEYS = ["h3-e0.5-s7", "h3-e4-s7", "h5-e0.5-s7", "h5-e4-s7"]
SWEEP = ("--holders", "3,5", "--epsilon", 0.5, "--epsilon", 4, "--seed", 7)
CELL = {
    *("auroc", "ks", "gini", "log_loss", "brier", "ece", "epsilon", "delta", "rounds", "holders", "rows"),
    *("test_rows", "seconds", "seed", "study", "outcome", "trust", "engine", "partition", "spent_epsilon"),
    *("baselines", "local", "groups", "calibration", "label", "label_epsilon", "canaries", "faults"),
    *("bundle", "report"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study and records."""
    home = tmp_path_factory.mktemp("sweep")
    (home / "study.toml").write_text(GROUPED)
    write_people(home / "people.csv")
    return home


@pytest.fixture(scope="module")
def sweep(folder):
    """Four cells, done in this process; several processes are below, in the slow tests."""
    return assay_json(*command(folder, folder / "out", *SWEEP, "--jobs", 1))


@pytest.fixture
def copy(sweep, folder, tmp_path):
    """A finished sweep that a test may change."""
    return shutil.copytree(folder / "out", tmp_path / "copy")


class TestCells:
    def test_every_cell_is_there_once_and_in_order(self, sweep, folder):
        cells = [(each["holders"], each["epsilon"], each["seed"]) for each in sweep["results"]]
        assert cells == [(3, 0.5, 7), (3, 4.0, 7), (5, 0.5, 7), (5, 4.0, 7)]
        assert list(results(folder / "out")) == KEYS
        assert sweep["failed"] == []

    def test_each_has_the_promised_keys_and_measures_of_its_own_model(self, sweep):
        for each in sweep["results"]:
            assert set(each) >= CELL
            assert {"local_only_auroc", "pooled_auroc", "non_private_auroc"} <= set(each["baselines"])
            assert each["baselines"]["bayes_auroc"] is None  # nobody knows the true risk of these people
            assert (each["rounds"], each["rows"], each["test_rows"]) == (4, 720, 180)
            assert each["spent_epsilon"] == pytest.approx(each["epsilon"], rel=1e-6)
            assert each["label_epsilon"] == each["epsilon"]
            assert each["gini"] == pytest.approx(2 * each["auroc"] - 1)
            assert sum(row["rows"] for row in each["calibration"]) == 180
            assert all(row["low"] <= row["observed"] <= row["high"] for row in each["calibration"])
        assert len({each["log_loss"] for each in sweep["results"]}) == 4

    def test_what_is_written_is_what_is_said(self, sweep, folder):
        written = results(folder / "out")
        for key, each in zip(KEYS, sweep["results"], strict=True):
            assert {**written[key], "bundle": each["bundle"], "report": each["report"]} == each
            assert assay_json("model", "verify", each["bundle"])
            assert Path(each["report"]).stat().st_size > 10_000

    def test_only_the_owner_can_read_exact_results(self, sweep, folder):
        paths = [*(folder / "out" / "cells").glob("*.json"), *(folder / "out" / "baselines").iterdir()]
        assert len(paths) == 4 + 3
        for path in (*paths, folder / "out" / "sweep.json"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE((folder / "out").stat().st_mode) == 0o700

    def test_the_report_table_and_pictures_are_of_all_cells(self, sweep):
        lines = Path(sweep["csv"]).read_text().splitlines()
        assert len(lines) == 1 + 4
        assert "<html" in Path(sweep["report"]).read_text()
        assert sweep["pictures"]
        for picture in sweep["pictures"]:
            assert Path(picture).read_bytes().startswith(b"\x89PNG")

    def test_a_baseline_is_trained_once_for_all_cells_that_it_is_the_same_for(self, sweep, folder):
        names = sorted(path.name for path in (folder / "out" / "baselines").iterdir())
        assert names == ["pooled-e0.5-s7.json", "pooled-e4-s7.json", "unprotected-s7.json"]
        base = {(each["holders"], each["epsilon"]): each["baselines"] for each in sweep["results"]}
        assert len({own["non_private_auroc"] for own in base.values()}) == 1
        for epsilon in (0.5, 4.0):
            assert base[3, epsilon]["pooled_auroc"] == base[5, epsilon]["pooled_auroc"]
        # Models with other noise give 180 people the same probabilities less than once in a billion.
        assert base[3, 0.5]["pooled"]["log_loss"] != base[3, 4.0]["pooled"]["log_loss"]

    def test_a_single_run_gives_its_own_files_and_no_list(self, folder, tmp_path):
        result = assay_json(*command(folder, tmp_path / "one"))
        assert "results" not in result
        assert set(result) >= CELL
        assert Path(result["bundle"]) == tmp_path / "one" / "tiny.bundle"
        assert not (tmp_path / "one" / "report.html").exists()

    def test_a_fault_in_every_run_is_told_with_what_came_of_it(self, folder, tmp_path):
        result = assay_json(*command(folder, tmp_path / "out", "--fault", "flip=1", "--canaries", 16))
        assert result["faults"]["injected"]
        effect = result["faults"]["effect"]
        assert effect["auroc"] == result["auroc"]
        assert effect["auroc_change"] == pytest.approx(effect["auroc"] - effect["clean_auroc"])
        assert result["canaries"]["canaries"] == 16
        assert result["canaries"]["claimed_epsilon"] == 1.0

    def test_a_run_that_faults_end_is_told_and_the_others_go_on(self, folder, tmp_path):
        """Of three holders one may be gone; where two answer with garbage no sum can be opened."""
        options = ("--holders", "3,5", "--engine", "full", "--fault", "garbage=2", "--jobs", 1)
        arguments = command(folder, tmp_path / "out", *options, "--json")
        done = CliRunner().invoke(build(), arguments, catch_exceptions=False)
        assert done.exit_code == 1
        said = json.loads(done.stdout)
        assert said["failed"][0]["holders"] == 3
        assert len(said["results"]) + len(said["failed"]) == 2
        assert said["failed"][0]["faults"]["injected"]
        kept = tmp_path / "out" / "cells" / "h3-e1-s0.failed.json"
        assert json.loads(kept.read_text()) == said["failed"][0]
        assert "3 holders, epsilon 1, seed 0: failed: " in done.stderr

    def test_where_faults_end_every_run_it_is_said_where_they_are_told(self, folder, tmp_path):
        out = tmp_path / "out"
        options = ("--engine", "full", "--fault", "garbage=3")
        line = fails(*command(folder, out, *options), code=1)
        assert line.endswith(f"What was injected and caught is in {out / 'cells'}")
        assert json.loads((out / "cells" / "h3-e1-s0.failed.json").read_text())["faults"]["injected"]


class TestResume:
    def test_it_does_what_is_missing_and_leaves_the_rest_as_it_is(self, folder, copy):
        gone = ("h3-e4-s7", "h5-e0.5-s7")
        before = content(copy)
        for key in gone:
            (copy / "cells" / f"{key}.json").unlink()
        (copy / "report.html").unlink()
        (copy / "cells" / ".h3-e4-s7.json.123.tmp").write_text('{"half')
        result = assay_json(*command(folder, copy, *SWEEP, "--jobs", 1, "--resume"))
        after = content(copy)
        assert set(after) == set(before)
        changed = {Path(name).name for name in after if after[name] != before[name]}
        assert {f"{key}.json" for key in gone} <= changed
        for name in before:
            kept = name.startswith(("cells/", "baselines/")) and not any(key in name for key in gone)
            assert not kept or after[name] == before[name], name
        assert [f"h{r['holders']}-e{r['epsilon']:g}-s{r['seed']}" for r in result["results"]] == KEYS
        assert len(Path(result["csv"]).read_text().splitlines()) == 1 + 4

    def test_a_finished_sweep_needs_no_records_but_the_file_it_is_of(self, folder, copy, monkeypatch):
        monkeypatch.setattr("assay.simulations.work.Dataset", None)
        again = assay_json(*command(folder, copy, "--holders", "5,3", *SWEEP[2:], "--resume"))
        assert [each["bundle"] for each in again["results"]] == [
            str(copy / "cells" / f"{key}.bundle") for key in KEYS
        ]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--holders", "3"], "holders ([3] and not [3, 5])"),
            (["--epsilon", 2], "epsilon ([0.5, 2.0, 4.0] and not [0.5, 4.0])"),
            (["--seeds", 2], "seeds (2 and not 1)"),
            (["--seed", 8], "seed (8 and not 7)"),
            (["--partition", "quantity"], 'partition ("quantity" and not "iid")'),
            (["--partition", "label", "--skew", 2], "skew (2.0 and not null)"),
            (["--engine", "full"], 'engine ("full" and not "fast")'),
            (["--fault", "flip=1"], 'fault (["flip=1"] and not [])'),
            (["--canaries", 16], "canaries (16 and not 0)"),
            (["--test-fraction", 0.3], "test_fraction (0.3 and not 0.2)"),
        ],
    )
    def test_another_sweep_is_refused_by_what_differs(self, folder, copy, options, words):
        before = content(copy)
        line = fails(*command(folder, copy, *SWEEP, *options, "--resume"))
        assert words in line
        assert "--resume" in line
        assert content(copy) == before

    @pytest.mark.parametrize("name", ["study.toml", "people.csv"])
    def test_another_study_or_other_records_are_refused(self, folder, copy, tmp_path, name):
        for each in ("study.toml", "people.csv"):
            shutil.copy(folder / each, tmp_path)
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text + ("# x\n" if name == "study.toml" else "1,1,north,0,hill,f\n"))
        line = fails(*command(tmp_path, copy, *SWEEP, "--resume"))
        assert f"has another {'study' if name == 'study.toml' else 'content of the data file'}." in line

    def test_nothing_to_go_on_with_is_refused(self, folder, tmp_path):
        line = fails(*command(folder, tmp_path / "out", *SWEEP, "--resume"))
        assert "no sweep.json" in line
        assert "Leave out --resume" in line
        assert not (tmp_path / "out").exists()

    def test_a_sweep_is_not_overwritten(self, folder, copy):
        before = content(copy)
        assert "a new or empty directory" in fails(*command(folder, copy, *SWEEP))
        assert content(copy) == before

    def test_a_changed_result_is_refused_by_name(self, folder, copy):
        (copy / "cells" / "h3-e4-s7.json").write_text((copy / "cells" / "h5-e4-s7.json").read_text())
        line = fails(*command(folder, copy, *SWEEP, "--resume"))
        assert "h3-e4-s7.json" in line
        assert "Remove the file" in line

    def test_two_sweeps_do_not_work_in_one_directory(self, folder, copy):
        with alone_in(copy):
            line = fails(*command(folder, copy, *SWEEP, "--resume"))
        assert "no other simulation" in line
        assert assay_json(*command(folder, copy, *SWEEP, "--resume"))["results"]  # it lets go of it


@pytest.mark.slow
class TestStopped:
    def test_ctrl_c_keeps_what_is_done_ends_every_process_and_says_how_to_go_on(self, folder, tmp_path):
        out, options = tmp_path / "out", ("--holders", "3,4", "--seeds", 4, "--jobs", 2)
        arguments = command(folder, out, *options)
        running = subprocess.Popen(
            [*MAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: (out / "cells").is_dir() and results(out), timeout=240)
        workers = children_of(running.pid)
        running.send_signal(signal.SIGINT)
        said, lines = running.communicate(timeout=60)
        assert (running.returncode, said) == (130, "")
        assert len(workers) == 2
        assert not any(runs(worker) for worker in workers)
        assert lines.splitlines()[-1].startswith("assay: interrupted; what is finished is kept in ")
        assert "--resume" in lines.splitlines()[-1]
        assert lines.count("assay: ") == 1
        assert "Traceback" not in lines
        done = content(out)
        assert not [name for name in done if name.endswith(".tmp")]
        finished = set(results(out))
        assert 0 < len(finished) < 8
        result = assay_json(*arguments, "--resume", "--jobs", 1)
        assert len(result["results"]) == 8
        seeds = {each["seed"]: each["baselines"]["non_private_auroc"] for each in result["results"]}
        assert len(seeds) == len(set(seeds.values())) == 4  # both processes shared what they compare with
        for each in result["results"]:
            assert each["baselines"]["non_private_auroc"] == seeds[each["seed"]]
        for key in finished:
            assert content(out)[f"cells/{key}.json"] == done[f"cells/{key}.json"]

    def test_a_full_disk_keeps_what_is_done_names_the_file_and_how_to_go_on(self, folder, copy):
        """A limit on the size of a file stands for the disk; both processes meet it at the bundle."""
        for key in ("h3-e4-s7", "h5-e4-s7"):
            for end in ("json", "bundle", "html"):
                (copy / "cells" / f"{key}.{end}").unlink()
        before = content(copy)
        arguments = command(folder, copy, *SWEEP, "--jobs", 2, "--resume")
        done = process(arguments, limit=4096)
        assert done.returncode == 1
        assert done.stdout == ""
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"assay: File too large: {copy / 'cells'}")
        assert ".bundle; free some space; what is finished is kept in " in last
        assert "--resume" in last
        assert done.stderr.count("assay: ") == 1
        assert "Traceback" not in done.stderr
        assert content(copy) == before
        assert len(assay_json(*arguments, "--jobs", 1)["results"]) == 4

    def test_a_worker_that_is_killed_is_told(self, folder, tmp_path):
        plan = Simulation(
            study=folder / "study.toml", data=folder / "people.csv", out=tmp_path, holders=(3, 4)
        )
        with Workers(1, plan.to_json()) as workers:
            workers.give(0, {"kind": "unprotected", "seed": 0})
            os.kill(workers._running[0].process.pid, signal.SIGKILL)
            with pytest.raises(AssayError, match="exit code -9"):
                list(workers.said())


def test_a_result_that_cannot_be_written_is_absent_and_named(folder, tmp_path, monkeypatch):
    """The disk is full at the very end of a run: the bundle is there, the result is not."""
    sync = os.fsync

    def full(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if "/cells/" in name and ".json" in name:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    line = fails(*command(folder, out), code=1)
    assert f"No space left on device: {out / 'cells' / 'h3-e1-s0.json'}" in line
    assert "--resume" in line
    assert list((out / "cells").iterdir()) == []
    monkeypatch.setattr(os, "fsync", sync)
    assert set(assay_json(*command(folder, out, "--resume"))) >= CELL


class TestProgress:
    def test_off_a_terminal_each_cell_is_a_line_with_what_is_left(self, folder, tmp_path):
        options = ("--epsilon", 1, "--epsilon", 2, "--jobs", 1, "--json")
        done = CliRunner().invoke(build(), command(folder, tmp_path / "out", *options))
        lines = done.stderr.splitlines()
        assert lines[0] == "0 of 2 cells: reading records"
        assert [line.split(" cells")[0] for line in lines if "AUROC" in line] == ["1 of 2", "2 of 2"]
        assert "about" in lines[-2]
        assert not [line for line in lines if "round" in line]
        assert json.loads(done.stdout)["results"]

    def test_what_is_left_is_judged_by_rows_and_holders(self):
        """With 1,000 rows a cell of 1,000 holders costs 7.4 times what one of 30 does."""
        cells = (
            *(Cell(holders=30, epsilon=1.0, seed=seed) for seed in (0, 1)),
            Cell(holders=1000, epsilon=1.0, seed=0),
        )
        now, told = [0.0], []
        progress = sweeps._Progress(cells, list(cells), 1000, told.append, clock=lambda: now[0])
        progress.started(cells[0])
        progress.step({"kind": "unprotected", "seed": 0}, "a baseline")
        assert told[-1].left_s is None
        now[0] = 10.0
        progress.finished(cells[0], {"auroc": 0.7, "seconds": 9.0})
        assert told[-1].left_s == pytest.approx(10 * (1 + 7.402))
        progress.jobs = 2
        progress.started(cells[1])
        now[0] = 14.0
        progress.step({"kind": "unprotected", "seed": 0}, "another")
        assert told[-1].left_s == pytest.approx((10 * (1 + 7.402) - 4) / 2)
        assert (told[-1].done, told[-1].cells) == (1, 3)


class TestAlone:
    def test_few_holders_are_all_trained_but_those_with_one_outcome(self):
        held = {f"h{number}": records(50, number) for number in range(5)}
        held["h3"].labels[:] = 1.0
        assert alone(held, seed=0) == ("h0", "h1", "h2", "h4")

    def test_of_many_holders_thirty_are_spread_over_the_sizes_and_drawn_by_the_seed(self):
        held = {f"h{number:03d}": records(20 + number, number) for number in range(90)}
        chosen = [sorted(int(name[1:]) // 3 for name in alone(held, seed)) for seed in (0, 1)]
        assert chosen == [list(range(MOST_ALONE))] * 2  # one of each class of three sizes
        assert alone(held, 0) == alone(held, 0)
        assert alone(held, 0) != alone(held, 1)

    def test_the_others_are_listed_without_a_model(self, folder, tmp_path):
        result = assay_json(*command(folder, tmp_path / "out", "--holders", 40, "--jobs", 1))
        assert len(result["local"]) == 40
        own = [each["auroc"] for each in result["local"] if each["auroc"] is not None]
        assert len(own) == result["baselines"]["local_only_holders"] <= 30
        assert result["baselines"]["local_only_auroc"] == pytest.approx(np.mean(own))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A population with parameters of its own."""
    home = tmp_path_factory.mktemp("people")
    (home / "own.toml").write_text("[outcomes.credit]\nintercept = -1.0\n")
    return simulations.make_population(
        home / "people.parquet", people=3000, seed=5, params=home / "own.toml", months=3
    )


class TestPooled:
    def test_in_one_place_everybody_is_known_once(self, monkeypatch):
        """Whoever has all records in one place needs no noise for people that several holders know."""
        seen = []
        train = baselines.federate
        monkeypatch.setattr(
            baselines, "federate", lambda text, held, **how: (seen.append(text), train(text, held, **how))[1]
        )
        text = SUMMED.replace("epsilon = 2.0", "epsilon = 2.0\nholders_per_person = 3")
        card = baselines.pooled_card(text, records(300))
        privacy = parse_study(seen[0]).privacy
        assert (privacy.holders_per_person, privacy.trust, privacy.epsilon) == (1, "local", 2.0)
        assert card.study.privacy == privacy
        held = {name: records(100, seed) for seed, name in enumerate(("a", "b"))}
        baselines.train_alone(text, held, records(200, 9), seed=0)
        assert [parse_study(own).privacy.holders_per_person for own in seen[1:]] == [3, 3]

    def test_of_people_at_several_holders_each_is_pooled_once(self, folder, tmp_path):
        text = (folder / "study.toml").read_text()
        (tmp_path / "study.toml").write_text(text.replace("[privacy]", "[privacy]\nholders_per_person = 2"))
        shutil.copy(folder / "people.csv", tmp_path)
        study = read_study(tmp_path / "study.toml")
        shared = Partition.parse("iid", overlap="0.5")
        dataset = Dataset(study, tmp_path / "people.csv", None, 0.2, shared)
        laid = dataset.layout(4, 0)
        assert sum(own.rows for own in laid.holders.values()) == 720 + 360
        assert laid.kept.rows == dataset.training(0).rows == 720


class TestTrueRisk:
    def laid(self, people, seed=0, **changes):
        study = read_study(Path(people["studies"]["credit"]))
        given = {"test": None, "test_fraction": 0.4, "partition": Partition(kind="quantity")} | changes
        return Dataset(study, Path(people["file"]), **given).layout(5, seed)

    def test_it_is_that_of_the_held_out_records_and_of_these_peoples_parameters(self, people):
        """The parameters differ from the package's, and every row is compared."""
        table = pyarrow.parquet.read_table(people["file"])
        risk = true_risk(read_parameters(Path(people["file"]).with_name("people-parameters.toml")), table)
        laid = self.laid(people)
        labels = table.column("default").to_numpy().astype(float)
        found = [np.flatnonzero(risk["credit"] == own) for own in laid.risk]
        assert all(len(rows) == 1 for rows in found)
        assert np.array_equal(labels[np.concatenate(found)], laid.test.labels)
        assert len(found) == 1200
        mean = true_risk(read_parameters(), table)["credit"].mean()
        assert laid.risk.mean() > 1.5 * mean  # control: the package's own parameters give another risk

    def test_no_model_sees_it(self, people):
        laid = self.laid(people)
        columns = {feature.column for feature in read_study(Path(people["studies"]["credit"])).features}
        assert set(laid.kept.columns) == columns
        for own in laid.kept.columns.values():
            assert own.dtype == object or not np.array_equal(own[: len(laid.risk)], laid.risk)

    def test_a_test_file_has_its_own(self, people, tmp_path):
        other = simulations.make_population(tmp_path / "other.csv", people=500, seed=6)
        laid = self.laid(people, test=Path(other["file"]))
        assert laid.risk.shape == (500,)
        assert metrics.auroc(laid.test.labels, laid.risk) > 0.7

    def test_without_parameters_it_is_not_known(self, people, tmp_path):
        shutil.copy(people["file"], tmp_path / "people.parquet")
        assert self.laid({**people, "file": str(tmp_path / "people.parquet")}).risk is None

    def test_results_by_region_are_there_though_no_study_audits_it(self, people):
        groups = self.laid(people).groups
        assert set(groups) == {"sex", "age_group", "origin", "region"}
        assert set(groups["region"].labels) == {"north", "south", "east", "west", "harbour"}


class TestGroups:
    def test_a_group_with_one_outcome_has_no_auroc(self, folder):
        study = parse_study((folder / "study.toml").read_text())
        dataset = Dataset(study, folder / "people.csv", None, 0.5, Partition.parse("where"))
        laid = dataset.layout(3, 0)
        where = laid.groups["where"]
        assert set(where.labels) == {"coast", "hill", "missing", "plain"}
        scores = simulations_scores(laid)
        rows = group_rows(laid.groups, laid.test.labels, private=scores, unprotected=scores, threshold=600)
        own = {row["group"]: row for row in rows if row["column"] == "where"}
        assert own["hill"]["auroc"] is None
        assert own["hill"]["observed"] == 0.0
        assert own["coast"]["auroc"] > 0.6
        assert sum(row["persons"] for row in own.values()) == laid.test.rows
        assert {row["column"] for row in rows} == {"sex", "region", "where"}

    def test_a_group_is_measured_on_its_own_records(self):
        class Scores:
            probability = np.array([0.1, 0.9, 0.8, 0.2])
            score = np.array([700, 400, 500, 650])

        groups = {"g": Groups(labels=("a", "b", "nobody"), codes=np.array([0, 0, 1, 1]))}
        labels = np.array([0.0, 1.0, 0.0, 1.0])
        first, second = group_rows(groups, labels, private=Scores, unprotected=Scores, threshold=650)
        assert (first["auroc"], second["auroc"]) == (1.0, 0.0)
        assert (first["approval_rate"], first["observed"], first["predicted"]) == (0.5, 0.5, 0.5)
        assert first["non_private"] == {"auroc": 1.0, "approval_rate": 0.5}


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--holders", "3,0"], "--holders is 0; allowed: 1 to 10000"),
            (["--holders", "3,x"], "--holders is '3,x'; allowed: whole numbers with commas"),
            (["--holders", ""], "--holders is ''"),
            (["--holders", "3,5,3"], "--holders is [3, 5, 3]; allowed: each value once"),
            (["--holders", "721"], "--holders is 721; allowed: 1 to 720: no holder may be empty"),
            (["--holders", "3,721"], "--holders is 721"),
            (["--partition", "nowhere"], "--partition is 'nowhere'"),
            (["--partition", "sex"], "--holders is 3; allowed: at most 2"),
            (["--epsilon", "1", "--epsilon", "-2"], "--epsilon is -2.0; allowed: a positive finite number"),
            (["--epsilon", "nan"], "--epsilon is nan"),
            (["--epsilon", "inf"], "--epsilon is inf"),
            (["--epsilon", "0"], "--epsilon is 0.0"),
            (["--epsilon", "1", "--epsilon", "1.00000001"], "each value once"),
            (["--seeds", "0"], "--seeds is 0; allowed: a whole number from 1 to 10000"),
            (["--seeds", "9999", "--holders", "3,4"], "at most 10000 cells"),
            (["--seed", "-1"], "--seed is -1"),
            (["--seed", str(2**63)], "--seed"),
            (["--jobs", "0"], "--jobs is 0"),
            (["--engine", "warp"], "--engine is 'warp'; allowed: fast, full, flower"),
            (["--canaries", "3"], "--canaries is 3; allowed: a whole number from 16 to"),
            (["--fault", "meteor=1"], "--fault"),
            (["--fault", "drop-mask=0.1"], "--engine full"),
            (["--overlap", "0.2"], "holders_per_person"),
            (["--skew", "0.1"], "--skew"),
        ],
    )
    def test_an_option_that_is_wrong_is_named_with_what_is_allowed(self, folder, tmp_path, options, words):
        line = fails(*command(folder, tmp_path / "out", *options))
        assert words in line
        assert not (tmp_path / "out").exists()

    def test_columns_that_are_not_in_the_file_are_named(self, folder, tmp_path):
        shutil.copy(folder / "study.toml", tmp_path)
        (tmp_path / "people.csv").write_text("amount,late,region\n1,2,north\n")
        assert "column 'bad'" in fails(*command(tmp_path, tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_a_file_that_is_not_there_is_named(self, folder, tmp_path):
        shutil.copy(folder / "study.toml", tmp_path)
        line = fails(*command(tmp_path, tmp_path / "out"))
        assert "people.csv" in line
        assert not (tmp_path / "out").exists()

    def test_held_out_records_of_one_outcome_are_refused(self, folder, tmp_path):
        shutil.copy(folder / "study.toml", tmp_path)
        write_people(tmp_path / "people.csv", rows=40)
        heading, *rows = (tmp_path / "people.csv").read_text().splitlines()
        good = [row for row in rows if row.split(",")[3] == "0"]
        (tmp_path / "people.csv").write_text("\n".join([heading, *good]))
        assert "both outcomes" in fails(*command(tmp_path, tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_a_refused_purpose_ends_with_three_before_anything_is_read(self, folder, tmp_path):
        text = (folder / "study.toml").read_text().replace('"consumer_credit"', '"voting"')
        (tmp_path / "study.toml").write_text(text)
        assert "D02" in fails(*command(tmp_path, tmp_path / "out"), code=3)


class TestFunctions:
    def test_they_load_nothing_before_they_are_used(self):
        script = (
            "import sys, assay.simulations; print(any(n in sys.modules for n in ('numpy', 'torch', 'flwr')))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"

    def test_there_are_five_and_nothing_else_is_made_up(self):
        assert len(simulations.__all__) == 5
        assert all(callable(getattr(simulations, name)) for name in simulations.__all__)
        with pytest.raises(AttributeError, match="make_money"):
            _ = simulations.make_money

    def test_a_report_is_written_again_from_what_is_finished(self, copy):
        (copy / "cells" / "h5-e4-s7.json").unlink()
        written = simulations.write_report(copy)
        assert len(Path(written["csv"]).read_text().splitlines()) == 1 + 3
        with pytest.raises(BadInput, match="run_sweep"):
            simulations.write_report(copy / "cells")

    def test_who_would_hold_what_is_a_row_per_holder(self, folder):
        rows = simulations.split_records(
            folder / "study.toml", folder / "people.csv", holders=4, partition="quantity"
        )
        assert [row["name"] for row in rows] == [f"holder-{number}" for number in (1, 2, 3, 4)]
        assert sum(row["rows"] for row in rows) == 720
        assert rows[0]["rows"] > 2 * rows[3]["rows"]

    def test_a_run_from_python_is_that_of_the_command_and_prints_nothing(self, folder, tmp_path, capfd):
        run = simulations.run_simulation(
            folder / "study.toml", folder / "people.csv", tmp_path / "out", holders=4, epsilon=2
        )
        assert set(run) >= CELL
        assert (run["holders"], run["epsilon"]) == (4, 2)
        assert capfd.readouterr() == ("", "")
        with pytest.raises(BadInput, match="--holders"):
            simulations.run_simulation(
                folder / "study.toml", folder / "people.csv", tmp_path / "no", holders=0
            )

    @pytest.mark.slow
    def test_the_example_runs(self, tmp_path):
        script = Path(__file__).parents[1] / "examples" / "simulate.py"
        done = subprocess.run(
            [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout.count("AUROC") == 6
        assert (tmp_path / "sweep" / "report.html").is_file()


def simulations_scores(laid):
    """Scores that rank by late payments."""

    class Scores:
        probability = laid.test.columns["late"] / 10
        score = (900 - 50 * laid.test.columns["late"]).astype(int)

    return Scores
