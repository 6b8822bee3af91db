"""Each of the eight refusals at study check and at scoring: code and article on the screen and in the log."""

from __future__ import annotations

import resource
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from federation_support import LOCAL, STUDY, assay, assay_json, write_records
from typer.testing import CliRunner

from assay.privacy import refusals
from assay.privacy.errors import Refused
from assay.privacy.packfile import load_pack
from assay.privacy.purpose import PACK
from assay.privacy.refusals import by_policy, log_file, prune, read, record
from assay.privacy.terminal import command
from assay.simulations.main import build

DAY = 86_400
NOW = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
# What a study asks for, and which code refuses it: by purpose, by context and by input.
STUDIES = [
    ("D01", '"consumer_credit"', '"general_trustworthiness"'),
    ("D01", '"consumer_credit"', '["consumer_credit", "microloan"]'),
    ("D02", '"consumer_credit"', '"voting"'),
    ("D02", '["card"]', '["travel-visa"]'),
    ("D03", '"consumer_credit"', '"reuse"'),
    ("D04", '"consumer_credit"', '"predictive_policing"'),
    ("D05", '"consumer_credit"', '"health"'),
    ("D05", 'column = "late"', 'column = "AGE"'),
    ("D06", '"consumer_credit"', '"blacklist"'),
    ("D07", '"consumer_credit"', '"personalised_pricing"'),
    ("D08", '"consumer_credit"', '"fraud_as_credit"'),
    ("purpose", '"consumer_credit"', '"consumer_credits"'),
]
SCORES = [
    ("D01", ["--purpose", "social_score"]),
    ("D02", ["--purpose", "immigration"]),
    ("D02", ["--purpose", "consumer_credit", "--context", "visa"]),
    ("D03", ["--purpose", "microloan"]),
    ("D03", ["--purpose", "consumer_credit", "--context", "rental"]),
    ("D04", ["--purpose", "recidivism"]),
    ("D05", ["--purpose", "social_graph"]),
    ("D06", ["--purpose", "watchlist"]),
    ("D07", ["--purpose", "dynamic_pricing"]),
    ("D08", ["--purpose", "fraud_detection"]),
    ("purpose", ["--purpose", "anything_else"]),
]


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "study.toml").write_text(LOCAL.replace("rounds = 40", "rounds = 8"))
    write_records(folder / "records.csv", rows=900)
    made = assay_json(
        "simulate", folder / "study.toml", "--data", folder / "records.csv", "--out", folder / "out"
    )
    return folder, made["bundle"]


def invoke(*arguments):
    return CliRunner().invoke(build(), [str(a) for a in arguments], catch_exceptions=False)


def refusal(code="D03", subject="purpose 'x'", pack=PACK.name):
    return Refused("no", code=code, article="Art. 5", subject=subject, pack=pack)


def the_entry(done, code, path):
    """Check that a command was refused with ``code``, on the screen and in the log; return the entry."""
    assert done.exit_code == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    (entry,) = read().entries
    assert (entry["code"], entry["command"], entry["pack"]) == (code, f"assay {path}", PACK.name)
    if code != "purpose":
        assert f"({code})" in done.stderr
        assert entry["article"]
        assert f"[{entry['article']}]" in done.stderr
    return entry


class TestTheEight:
    @pytest.mark.parametrize(("code", "old", "new"), STUDIES)
    def test_at_study_check(self, tmp_path, code, old, new):
        (tmp_path / "s.toml").write_text(STUDY.replace(old, new, 1))
        entry = the_entry(invoke("study", "check", tmp_path / "s.toml"), code, "study check")
        if "AGE" in new:
            assert entry["subject"] == "input 'AGE'"
            assert entry["article"] != PACK.refusal("D05").article  # that of its own entry in the pack
        elif code != "purpose":
            assert entry["article"] == PACK.refusal(code).article

    @pytest.mark.parametrize(("code", "options"), SCORES)
    def test_at_scoring(self, trained, tmp_path, code, options):
        folder, bundle = trained
        target = tmp_path / "scores.csv"
        done = invoke(
            "model", "score", bundle, "--input", folder / "records.csv", "--output", target, *options
        )
        entry = the_entry(done, code, "model score")
        assert options[-1] in entry["subject"]
        assert not target.exists()

    def test_an_audited_attribute_as_an_input_is_a_refusal_and_no_slip_of_the_pen(self, tmp_path):
        text = STUDY.replace('column = "late"', 'column = "SEX"') + '[fairness]\ncolumns = ["SEX"]\n'
        (tmp_path / "s.toml").write_text(text)
        the_entry(invoke("study", "check", tmp_path / "s.toml"), "D05", "study check")

    def test_both_lists_try_all_eight(self):
        codes = {*(f"D0{number}" for number in range(1, 9)), "purpose"}
        assert {code for code, *_ in STUDIES} == {code for code, _ in SCORES} == codes

    def test_a_refusal_under_another_pack_is_logged_with_its_name_and_article(self, tmp_path):
        text = STUDY.replace('"consumer_credit"', '"pricing"\npack = "cn-2022-01-01"')
        (tmp_path / "s.toml").write_text(text)
        assert "[PIPL Art. 24]" in assay("study", "check", tmp_path / "s.toml", code=3)
        (entry,) = read().entries
        assert (entry["pack"], entry["article"]) == ("cn-2022-01-01", "PIPL Art. 24")

    def test_a_holder_that_does_not_allow_a_purpose_logs_it_too(self, tmp_path):
        home = tmp_path / "bank"
        assay("client", "init", home, "--name", "bank")
        (tmp_path / "s.toml").write_text(STUDY.replace("consumer_credit", "microloan"))
        assay("client", "check", home, tmp_path / "s.toml", code=3)
        (entry,) = read().entries
        assert (entry["code"], entry["subject"]) == ("purpose", "purpose 'microloan'")


class TestWhatIsLogged:
    def test_a_line_is_exactly_its_six_fields(self):
        record(refusal(), "assay model score", clock=lambda: NOW + 0.9)
        assert log_file().read_bytes() == (
            b'{"time": "2027-01-01T00:00:00Z", "command": "assay model score", "code": "D03",'
            b' "article": "Art. 5", "subject": "purpose \'x\'", "pack": "eu-2026-11-20"}\n'
        )

    @pytest.mark.parametrize("code", ["budget", "policy", "expired", "holders", "D00", "D09", "", "d01"])
    def test_what_no_policy_pack_refuses_is_not_logged(self, code):
        @command
        def work() -> None:
            raise refusal(code)

        with pytest.raises(Exception, match="3"):
            work()
        assert not by_policy(refusal(code))
        assert not log_file().exists()

    def test_bad_input_is_not_logged(self, tmp_path):
        (tmp_path / "s.toml").write_text(STUDY.replace("epsilon = 1.0", "epsilon = -1"))
        assay("study", "check", tmp_path / "s.toml", code=2)
        assert not log_file().exists()

    def test_neither_arguments_nor_file_names_nor_cells_are_in_it(self, trained, tmp_path):
        _, bundle = trained
        (tmp_path / "customer-4711.csv").write_text("amount,late\n0815,3\n")
        assay("model", "score", bundle, "--input", tmp_path / "customer-4711.csv", "--output",
              tmp_path / "out.csv", "--purpose", "microloan", code=3)  # fmt: skip
        text = log_file().read_text()
        assert not any(private in text for private in ("4711", "0815", "customer", str(tmp_path)))

    def test_a_long_or_odd_subject_stays_one_short_line(self):
        record(refusal(subject="purpose '" + "ü\n\0" * 5000), "assay")
        assert len(log_file().read_bytes().splitlines()) == 1
        assert log_file().stat().st_size < 2000
        (entry,) = read().entries
        assert len(entry["subject"]) == refusals.MAX_SUBJECT


class TestTheFile:
    def test_it_is_its_owners_only(self, state):
        record(refusal(), "assay")
        assert stat.S_IMODE(log_file().stat().st_mode) == 0o600
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        log_file().chmod(0o644)
        record(refusal(), "assay")
        assert stat.S_IMODE(log_file().stat().st_mode) == 0o600
        assert len(read().entries) == 2

    def test_where_it_lies(self, monkeypatch, tmp_path):
        monkeypatch.setenv("ASSAY_STATE", "/a")
        monkeypatch.setenv("XDG_STATE_HOME", "/b")
        monkeypatch.setenv("HOME", "/c")
        assert log_file() == Path("/a/refusals.jsonl")
        monkeypatch.setenv("ASSAY_STATE", "")
        assert log_file() == Path("/b/assay/refusals.jsonl")
        monkeypatch.setenv("XDG_STATE_HOME", "relative")
        assert log_file() == Path("/c/.local/state/assay/refusals.jsonl")
        monkeypatch.delenv("XDG_STATE_HOME")
        assert log_file() == Path("/c/.local/state/assay/refusals.jsonl")

    def test_what_a_crash_cut_off_does_not_swallow_the_next_line(self):
        record(refusal("D01"), "assay")
        with log_file().open("ab") as file:
            file.write(b'{"time": "2027-01-')
        record(refusal("D02"), "assay")
        found = read()
        assert [entry["code"] for entry in found.entries] == ["D01", "D02"]
        assert found.unreadable == 1

    @pytest.mark.parametrize(
        "line",
        [b"{}", b"[]", b"7", b"null", b"\xff", b"[" * 100_000,
         b'{"time": "soon", "command": "", "code": "", "article": "", "subject": "", "pack": ""}',
         b'{"time": 7, "command": "", "code": "", "article": "", "subject": "", "pack": ""}'],
        ids=range(8),
    )  # fmt: skip
    def test_a_line_that_is_no_entry_is_counted_and_kept(self, state, line):
        state.mkdir()
        log_file().write_bytes(line + b"\n")
        assert (read().entries, read().unreadable) == ((), 1)
        assert prune(clock=lambda: NOW + 10_000 * DAY) == 0
        assert log_file().read_bytes() == line + b"\n"

    def test_a_full_disk_leaves_it_as_it_was(self, state):
        record(refusal("D01"), "assay")
        before = log_file().read_bytes()
        code = (
            "import resource\n"
            "from assay.privacy.errors import Refused\n"
            "from assay.privacy.refusals import record\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 20}, {resource.RLIM_INFINITY}))\n"
            "try:\n"
            "    record(Refused('no', code='D02'), 'assay')\n"
            "except OSError as error:\n"
            "    print(error.errno)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip().isdigit(), done
        assert log_file().read_bytes() == before

    def test_many_commands_at_once_lose_no_line_even_while_old_ones_are_dropped(self):
        for _ in range(5):
            record(refusal(), "old", clock=lambda: NOW)
        code = (
            "import sys\n"
            "from assay.privacy.errors import Refused\n"
            "from assay.privacy.refusals import prune, record\n"
            "for _ in range(30):\n"
            f"    record(Refused('no', code='D02', pack='{PACK.name}'), sys.argv[1],"
            f" clock=lambda: {NOW} + 1000 * {DAY})\n"
            f"    prune(clock=lambda: {NOW} + 1000 * {DAY})\n"
        )
        started = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for number in range(3)]
        assert [process.wait(timeout=60) for process in started] == [0, 0, 0]
        found = read()
        assert found.unreadable == 0
        assert sorted(entry["command"] for entry in found.entries) == sorted(["0", "1", "2"] * 30)


class TestALogThatCannotBeWritten:
    def test_the_refusal_stays_a_refusal_and_it_is_said(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("ASSAY_STATE", str(tmp_path / "file" / "state"))
        (tmp_path / "s.toml").write_text(STUDY.replace("consumer_credit", "voting"))
        done = invoke("study", "check", tmp_path / "s.toml")
        assert done.exit_code == 3
        assert done.stdout == ""
        first, second = done.stderr.splitlines()
        assert "(D02)" in first
        assert second.startswith("this refusal is missing from the log of refusals: ")
        assert str(tmp_path / "file") in second

    def test_a_held_lock_ends_after_a_while(self, state, monkeypatch):
        record(refusal(), "assay")
        monkeypatch.setattr(refusals, "_LOCK_TRIES", 3)
        with refusals._locked(state), pytest.raises(BlockingIOError):
            record(refusal(), "assay")
        assert len(read().entries) == 1


class TestRetention:
    def test_each_entry_is_kept_as_long_as_its_pack_says_and_an_unknown_one_longest(self):
        europe, china = (load_pack(name).retention["refusals"].days for name in (PACK.name, "cn-2022-01-01"))
        assert europe < china
        for pack in (PACK.name, "cn-2022-01-01", "gone-2000-01-01", ""):
            record(refusal(pack=pack), "assay", clock=lambda: NOW)
        assert prune(clock=lambda: NOW + europe * DAY) == 0
        assert prune(clock=lambda: NOW + europe * DAY + 1) == 1
        assert {entry["pack"] for entry in read().entries} == {"cn-2022-01-01", "gone-2000-01-01", ""}
        assert prune(clock=lambda: NOW + china * DAY + 1) == 3
        assert log_file().read_bytes() == b""
        assert stat.S_IMODE(log_file().stat().st_mode) == 0o600

    def test_the_command_shows_the_log_and_drops_what_is_too_old(self, tmp_path):
        assert assay_json("privacy", "refusals")["entries"] == []
        record(refusal("D01"), "assay old", clock=lambda: 0)
        (tmp_path / "s.toml").write_text(STUDY.replace("consumer_credit", "voting"))
        assay("study", "check", tmp_path / "s.toml", code=3)
        result = assay_json("privacy", "refusals")
        (entry,) = result["entries"]
        assert (entry["code"], entry["subject"], result["dropped"]) == ("D02", "purpose 'voting'", 1)
        assert result["file"] == str(log_file())
        text = assay("privacy", "refusals")
        assert "assay study check: purpose 'voting' [" in text
        assert "1 refusals in" in text


def test_a_refusal_keeps_what_it_is_about_when_its_place_is_added():
    placed = refusal().at("s.toml:3")
    assert str(placed) == "s.toml:3: no"
    assert vars(placed) == vars(refusal())
