"""What a holder sees of its own population stays with it; what leaves is paid for first and noisy."""

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation_support import LOCAL, STUDY, assay, assay_json
from monitor_support import SIGNER, holder_home, people, read_card, write_card, write_csv

from assay.client import enrol, monitor
from assay.client.config import HolderConfig
from assay.client.daemon import AUDIT_FILE, LEDGER_FILE, daemon_books, records_for
from assay.client.monitor import PopulationTally, population_at, release_population
from assay.client.records import Records
from assay.models.bundle import read_bundle
from assay.models.drift import count_file, counted
from assay.models.driftreport import add_reports, read_report
from assay.models.tally import SCORE_BINS, ClippedTally
from assay.privacy import mechanism
from assay.privacy.accounting import mu_of
from assay.privacy.errors import BadInput, Refused
from assay.privacy.keys import Identity, canonical_json
from assay.privacy.ledger import Ledger
from assay.server.publish import publish
from assay.simulations.engine import federate

PERSON = LOCAL + '\n[person]\ncolumn = "person"\n'


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return write_card(tmp_path_factory.mktemp("card") / "card.bundle")


@pytest.fixture(scope="module")
def three_reports(tmp_path_factory, card):
    """Three holders' reports at epsilon 1, made once; tests get copies."""
    root, paths = tmp_path_factory.mktemp("reports"), []
    for seed, name in enumerate(("bank-a", "bank-b", "bank-c")):
        home = holder_home(root, name, *people(1500, seed=seed))
        paths.append(root / f"{name}.json")
        released(home, card, paths[-1], epsilon=1.0)
    return paths


@pytest.fixture
def home(tmp_path):
    return holder_home(tmp_path, "bank-a", *people(1500, seed=1))


def rows_of(home):
    with Ledger.open(home / LEDGER_FILE, Identity.load(home / enrol.IDENTITY_KEY), read_only=True) as ledger:
        return [(row["kind"], row["round"], row["outcome"]) for row in ledger.summary(limits(home)).entries]


def spent(home):
    with Ledger.open(home / LEDGER_FILE, Identity.load(home / enrol.IDENTITY_KEY), read_only=True) as ledger:
        return ledger.summary(limits(home)).spent_epsilon


def limits(home):
    return HolderConfig.load(home).policy.limits


def released(home, card, output, epsilon=0.5):
    return assay_json("client", "monitor", home, card, "--epsilon", epsilon, "--output", output)


class TestAtTheHolder:
    def test_exact_numbers_for_its_own_terminal_and_nothing_is_spent(self, home, card):
        before = sorted(path.name for path in home.iterdir())
        found = assay_json("client", "monitor", home, card)
        assert (found["persons"], found["exact"], found["verdict"]) == (1500, True, "stable")
        assert {each["name"] for each in found["features"]} == {"amount", "late", "region"}
        assert sorted(path.name for path in home.iterdir()) == before
        assert not (home / LEDGER_FILE).exists()
        text = assay("client", "monitor", home, card)
        assert "nothing of it is sent" in text
        assert "stable" in text

    def test_a_population_that_moved_is_seen(self, tmp_path, card):
        moved = holder_home(tmp_path, "bank-b", *people(1500, seed=2, later=2))
        found = assay_json("client", "monitor", moved, card)
        assert found["verdict"] == "moved"
        assert [each["name"] for each in found["features"] if each["verdict"] == "moved"] == ["late"]

    def test_components_that_it_does_not_have_are_skipped_and_named(self, tmp_path, card):
        columns, labels = people(1500, seed=3)
        del columns["late"]
        home = holder_home(tmp_path, "bank-c", columns, labels)
        found = assay_json("client", "monitor", home, card)
        assert [each["name"] for each in found["skipped"]] == ["late"]
        assert "skipped: Late payments" in assay("client", "monitor", home, card)

    def test_each_person_counts_once_however_many_rows(self, tmp_path):
        columns, labels = people(300, seed=4)
        rows = np.repeat(np.arange(300), 1 + np.arange(300) % 5)
        persons = np.array([f"p{each}" for each in rows])
        card = read_bundle(write_card(tmp_path / "person.bundle", text=PERSON))
        several = Records(
            columns={name: values[rows] for name, values in columns.items()},
            labels=labels[rows],
            persons=np.unique(persons, return_inverse=True)[1],
        )
        once = Records(columns=columns, labels=labels)
        # Rows of one person that are all alike: the sum is cut to the length of one.
        own = population_at(card, several)
        assert own.scores.sum() == pytest.approx(300, rel=0.1)
        assert np.abs(own.counts / own.counts.sum() - population_at(card, once).counts / 300 / 4).max() < 0.02

    @pytest.mark.parametrize(
        ("changed", "code", "words"),
        [
            ({"baseline": {}}, 2, "Train the study again"),
            ({"created": 1.0, "expires": 2.0}, 3, "expired"),
            ({"held": ("fairness: n too small",)}, 3, "held back"),
            ({"text": PERSON}, 3, "persons are"),
        ],
    )
    def test_bundles_that_give_no_comparison_are_refused(self, tmp_path, home, changed, code, words):
        card = write_card(tmp_path / "other.bundle", **changed)
        for more in ((), ("--epsilon", 0.5, "--output", tmp_path / "out.json")):
            error = assay("client", "monitor", home, card, *more, code=code)
            assert words in error
            assert len(error.splitlines()) == 1
        assert not (tmp_path / "out.json").exists()

    def test_an_empty_file_is_refused_and_nothing_is_spent(self, tmp_path, home, card):
        (home / "records.csv").write_text("amount,late,region,bad\n")
        assert "at least one record" in assay("client", "monitor", home, card, code=2)
        options = ("--epsilon", 0.5, "--output", tmp_path / "out.json")
        assert "at least one record" in assay("client", "monitor", home, card, *options, code=2)
        assert rows_of(home) == [("reserve", None, None), ("close", None, "aborted")]
        assert spent(home) == 0
        assert not (tmp_path / "out.json").exists()

    @pytest.mark.parametrize("options", [("--epsilon", "0.5"), ("--output", "x.json")])
    def test_epsilon_and_output_go_together(self, home, card, options):
        assert "both or neither" in assay("client", "monitor", home, card, *options, code=2)


class TestTally:
    """One person moves what is released by no more than the noise is made for."""

    def test_rows_are_the_exact_counts(self, tmp_path):
        card = read_card(tmp_path / "card.bundle").scorecard
        encoded = card.grid.encode(people(500, seed=5, missing=0.2)[0])
        tally = PopulationTally(card=card, bins=SCORE_BINS)
        total = np.asarray(tally.rows(card.theta, encoded, np.zeros(500), {}).sum(axis=0)).ravel()
        exact = counted(card, encoded, SCORE_BINS)
        assert total == pytest.approx(np.concatenate([exact.counts, exact.scores]))

    def test_no_row_is_longer_than_the_sensitivity_and_some_use_it_up(self, tmp_path):
        card = read_card(tmp_path / "card.bundle").scorecard
        tally = PopulationTally(card=card, bins=SCORE_BINS)
        columns = people(2000, seed=6)[0]
        columns["amount"][:100] = 0.0  # on a knot: the whole weight in one cell
        rows = tally.rows(card.theta, card.grid.encode(columns), np.zeros(2000), {})
        lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
        assert lengths.max() <= tally.sensitivity + 1e-12
        assert lengths.max() == pytest.approx(math.sqrt(3 + 2))

    @pytest.mark.parametrize("several", [1, 2, 50])
    def test_a_person_of_many_rows_moves_the_sum_by_no_more(self, tmp_path, several):
        card = read_card(tmp_path / "card.bundle").scorecard
        tally = PopulationTally(card=card, bins=SCORE_BINS)
        columns, labels = people(40 + several, seed=7)
        persons = np.concatenate([np.arange(40), np.full(several, 40)])

        def total(rows):
            encoded = card.grid.encode({name: values[:rows] for name, values in columns.items()})
            return ClippedTally(tally, encoded, labels[:rows], persons[:rows], {})(card.theta)

        moved = np.linalg.norm(total(40 + several) - total(40))
        assert 0.5 * tally.sensitivity < moved <= tally.sensitivity


class TestRelease:
    def test_it_is_paid_for_logged_and_signed(self, home, card, tmp_path):
        done = released(home, card, tmp_path / "a.json")
        assert rows_of(home) == [
            ("reserve", None, None), ("charge", 0, None), ("release", 0, None), ("close", None, "done"),
        ]  # fmt: skip
        assert spent(home) == pytest.approx(0.5)
        assert done["epsilon"] == 0.5
        assert assay_json("privacy", "audit", home)["rows"] == 4
        kinds = [json.loads(line)["leaf"]["kind"] for line in (home / AUDIT_FILE).read_text().splitlines()]
        assert kinds == ["start", "policy", "accepted", "release", "closed", "stop"]
        report = read_report(tmp_path / "a.json")
        assert (report.holder, report.bundle) == ("bank-a", read_bundle(card).digest)
        assert report.fingerprint == Identity.load(home / enrol.IDENTITY_KEY).fingerprint
        assert "may leave" in assay(
            "client", "monitor", home, card, "--epsilon", 0.5, "--output", tmp_path / "b.json"
        )

    def test_the_charge_is_on_disk_before_anything_is_computed(self, home, card, tmp_path, monkeypatch):
        seen = []

        def spy(tally, theta):
            seen.append([kind for kind, _, _ in rows_of(home)])
            return summed(tally, theta)

        summed = ClippedTally.__call__
        monkeypatch.setattr(ClippedTally, "__call__", spy)
        released(home, card, tmp_path / "a.json")
        assert seen == [["reserve", "charge"]]

    def test_the_noise_is_what_the_epsilon_stands_for(self, home, card, tmp_path):
        """48 values a report, 20 reports: a chi-square test with a false alarm of 1e-6."""
        from scipy import stats

        settings = home / "client.toml"
        text = settings.read_text().replace("epsilon_per_study = 3.0", "epsilon_per_study = 100.0")
        settings.write_text(text.replace("epsilon_per_year = 6.0", "epsilon_per_year = 100.0"))
        bundle, config = read_bundle(card), HolderConfig.load(home)
        records = records_for(config, bundle.study)
        exact = population_at(bundle, records)
        noise = []
        for number in range(20):
            report = release_population(
                config, enrol.load_keys(home), bundle, epsilon=1.0, output=tmp_path / f"{number}.json",
                load=lambda _: records, clock=time.time,
            )  # fmt: skip
            noise.append(np.concatenate([report.counts - exact.counts, report.scores - exact.scores]))
        promised = math.sqrt(3 + 2) / mu_of(1.0, 1e-6)
        assert report.noise_std == pytest.approx(promised, rel=0.002)
        statistic = float((np.array(noise) ** 2).sum() / promised**2)
        p = 2 * min(stats.chi2.cdf(statistic, 960), stats.chi2.sf(statistic, 960))
        assert p > 1e-6, statistic / 960

    def test_control_without_noise_the_report_is_the_exact_counts(self, home, card, tmp_path, monkeypatch):
        monkeypatch.setattr(mechanism, "discrete_gaussian", lambda size, *_: np.zeros(size, dtype=np.int64))
        released(home, card, tmp_path / "a.json")
        bundle, report = read_bundle(card), read_report(tmp_path / "a.json")
        exact = population_at(bundle, records_for(HolderConfig.load(home), bundle.study))
        assert report.counts == pytest.approx(exact.counts, abs=0.01)
        assert report.scores == pytest.approx(exact.scores, abs=0.01)

    @pytest.mark.parametrize("cap", ["epsilon_per_study = 3.0", "epsilon_per_year = 6.0"])
    def test_over_a_cap_it_is_refused_whole_and_nothing_is_read(self, tmp_path, card, cap):
        key = cap.split()[0]
        policy = [("epsilon_per_study = 3.0", "epsilon_per_study = 1.0")]
        policy += [("epsilon_per_year = 6.0", "epsilon_per_year = 1.0")] if key == "epsilon_per_year" else []
        home = holder_home(tmp_path, "bank-a", *people(1500), policy=policy)
        released(home, card, tmp_path / "a.json", epsilon=0.9)
        before = rows_of(home)
        (home / "records.csv").unlink()  # not looked at
        error = assay(
            "client", "monitor", home, card, "--epsilon", 0.5, "--output", tmp_path / "b.json", code=3
        )
        assert "privacy loss" in error
        assert rows_of(home) == before
        assert not (tmp_path / "b.json").exists()

    @pytest.mark.parametrize(
        ("policy", "words"),
        [
            (("epsilon_per_run = 1.0", "epsilon_per_run = 0.1"), "holder gives"),
            (('trust = ["distributed", "local"]', 'trust = ["distributed"]'), "policy.trust"),
            (('purposes = ["consumer_credit"]', 'purposes = ["microloan"]'), "purpose"),
            (("minimum_persons = 1000", "minimum_persons = 5000"), "minimum_persons"),
        ],
    )
    def test_the_policy_has_the_last_word(self, tmp_path, policy, words):
        card = write_card(tmp_path / "card.bundle", text=STUDY.replace("epsilon = 1.0", "epsilon = 0.05"))
        home = holder_home(tmp_path, "bank-a", *people(1500), policy=[policy])
        error = assay(
            "client", "monitor", home, card, "--epsilon", 0.5, "--output", tmp_path / "b.json", code=3
        )
        assert words in error
        assert not (home / LEDGER_FILE).exists() or spent(home) == 0
        assert not (tmp_path / "b.json").exists()

    @pytest.mark.parametrize("epsilon", ["0", "-1", "nan", "inf"])
    def test_an_epsilon_that_is_none_is_refused(self, home, card, tmp_path, epsilon):
        options = ("--epsilon", epsilon, "--output", tmp_path / "b.json")
        assert "epsilon" in assay("client", "monitor", home, card, *options, code=2)
        assert not (home / LEDGER_FILE).exists()

    def test_an_existing_file_is_not_replaced(self, home, card, tmp_path):
        output = tmp_path / "a.json"
        released(home, card, output)
        before = output.read_bytes()
        assay("client", "monitor", home, card, "--epsilon", 0.5, "--output", output, code=2)
        assert output.read_bytes() == before
        assert spent(home) == pytest.approx(0.5)

    def test_a_bundle_of_another_federation_is_refused(self, home, card, tmp_path, monkeypatch):
        (home / enrol.JOIN_FILE).write_text("")

        class Joined:
            coordinator_public = SIGNER.public
            fingerprint = SIGNER.fingerprint

        monkeypatch.setattr(monitor, "load_join", lambda _: Joined)
        released(home, card, tmp_path / "a.json")
        other = write_card(tmp_path / "other.bundle", identity=Identity.generate())
        error = assay(
            "client", "monitor", home, other, "--epsilon", 0.5, "--output", tmp_path / "b.json", code=3
        )
        assert "federation" in error

    def test_a_person_at_several_holders_keeps_the_promise(self, tmp_path, home):
        text = LOCAL.replace("[privacy]", "[privacy]\nholders_per_person = 4")
        card = write_card(tmp_path / "several.bundle", text=text)
        done = released(home, card, tmp_path / "a.json", epsilon=1.0)
        assert done["noise_std"] == pytest.approx(2 * math.sqrt(5) / mu_of(1.0, 1e-6), rel=0.002)
        assert spent(home) < 0.6

    def test_it_waits_for_no_daemon_that_holds_the_books(self, home, card, tmp_path):
        import threading

        identity = Identity.load(home / enrol.IDENTITY_KEY)
        with daemon_books(home, identity, threading.Event()):
            error = assay(
                "client", "monitor", home, card, "--epsilon", 0.5, "--output", tmp_path / "a.json", code=1
            )
        assert "another process" in error


class TestReports:
    @pytest.fixture
    def reports(self, tmp_path, three_reports):
        return [Path(shutil.copy(path, tmp_path)) for path in three_reports]

    def test_they_are_added_and_the_same_population_is_stable(self, card, reports):
        found = assay_json("model", "monitor", card, *reports)
        assert (found["exact"], found["verdict"]) == (False, "stable")
        assert [each["holder"] for each in found["reports"]] == ["bank-a", "bank-b", "bank-c"]
        read = [read_report(path) for path in reports]
        assert found["noise_std"]["counts"] == pytest.approx(read[0].noise_std * math.sqrt(3))
        added = add_reports(read_bundle(card), read)
        assert added.counts.tolist() == pytest.approx(np.sum([each.counts for each in read], axis=0).tolist())
        text = assay("model", "monitor", card, *reports)
        assert read[0].fingerprint in text
        assert "stable" in text

    def test_drift_is_seen_through_the_noise(self, tmp_path, card):
        paths = []
        for seed, name in enumerate(("bank-a", "bank-b")):
            home = holder_home(tmp_path, name, *people(1500, seed=seed, later=2))
            paths.append(tmp_path / f"{name}.json")
            released(home, card, paths[-1], epsilon=1.0)
        found = assay_json("model", "monitor", card, *paths)
        assert [each["name"] for each in found["features"] if each["verdict"] == "moved"] == ["late"]

    def test_with_too_much_noise_it_says_so(self, tmp_path, card, home):
        released(home, card, tmp_path / "a.json", epsilon=0.02)
        found = assay_json("model", "monitor", card, tmp_path / "a.json")
        assert found["verdict"] == "too noisy to say"
        assert "too noisy to say" in assay("model", "monitor", card, tmp_path / "a.json")

    def test_a_report_about_another_bundle_is_refused(self, tmp_path, card, reports):
        other = write_card(tmp_path / "other.bundle", late=0.2)
        assert "another bundle" in assay("model", "monitor", other, *reports, code=3)

    def test_one_holder_counts_once(self, card, reports, tmp_path):
        again = tmp_path / "again.json"
        again.write_bytes(reports[0].read_bytes())
        assert "one report per holder" in assay("model", "monitor", card, *reports, again, code=3)

    def test_one_key_under_two_names_counts_once(self, card, reports):
        read = [read_report(path) for path in reports[:2]]
        with pytest.raises(Refused, match="one report per holder"):
            add_reports(read_bundle(card), [read[0], replace(read[1], key=read[0].key)])

    @pytest.mark.parametrize(
        "name", ["counts", "scores", "noise_std", "holder", "bundle", "created", "epsilon"]
    )
    def test_a_changed_field_does_not_verify(self, card, reports, name):
        document = json.loads(reports[0].read_text())
        value = document["report"][name]
        changed = {"holder": "bank-z", "bundle": "0" * 64}
        document["report"][name] = (
            [value[0] + 1, *value[1:]] if isinstance(value, list) else changed.get(name) or value * 2
        )
        reports[0].write_bytes(canonical_json(document))
        assert "does not verify" in assay("model", "monitor", card, reports[0], code=1)

    @pytest.mark.parametrize(
        "change",
        [
            lambda body: body.pop("noise_std"),
            lambda body: body.update(more=1),
            lambda body: body.update(noise_std=0),
            lambda body: body.update(noise_std=True),
            lambda body: body.update(counts=[10**400]),
            lambda body: body.update(counts={"a": 1}),
            lambda body: body.update(counts=["x"]),
            lambda body: body.update(holder="Coordinator!"),
            lambda body: body.update(key="zz"),
            lambda body: body.update(study=3),
            lambda body: body.update(format="assay-drift-2"),
        ],
    )
    def test_what_is_no_report_is_refused_in_one_line(self, card, reports, change):
        document = json.loads(reports[0].read_text())
        change(document["report"])
        reports[0].write_bytes(canonical_json(document))
        assert len(assay("model", "monitor", card, reports[0], code=2).splitlines()) == 1

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b"{", b"\xff", b'{"report": {}, "signature": "x"}', b"[" * 99999]
    )
    def test_any_other_file_is_refused(self, card, tmp_path, content):
        path = tmp_path / "x.json"
        path.write_bytes(content)
        assay("model", "monitor", card, path, code=2)

    def test_counts_of_another_length_are_refused(self, card, reports):
        report = read_report(reports[0])
        with pytest.raises(BadInput, match="counts"):
            add_reports(read_bundle(card), [replace(report, counts=report.counts[:-1])])


class TestFile:
    """A relying party's own file."""

    def test_it_says_what_the_holder_of_the_same_records_sees(self, home, card):
        mine, theirs = (
            assay_json("client", "monitor", home, card),
            assay_json("model", "monitor", card, "--input", home / "records.csv"),
        )
        assert theirs["rows"] == 1500
        assert theirs["features"] == mine["features"]
        assert theirs["score"] == mine["score"]

    def test_pieces_add_up_to_the_whole(self, tmp_path, card, monkeypatch):
        import pyarrow.csv
        import pyarrow.parquet

        from assay.models import tabular

        source = write_csv(tmp_path / "a.csv", people(3000, seed=9, missing=0.1)[0])
        bundle = read_bundle(card)
        whole, columns, rows = count_file(bundle, source, bins=SCORE_BINS)
        small = tmp_path / "a.parquet"
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(source), small)
        monkeypatch.setattr(tabular, "_BATCH_ROWS", 700)
        pieces, same, counted_rows = count_file(bundle, small, bins=SCORE_BINS)
        assert (same, counted_rows, rows) == (columns, rows, 3000)
        assert pieces.counts == pytest.approx(whole.counts)
        assert pieces.scores.tolist() == whole.scores.tolist()

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("amount,late\n", "at least one record"),
            ("other\n1\n", "at least one of the study's"),
            ("amount\nx\n", "row 1"),
        ],
    )
    def test_bad_files_are_refused(self, card, tmp_path, content, words):
        path = tmp_path / "a.csv"
        path.write_text(content)
        assert words in assay("model", "monitor", card, "--input", path, code=2)

    def test_reports_or_a_file_and_not_both(self, card, home):
        assert "exactly one" in assay("model", "monitor", card, code=2)
        assert "exactly one" in assay(
            "model", "monitor", card, "x.json", "--input", home / "records.csv", code=2
        )


class TestCompareAtTheHolder:
    def test_it_gives_what_the_file_gives_and_nothing_is_spent(self, tmp_path, home, card):
        other = write_card(tmp_path / "other.bundle", late=0.1)
        mine = assay_json("client", "compare", home, card, other)
        theirs = assay_json("model", "compare", card, other, "--input", home / "records.csv")
        assert mine == {**theirs, "too_old_rows": 0}
        assert not (home / LEDGER_FILE).exists()
        assert "nothing of it is sent" in assay("client", "compare", home, card, other)

    def test_studies_with_other_features_and_other_kinds_are_compared_row_by_row(self, tmp_path, home, card):
        """The challenger reads late payments as text, has no region, and knows a feature of its own."""
        text = LOCAL.replace(
            'kind = "integer"\ndomain = [0, 6]\nrisk_trend = "rises"',
            'kind = "categorical"\nlevels = ["0", "1", "2", "3", "4", "5", "6"]',
        )
        text = text.replace('name = "region"\ncolumn = "region"', 'name = "late_2"\ncolumn = "extra"')
        assert text.count("categorical") == 2
        other = write_card(tmp_path / "other.bundle", text=text)
        (home / "records.csv").write_text(
            "\n".join(
                line + (",extra" if number == 0 else f",{'north' if number % 2 else 'south'}")
                for number, line in enumerate((home / "records.csv").read_text().splitlines())
            )
        )
        for pair in ((card, other), (other, card)):
            mine = assay_json("client", "compare", home, *pair)
            theirs = assay_json("model", "compare", *pair, "--input", home / "records.csv")
            assert mine == {**theirs, "too_old_rows": 0}

    def test_another_purpose_is_refused(self, tmp_path, home, card):
        text = LOCAL.replace("consumer_credit", "fraud_detection").replace('"card"', '"payment"')
        other = write_card(tmp_path / "other.bundle", text=text)
        assert "(D08)" in assay("client", "compare", home, card, other, code=3)

    def test_no_outcome_is_refused(self, tmp_path, home, card):
        write_csv(home / "records.csv", people(100)[0])
        assert "'bad'" in assay("client", "compare", home, card, card, code=2)

    def test_one_class_is_refused(self, tmp_path, home, card):
        write_csv(home / "records.csv", people(100)[0], np.zeros(100))
        assert "both 0 and 1" in assay("client", "compare", home, card, card, code=2)

    def test_rows_of_one_person_are_taken_together(self, tmp_path):
        columns, labels = people(600, seed=3)
        rows, names = np.repeat(np.arange(600), 3), np.repeat([f"p{i}" for i in range(600)], 3)
        repeated = {name: values[rows] for name, values in columns.items()}
        several = holder_home(tmp_path, "bank-a", repeated, labels[rows], persons=names)
        once = holder_home(tmp_path, "bank-b", columns, labels)
        person = [
            write_card(tmp_path / f"p{i}.bundle", text=PERSON, late=late) for i, late in enumerate((0.6, 0.1))
        ]
        plain = [write_card(tmp_path / f"q{i}.bundle", late=late) for i, late in enumerate((0.6, 0.1))]
        a = assay_json("client", "compare", several, *person)["auroc_difference"]
        b = assay_json("client", "compare", once, *plain)["auroc_difference"]
        assert a["std_error"] == pytest.approx(b["std_error"])


@pytest.mark.slow
class TestTrainedBundle:
    """The baseline of a real run: counts from its round 0, scores from its last audit."""

    def test_the_population_it_was_trained_on_is_stable_and_another_is_not(self, tmp_path):
        parts = {name: people(3000, seed=seed) for seed, name in enumerate(("bank-a", "bank-b", "bank-c"))}
        held = {name: Records(columns=columns, labels=labels) for name, (columns, labels) in parts.items()}
        done = federate(LOCAL.replace("rounds = 40", "rounds = 4"), held)
        card = tmp_path / "trained.bundle"
        publish(card, study=done.study, trained=done.trained, identity=done.identity, created=time.time())
        for later, verdict in ((0, "stable"), (2, "moved")):
            paths = []
            for seed, name in enumerate(parts):
                home = holder_home(tmp_path / str(later), name, *people(3000, seed, later=later))
                exact = assay_json("client", "monitor", home, card)
                assert exact["verdict"] == verdict, exact
                paths.append(tmp_path / f"{name}-{later}.json")
                released(home, card, paths[-1], epsilon=1.0)
            assert assay_json("model", "monitor", card, *paths)["verdict"] == verdict
