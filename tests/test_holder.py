"""A holder: what it declines costs nothing, what it accepts costs what was promised, and never twice."""

import contextlib
import math
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from scipy import stats
from toy_study import (
    FEATURES,
    GRID,
    LAST,
    OTHER_RUN,
    ROUNDS,
    RUN,
    STUDY,
    SUMMED,
    TEXT,
    counts,
    gradient,
    holder,
    offer,
    policy,
    records,
    sizes,
)

from assay.client.records import Records
from assay.client.training import LocalTraining
from assay.models.label import mechanism_of, privacy_target
from assay.privacy import mechanism, noise
from assay.privacy.accounting import COUNTS_SHARE, TALLIES, RunCost, mu2_of
from assay.privacy.errors import AssayError, BadData, BadInput, Refused
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger
from assay.privacy.messages import (
    MODEL_VERSION,
    Accepted,
    Close,
    Closed,
    Release,
)

COST = RunCost.of(privacy_target(STUDY))
IDENTITY = Identity.generate()
LIMITS = policy().limits


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    with Ledger.open(path, IDENTITY) as opened:
        yield opened


@pytest.fixture
def north(tmp_path, ledger):
    return holder(tmp_path, ledger=ledger)


@pytest.fixture
def no_noise(monkeypatch):
    """Inside a test, and only there, releases carry no noise."""
    monkeypatch.setattr(mechanism, "discrete_gaussian", lambda size, *_: np.zeros(size, dtype=np.int64))


def entries(ledger, kind=None):
    return [entry for entry in ledger.summary(LIMITS).entries if kind in (None, entry["kind"])]


def refusal(north, question):
    with pytest.raises(Refused) as caught:
        north.answer(question)
    return caught.value.code


def play(north, *, rounds=ROUNDS, run=RUN, text=TEXT):
    """Ask for a whole run and return its releases."""
    assert isinstance(north.answer(offer(text, run)), Accepted)
    releases = [north.answer(counts(run))]
    after = range(1, rounds + TALLIES + 1)
    return releases + [north.answer(gradient(r, rounds=rounds, run=run)) for r in after]


class TestOffers:
    @pytest.mark.parametrize(
        ("changed", "code"),
        [
            ({"purposes": ("microloan",)}, "purpose"),
            ({"components": ("spending", "payment_history")}, "components"),
            ({"epsilon_per_run": 1.9}, "epsilon"),
            ({"delta": 1e-7}, "delta"),
            ({"minimum_persons": 601}, "data"),
        ],
    )
    def test_an_offer_beyond_the_policy_is_refused_and_costs_nothing(self, tmp_path, ledger, changed, code):
        north = holder(tmp_path, ledger=ledger, rules=policy(**changed))
        assert refusal(north, offer()) == code
        assert entries(ledger) == []
        assert refusal(north, counts()) == "unknown"
        assert list((tmp_path / "home-north" / "accepted").glob("*.toml")) == []

    @pytest.mark.parametrize(("text", "allowed"), [(TEXT, "distributed"), (SUMMED, "local")])
    def test_an_offer_under_another_trust_than_the_policy_allows_is_refused(
        self, tmp_path, ledger, text, allowed
    ):
        north = holder(tmp_path, ledger=ledger, rules=policy(trust=(allowed,)))
        assert refusal(north, offer(text)) == "trust"
        assert entries(ledger) == []

    def test_a_study_beyond_the_budget_is_refused_whole(self, north, ledger):
        play(north)
        north.answer(Close(run=RUN, outcome="done"))
        before = entries(ledger)
        again = TEXT.replace("epsilon = 2.0", "epsilon = 0.5").replace('"toy"', '"toy-2"')
        assert refusal(north, offer(again, OTHER_RUN)) == "budget"
        assert entries(ledger) == before
        assert refusal(north, counts(OTHER_RUN)) == "unknown"

    @pytest.mark.parametrize("version", [0, MODEL_VERSION - 1, MODEL_VERSION + 1])
    def test_an_offer_of_another_version_of_models_is_refused_before_anything_is_read(
        self, tmp_path, ledger, version
    ):
        """Its sums would be of other cells, rounds and noise than the coordinator reckons with."""
        north = holder(tmp_path, ledger=ledger, load=lambda study: pytest.fail("the records were read"))
        assert refusal(north, replace(offer(), version=version)) == "version"
        assert entries(ledger) == []

    def test_the_components_that_a_holder_states_are_those_of_its_columns(self, tmp_path):
        """Not of what stands in them: a column without any value is a column."""
        whole = records()
        empty = {name: values.copy() for name, values in whole.columns.items()}
        empty["DELAY"][:] = np.nan
        fewer = {name: values for name, values in whole.columns.items() if name in ("INCOME", "HOUSE")}
        for name, columns, pattern in (("a", empty, 0b111), ("b", fewer, 0b011)):
            data = Records(columns=columns, labels=whole.labels)
            assert holder(tmp_path, data=data, name=name).answer(offer()).pattern == pattern

    @pytest.mark.parametrize("text", ["", "[study", TEXT.replace("domain = [0, 10]", "domain = [10, 0]")])
    def test_what_is_not_a_study_is_refused(self, north, ledger, text):
        with pytest.raises(BadInput):
            north.answer(offer(text))
        assert entries(ledger) == []

    def test_bad_records_are_refused_before_anything_is_reserved(self, tmp_path, ledger):
        def load(_):
            raise BadData("row 7, column 'INCOME'", value="abc", allowed="a number")

        with pytest.raises(BadData):
            holder(tmp_path, ledger=ledger, load=load).answer(offer())
        assert entries(ledger) == []

    def test_minimum_persons_counts_persons_and_not_rows(self, tmp_path, ledger):
        few = records(600, persons=np.arange(600) % 9)
        north = holder(tmp_path, ledger=ledger, data=few, rules=policy(minimum_persons=10))
        assert refusal(north, offer()) == "data"

    def test_accepting_reserves_exactly_the_cost_of_the_run_and_spends_nothing(self, north, ledger):
        assert isinstance(north.answer(offer()), Accepted)
        assert ledger.summary(LIMITS).spent_epsilon == 0
        reserved = ledger.summary(LIMITS).reserved_epsilon
        assert 2.0 * (1 - 1e-6) <= reserved <= 2.0
        assert {entry["kind"] for entry in entries(ledger)} == {"reserve"}

    def test_the_same_offer_twice_is_reserved_once(self, north, ledger):
        north.answer(offer())
        before = entries(ledger)
        assert isinstance(north.answer(offer()), Accepted)
        assert entries(ledger) == before

    def test_another_study_under_an_accepted_run_is_refused(self, north, ledger):
        north.answer(offer())
        first = north.answer(counts())
        without_house = TEXT.replace('levels = ["own", "rent"]', 'levels = ["own"]')
        assert refusal(north, offer(without_house)) == "changed"
        assert np.array_equal(north.answer(counts()).values, first.values)
        assert north.answer(gradient()).values.size == GRID.width

    def test_a_new_offer_ends_what_the_coordinator_abandoned(self, tmp_path, ledger):
        north = holder(tmp_path, ledger=ledger)
        north.answer(offer())
        north.answer(offer(run=OTHER_RUN))
        assert ledger.open_runs() == (OTHER_RUN,)
        assert refusal(north, counts(RUN)) == "unknown"
        assert north.answer(counts(OTHER_RUN)).round == 0

    def test_an_offer_that_is_declined_leaves_the_open_run_alone(self, north, ledger):
        north.answer(offer())
        assert refusal(north, offer(TEXT.replace("epsilon = 2.0", "epsilon = 3.0"), OTHER_RUN)) == "epsilon"
        assert ledger.open_runs() == (RUN,)
        assert north.answer(counts()).round == 0

    def test_only_questions_are_answered(self, north):
        assert refusal(north, Closed(run=RUN)) == "invalid"


class TestWhoAPersonIs:
    """The privacy unit is the holder's to say; a coordinator could leave the column out."""

    PERSON = '\n[person]\ncolumn = "PERSON"\n'

    def test_a_study_without_the_person_column_is_refused(self, tmp_path, ledger):
        north = holder(tmp_path, ledger=ledger, person="PERSON")
        assert refusal(north, offer()) == "person"
        assert entries(ledger) == []

    def test_a_study_with_another_person_column_is_refused(self, tmp_path, ledger):
        north = holder(tmp_path, ledger=ledger, person="PERSON")
        assert refusal(north, offer(TEXT + self.PERSON.replace("PERSON", "ROWID"))) == "person"

    def test_a_study_that_groups_rows_of_different_persons_is_refused(self, tmp_path, ledger):
        assert refusal(holder(tmp_path, ledger=ledger), offer(TEXT + self.PERSON)) == "person"

    def test_the_holders_own_column_is_accepted(self, tmp_path, ledger):
        north = holder(tmp_path, ledger=ledger, person="PERSON")
        assert north.answer(offer(TEXT + self.PERSON)).run == RUN


class TestTries:
    """Whether a study fits the records is a bit about them; a coordinator gets few of those a day."""

    @staticmethod
    def variant(number):
        return offer(TEXT + f"# {number}\n", run=f"{number:032x}")

    def test_different_studies_are_tried_so_many_times_a_day_and_no_more(self, tmp_path, ledger):
        now = [1e9]
        read = []

        def load(study):
            read.append(study.digest)
            return records()

        north = holder(
            tmp_path, ledger=ledger, rules=policy(new_studies_per_day=3), load=load, clock=lambda: now[0]
        )
        for number in range(3):
            assert north.answer(self.variant(number)).run
        assert refusal(north, self.variant(3)) == "later"
        assert len(read) == 3  # the records were not looked at
        assert north.answer(offer(self.variant(1).study, run="f" * 32)).run  # the same text is no new try
        now[0] += 86_401
        assert north.answer(self.variant(3)).run

    def test_a_restart_or_a_clock_set_back_gives_no_new_tries(self, tmp_path, ledger):
        rules = policy(new_studies_per_day=1)
        holder(tmp_path, ledger=ledger, rules=rules, clock=lambda: 1e9).answer(self.variant(1))
        again = holder(tmp_path, ledger=ledger, rules=rules, clock=lambda: 1e9 - 90_000)
        assert refusal(again, self.variant(2)) == "later"

    def test_a_study_the_policy_refuses_is_no_try(self, tmp_path, ledger):
        north = holder(tmp_path, ledger=ledger, rules=policy(new_studies_per_day=1), person=None)
        assert refusal(north, offer(TEXT + TestWhoAPersonIs.PERSON)) == "person"
        assert north.answer(offer()).run == RUN


class TestRounds:
    def test_a_whole_run_spends_what_the_study_says(self, north, ledger):
        releases = play(north)
        assert [each.round for each in releases] == list(range(LAST + 1))
        assert [each.values.size for each in releases] == sizes()
        spent = ledger.summary(LIMITS).spent_epsilon
        assert 2.0 * (1 - 1e-6) <= spent <= 2.0
        ledger.verify()

    def test_a_run_nobody_offered_is_refused(self, north, ledger):
        assert refusal(north, counts()) == "unknown"
        assert refusal(north, gradient()) == "unknown"
        assert entries(ledger) == []

    @pytest.mark.parametrize("rounds", [ROUNDS - 1, ROUNDS + 1, 1000])
    def test_the_number_of_rounds_cannot_change_during_a_run(self, north, ledger, rounds):
        north.answer(offer())
        north.answer(counts())
        north.answer(gradient(1))
        before = entries(ledger)
        assert refusal(north, gradient(2, rounds=rounds)) == "changed"
        assert entries(ledger) == before
        assert north.answer(gradient(2)).round == 2

    @pytest.mark.parametrize("counted", [False, True])
    def test_not_even_where_a_gradient_costs_as_much_as_the_counts(self, north, counted):
        north.answer(offer())
        if counted:
            north.answer(counts())
        assert COST.gradient(17).noise_multiplier == pytest.approx(COST.counts.noise_multiplier)
        north.answer(gradient(1, rounds=17))
        assert refusal(north, gradient(2, rounds=34)) == "changed"
        assert refusal(north, gradient(36, rounds=34)) == "changed"

    @pytest.mark.parametrize("number", [ROUNDS + 1, LAST])
    def test_a_tally_fixes_it_too_and_is_never_taken_a_second_time(self, north, ledger, number):
        """Calibration and audit of another number of rounds would be another round of the same run."""
        north.answer(offer())
        north.answer(gradient(number))
        for rounds in (ROUNDS - 2, ROUNDS - 1, ROUNDS + 1, ROUNDS + 2):
            assert refusal(north, gradient(rounds + number - ROUNDS, rounds=rounds)) == "changed"
            assert refusal(north, gradient(1, rounds=rounds)) == "changed"
        assert len(entries(ledger, "charge")) == 1

    def test_the_number_of_rounds_stays_fixed_over_a_restart(self, tmp_path, ledger):
        north = holder(tmp_path, ledger=ledger)
        north.answer(offer())
        north.answer(gradient(1))
        assert refusal(holder(tmp_path, ledger=ledger), gradient(2, rounds=ROUNDS + 1)) == "changed"

    def test_no_sequence_of_questions_spends_more_than_was_reserved(self, north, ledger):
        north.answer(offer())
        for rounds in (3, 1, 2, 1000, 4):
            for number in range(1, min(rounds, 5) + TALLIES + 1):
                with contextlib.suppress(Refused):
                    north.answer(gradient(number, rounds=rounds))
        north.answer(counts())
        assert mu2_of(ledger.charged(RUN)) <= COST.mu2 * (1 + 1e-9)
        assert ledger.summary(LIMITS).spent_epsilon <= 2.0

    def test_a_round_asked_again_at_other_parameters_gets_the_old_bytes(self, north, ledger):
        north.answer(offer())
        first = north.answer(gradient(1))
        again = north.answer(gradient(1, theta=np.full(GRID.width, 0.5)))
        assert again.values.tobytes() == first.values.tobytes()
        assert len(entries(ledger, "charge")) == 1

    @pytest.mark.parametrize("number", [1, ROUNDS + 1, LAST])
    @pytest.mark.parametrize("size", [GRID.size, GRID.width - 1, GRID.width + 1, 1])
    def test_parameters_of_another_model_are_refused_and_cost_nothing(self, north, ledger, size, number):
        north.answer(offer())
        with pytest.raises(BadInput, match="theta"):
            north.answer(gradient(number, theta=np.zeros(size)))
        assert entries(ledger, "charge") == []

    @pytest.mark.parametrize("number", [1, ROUNDS + 1, LAST])
    @pytest.mark.parametrize("size", [1e300, -1.1e6])
    def test_parameters_beyond_all_reason_are_refused_and_cost_nothing(self, north, ledger, size, number):
        north.answer(offer())
        with pytest.raises(BadInput, match="theta"):
            north.answer(gradient(number, theta=np.full(GRID.width, size)))
        assert entries(ledger, "charge") == []
        assert north.answer(gradient()).round == 1
        assert len(entries(ledger, "charge")) == 1

    def test_an_audit_of_what_is_no_scorecard_is_refused_and_costs_nothing(self, north, ledger):
        """A gradient may be taken there; a card has no cell of more than a million points."""
        north.answer(offer())
        with pytest.raises(BadInput, match="points"):
            north.answer(gradient(LAST, theta=np.full(GRID.width, 1e5)))
        assert entries(ledger, "charge") == []

    def test_a_failed_computation_is_charged_once_however_often_it_is_tried(
        self, tmp_path, ledger, monkeypatch
    ):
        north = holder(tmp_path, ledger=ledger)
        north.answer(offer())
        with monkeypatch.context() as broken:
            broken.setattr(mechanism, "discrete_gaussian", lambda size, *_: np.full(size, 1 << 60))
            for _ in range(3):
                with pytest.raises(AssayError, match="nothing is released"):
                    north.answer(counts())
        assert north.answer(counts()).round == 0
        assert [entry["kind"] for entry in entries(ledger)][4:] == ["charge", "release"]
        play(north)
        assert ledger.summary(LIMITS).spent_epsilon <= 2.0


class TestRestarts:
    def test_a_new_holder_on_the_same_ledger_goes_on_where_the_old_one_stopped(self, tmp_path, path):
        with Ledger.open(path, IDENTITY) as before:
            north = holder(tmp_path, ledger=before)
            north.answer(offer())
            released = [north.answer(counts()), north.answer(gradient(1))]
        with Ledger.open(path, IDENTITY) as after:
            north = holder(tmp_path, ledger=after)
            again = [north.answer(counts()), north.answer(gradient(1, theta=np.ones(GRID.width)))]
            for old, new in zip(released, again, strict=True):
                assert new.values.tobytes() == old.values.tobytes()
            for number in range(2, LAST + 1):
                north.answer(gradient(number))
            assert 2.0 * (1 - 1e-6) <= after.summary(LIMITS).spent_epsilon <= 2.0

    def test_a_policy_made_stricter_meanwhile_is_asked_again(self, tmp_path, ledger):
        holder(tmp_path, ledger=ledger).answer(offer())
        stricter = holder(tmp_path, ledger=ledger, rules=policy(epsilon_per_run=1.0))
        assert refusal(stricter, counts()) == "epsilon"
        assert entries(ledger, "charge") == []

    def test_an_accepted_study_is_readable_by_the_holder_only(self, tmp_path, north):
        north.answer(offer())
        (file,) = (tmp_path / "home-north" / "accepted").glob("*.toml")
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_text(encoding="utf-8") == TEXT


class TestClosing:
    def test_what_was_reserved_and_not_spent_is_free_again(self, north, ledger):
        north.answer(offer())
        north.answer(counts())
        assert isinstance(north.answer(Close(run=RUN, outcome="aborted")), Closed)
        summary = ledger.summary(LIMITS)
        assert summary.open_runs == ()
        assert summary.reserved_epsilon == summary.spent_epsilon
        assert 0 < summary.spent_epsilon < 2.0 / 2

    def test_a_closed_run_answers_nothing_more(self, north):
        play(north)
        north.answer(Close(run=RUN, outcome="done"))
        for question in (counts(), gradient(1)):
            assert refusal(north, question) == "unknown"
        assert refusal(north, offer()) == "closed"

    def test_closing_twice_is_closing_once(self, north, ledger):
        north.answer(offer())
        north.answer(Close(run=RUN, outcome="done"))
        before = entries(ledger)
        assert isinstance(north.answer(Close(run=RUN, outcome="done")), Closed)
        assert entries(ledger) == before

    def test_closing_an_unknown_run_is_refused(self, north):
        assert refusal(north, Close(run=RUN, outcome="done")) == "unknown"

    def test_a_closed_run_leaves_no_file_behind(self, tmp_path, north):
        north.answer(offer())
        north.answer(Close(run=RUN, outcome="done"))
        assert list((tmp_path / "home-north" / "accepted").glob("*.toml")) == []


def person(rows, *, income, delay, balance, house, label):
    columns = {
        "INCOME": np.full(rows, income, dtype=np.float64),
        "DELAY": np.full(rows, delay, dtype=np.float64),
        "BALANCE": np.full(rows, balance, dtype=np.float64),
        "HOUSE": np.full(rows, house, dtype=object),
    }
    return columns, np.full(rows, label, dtype=np.float64)


# One person each, as bad as the record check lets anybody be.
ADVERSARIES = {
    "one row": person(1, income=3.3, delay=2, balance=10, house="own", label=1),
    "fifty times the same row": person(50, income=7, delay=1, balance=0, house="rent", label=1),
    "extreme values": person(1, income=1e308, delay=-1e9, balance=-1e308, house="x" * 1000, label=0),
    "fifty extreme rows": person(50, income=-1e308, delay=1e9, balance=1e308, house="", label=1),
    "nothing known": person(50, income=np.nan, delay=np.nan, balance=np.nan, house=None, label=1),
    "five thousand rows": person(5000, income=0, delay=4, balance=1000, house="own", label=0),
}


def with_person(adversary, group=1):
    """The other persons of :func:`records`, two of them with several rows, and one person more.

    ``group`` says over how many groups that person's rows are spread.
    """
    others = records(300, persons=np.r_[np.arange(290), [7] * 5, [8] * 5])
    if adversary is None:
        return others
    columns, labels = adversary
    return Records(
        columns={name: np.concatenate([others.columns[name], columns[name]]) for name in columns},
        labels=np.concatenate([others.labels, labels]),
        persons=np.concatenate([others.persons, np.full(len(labels), 290)]),
        groups={"SEX": np.concatenate([others.groups["SEX"], np.arange(len(labels)) % group])},
    )


def sums_of(tmp_path, data, theta, name):
    """What a holder of ``data`` releases, in grid units: counts, a gradient, a calibration, an audit."""
    north = holder(tmp_path, data=data, name=name)
    north.answer(offer())
    released = [north.answer(counts()), north.answer(gradient(theta=theta))]
    # As a card, cells of more than a million points are refused.
    released += [
        north.answer(gradient(number, theta=theta / max(1.0, np.abs(theta).max() / CARD)))
        for number in (ROUNDS + 1, LAST)
    ]
    return [each.values for each in released]


CARD = 10_000.0  # log-odds of a cell
LIMITS_IN_UNITS = [
    mechanism_of(STUDY, GRID, number=number, rounds=ROUNDS).sensitivity_units
    for number in (0, 1, ROUNDS + 1, LAST)
]


def moved(old, new):
    """How far one person moves each release, as a part of what the noise is made for."""
    lengths = [math.sqrt(sum(int(x) ** 2 for x in b - a)) for a, b in zip(old, new, strict=True)]
    return [length / limit for length, limit in zip(lengths, LIMITS_IN_UNITS, strict=True)]


THETAS = {
    "start": np.zeros(GRID.width),
    "hopeful": np.full(GRID.width, 10.0),
    "absurd": np.r_[np.full(GRID.size, -1e6), np.full(GRID.patterns, 1e6)],
    "trap": np.where(np.arange(GRID.width) % 2 == 0, 1e3, -1e3).astype(np.float64),
}


class TestSensitivity:
    """One person changes each release by at most what its noise is made for, in the integers that leave.

    On the real path with the noise off: rounding to the grid is inside the bound.
    """

    @pytest.mark.parametrize("group", [1, 4])
    @pytest.mark.parametrize("theta", THETAS)
    @pytest.mark.parametrize("name", ADVERSARIES)
    def test_no_person_changes_a_release_by_more_than_is_charged(
        self, tmp_path, no_noise, name, theta, group
    ):
        without = sums_of(tmp_path, with_person(None), THETAS[theta], "without")
        present = sums_of(tmp_path, with_person(ADVERSARIES[name], group), THETAS[theta], "with")
        assert max(moved(without, present)) <= 1

    def test_the_bound_is_reached_so_the_test_can_tell(self, tmp_path, no_noise):
        theta = THETAS["start"]
        without = sums_of(tmp_path, with_person(None), theta, "without")
        present = sums_of(tmp_path, with_person(ADVERSARIES["five thousand rows"]), theta, "with")
        assert min(moved(without, present)) >= 0.999

    def test_the_noise_is_sized_by_the_same_bounds(self, north, ledger):
        play(north)
        charges = entries(ledger, "charge")
        one_column = math.sqrt(1 + 2 + 5)
        counts, gradients = math.sqrt(FEATURES + 1), [0.75 * math.sqrt(FEATURES + 1)] * ROUNDS
        assert [entry["sensitivity"] for entry in charges] == [counts, *gradients, 1.0, one_column]

    def test_persons_are_who_the_records_say_and_not_rows(self, tmp_path, no_noise):
        """The same rows as fifty persons count fifty times: the control for the grouping."""
        columns, labels = ADVERSARIES["fifty times the same row"]
        data = with_person((columns, labels))
        many = Records(
            columns=data.columns, labels=data.labels, persons=np.r_[data.persons[:300], np.arange(290, 340)]
        )
        one = sums_of(tmp_path, data, THETAS["start"], "one")
        fifty = sums_of(tmp_path, many, THETAS["start"], "fifty")
        assert all(
            np.linalg.norm(many - few) > 10 * limit
            for many, few, limit in zip(fifty, one, LIMITS_IN_UNITS, strict=True)
        )


T1_ROUNDS = 60
# Probability that a right noise is called wrong, over the two tails.
FALSE_ALARM = 1e-6


def noise_of(tmp_path, label):
    """Noise of many releases of two holders with the same records, in units of the promised std / sqrt 2."""
    data, released = records(50), []
    for name in ("a", "b"):
        north = holder(tmp_path, data=data, name=f"{label}-{name}")
        released.append(play(north, rounds=T1_ROUNDS))
    difference = []
    for one, other in zip(*released, strict=True):
        std = mechanism_of(STUDY, GRID, number=one.round, rounds=T1_ROUNDS).std
        difference.append((one.values - other.values) * one.unit / (std * math.sqrt(2)))
    return difference


def looks_right(difference):
    """Chi-square test of the variance at :data:`FALSE_ALARM`."""
    flat = np.concatenate(difference)
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=flat.size)
    return bool(low <= np.sum(flat**2) <= high)


def weaken(monkeypatch, factor):
    """Give every release only so much of its noise variance."""
    monkeypatch.setattr(
        mechanism,
        "discrete_gaussian",
        lambda size, variance, *rest: noise.discrete_gaussian(size, math.ceil(variance * factor), *rest),
    )


@pytest.fixture(scope="module")
def difference(tmp_path_factory):
    return noise_of(tmp_path_factory.mktemp("noise"), "real")


class TestNoise:
    def test_releases_carry_the_promised_variance(self, difference):
        assert looks_right(difference)
        for number in (0, T1_ROUNDS + 1, T1_ROUNDS + 2):  # counts, calibration and audit, each alone
            assert looks_right(difference[number : number + 1])

    def test_half_the_noise_would_be_noticed(self, tmp_path, monkeypatch):
        weaken(monkeypatch, 1 / 4)
        assert not looks_right(noise_of(tmp_path, "half"))

    def test_a_fifth_less_noise_would_be_noticed(self, tmp_path, monkeypatch):
        weaken(monkeypatch, 0.8**2)
        assert not looks_right(noise_of(tmp_path, "less"))

    def test_no_noise_would_be_noticed(self, tmp_path, no_noise):
        assert not looks_right(noise_of(tmp_path, "none"))

    def test_the_noise_is_normal(self, difference):
        """Kolmogorov-Smirnov; false alarm once in a million."""
        assert stats.kstest(np.concatenate(difference), "norm").pvalue > FALSE_ALARM

    def test_the_noise_of_one_round_says_nothing_about_the_next(self, difference):
        rounds = np.stack(difference[1 : T1_ROUNDS + 1])
        product = float(np.sum(rounds[:-1] * rounds[1:]))
        pairs = rounds[1:].size
        # Normal approximation of a sum of products of independent standard normals.
        assert abs(product) / math.sqrt(pairs) < stats.norm.isf(FALSE_ALARM / 2)
        assert len({row.tobytes() for row in rounds}) == len(rounds)

    def test_seeding_every_global_generator_repeats_nothing(self, tmp_path):
        import random

        import torch

        released = []
        for name in ("a", "b"):
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            north = holder(tmp_path, data=records(50), name=name)
            north.answer(offer())
            released.append(north.answer(counts()).values)
        assert not np.any(released[0] == released[1])


class TestAccount:
    """Epsilon recomputed from the ledger's rows by dp_accounting, which shares no code with Assay."""

    @pytest.mark.parametrize(("epsilon", "rounds"), [(0.5, 3), (2.0, 4), (2.0, 40)])
    def test_an_independent_accountant_finds_what_the_study_promises(self, tmp_path, ledger, epsilon, rounds):
        text = TEXT.replace("epsilon = 2.0", f"epsilon = {epsilon}")
        north = holder(tmp_path, ledger=ledger, data=records(50))
        play(north, rounds=rounds, text=text)
        rows = entries(ledger, "charge")
        assert len(rows) == rounds + 3
        assert len(entries(ledger, "release")) == rounds + 3
        multipliers = [row["noise_multiplier"] for row in rows]
        together = 1 / math.sqrt(sum(z**-2 for z in multipliers))
        assert GaussianPrivacyLoss(together).get_delta_for_epsilon(epsilon) <= 1e-6
        accountant = PLDAccountant()
        for row, z in zip(rows, multipliers, strict=True):
            assert (row["sample_rate"], row["steps"]) == (1.0, 1)
            accountant.compose(dp_accounting.GaussianDpEvent(z))
        assert accountant.get_epsilon(1e-6) == pytest.approx(epsilon, rel=0.005)
        assert ledger.summary(LIMITS).spent_epsilon == pytest.approx(epsilon, rel=1e-6)

    def test_one_release_left_out_would_be_noticed(self, ledger, north):
        play(north)
        multipliers = [row["noise_multiplier"] for row in entries(ledger, "charge")]
        for missing in range(len(multipliers)):
            kept = multipliers[:missing] + multipliers[missing + 1 :]
            accountant = PLDAccountant()
            for z in kept:
                accountant.compose(dp_accounting.GaussianDpEvent(z))
            assert accountant.get_epsilon(1e-6) < 2.0 * 0.995

    def test_a_person_known_to_several_holders_keeps_the_promise(self, tmp_path):
        text = TEXT + "holders_per_person = 4\n"
        total = 0.0
        for name in ("a", "b", "c", "d"):
            with Ledger.open(":memory:", IDENTITY) as ledger:
                play(holder(tmp_path, ledger=ledger, name=name, data=records(50)), text=text)
                total += mu2_of(ledger.charged(RUN))
        assert GaussianPrivacyLoss(1 / math.sqrt(total)).get_delta_for_epsilon(2.0) <= 1e-6

    def test_opacus_accountant_has_the_last_word_whatever_was_charged_before(self):
        """A fresh training object, as after a restart, with a history that already fills the promise."""
        training, spent = LocalTraining(STUDY, records(50)), [COST.counts] * round(1 / COUNTS_SHARE)
        asked = {"number": 0, "rounds": 0, "theta": np.zeros(0)}
        asked["mechanism"] = mechanism_of(STUDY, GRID, number=0, rounds=0)
        assert training.noisy(**asked, charged=spent).shape == (GRID.width,)
        with pytest.raises(AssayError, match="more than the study promises"):
            training.noisy(**asked, charged=[*spent, COST.gradient(1000)])

    def test_every_release_is_the_one_that_was_charged(self, north, ledger):
        for release in play(north):
            assert isinstance(release, Release)
            row = next(entry for entry in entries(ledger, "charge") if entry["round"] == release.round)
            expected = mechanism_of(STUDY, GRID, number=release.round, rounds=ROUNDS)
            assert release.unit == expected.unit
            assert row["noise_multiplier"] == expected.noise_multiplier
            assert row["sensitivity"] == expected.l2_clip_norm
            assert (row["noise_share"], row["question"]) == (1.0, "")
            assert expected.std >= row["noise_multiplier"] * row["sensitivity"]
