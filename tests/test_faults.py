"""Faults and attacks of a simulated federation: what happens, what is caught, and what is said of it.

Who is hit is drawn by seeds, so these runs meet the same faults every time; only noise differs. Every defence
has a control in which it is taken out, and then the same attack succeeds.
"""

import json

import numpy as np
import pytest
from toy_study import SUMMED, TEXT, records

from assay.client.books import Books
from assay.client.holder import Holder
from assay.client.release import NoisySum
from assay.models.study import parse_study
from assay.privacy import wire
from assay.privacy.cohort import Cohort
from assay.privacy.errors import BadInput, Refused
from assay.privacy.ledger import Ledger
from assay.privacy.ledger_account import RunAccount
from assay.privacy.optimizer import ExactAccountant
from assay.privacy.secagg import Member
from assay.server import courier, sums
from assay.server.aggregation import SecureSums
from assay.server.publish import publish
from assay.server.rounds import Run
from assay.simulations.comparison import evaluate, scorecard_of
from assay.simulations.engine import federate, with_epsilon
from assay.simulations.faults import HELP, LIES, PHASES, EndedByFaults, Faults, Who
from assay.simulations.injection import effect_of
from assay.simulations.liar import Liar
from assay.simulations.sabotage import drawn

LOCAL = TEXT.replace("rounds = 4", "rounds = 2")
MASKED = SUMMED.replace("rounds = 4", "rounds = 2")
SUMS = 5  # counts, two gradients, calibration, audit
BOTH = pytest.mark.parametrize("text", [LOCAL, MASKED], ids=["local", "distributed"])


# The first with which h2 begins with each kind of rubbish.
SEEDS = [next(s for s in range(99) if drawn(s, "garbage", "h2").integers(3) == kind) for kind in range(3)]


def names(count):
    return tuple(f"h{number}" for number in range(count))


def held(count, rows=60):
    return {name: records(rows, seed) for seed, name in enumerate(names(count))}


def run(*options, text=LOCAL, count=4, seed=0, rows=60):
    return federate(text, held(count, rows), faults=Faults.parse(options, seed=seed))


def ended(*options, **settings):
    with pytest.raises(EndedByFaults) as caught:
        run(*options, **settings)
    return caught.value


def dropped(block):
    return [(each["holder"], each["round"]) for each in block["caught"]["dropped"]]


def refused(block):
    return {(each["question"], each["code"]) for each in block["caught"]["refused"]}


def not_caught(block):
    return {each["kind"]: each["holders"] for each in block["not_caught"]}


def nothing(*_, **__):
    """What is left of a check that is taken out."""


def published(done, path):
    return publish(path, study=done.study, trained=done.trained, identity=done.identity, created=1e6)


class TestOptions:
    @pytest.mark.parametrize(
        "option",
        [
            *(f"drop-{phase}=0.25" for phase in PHASES),
            *("slow=0.5:30", "timeout=10", "flip=2:0.5", "flip=h1,h2:1", "flip=10%:1", "scale=1:-5"),
            *("garbage=h0", "replay=25%", *(f"coordinator={lie}" for lie in LIES)),
        ],
    )
    def test_what_is_read_can_be_written_and_read_again(self, option):
        faults = Faults.parse([option], seed=3)
        assert faults.to_json() == {"options": [option], "seed": 3}
        assert Faults.parse(faults.options, seed=3) == faults

    def test_there_are_none_unless_asked_for(self):
        assert Faults.parse([]).options == ()

    @pytest.mark.parametrize(
        ("option", "setting", "allowed"),
        [
            ("dorp-mask=0.1", "--fault", "drop-mask"),
            ("drop-mask", "--fault", "KIND=VALUE"),
            ("drop-nothing=0.1", "--fault", "KIND=VALUE"),
            *((f"drop-mask={bad}", "--fault drop-mask", "0 to 1") for bad in ("1.5", "-0.1", "nan", "")),
            *((f"slow={bad}", "--fault slow", "SHARE:SECONDS") for bad in ("0:5", "2:5", "nan:5", "0.5")),
            *((f"slow=0.5:{bad}", "--fault slow", "seconds above 0") for bad in ("0", "1e9", "nan", "inf")),
            *((f"timeout={bad}", "--fault timeout", "seconds above 0") for bad in ("0", "1e9", "nan")),
            *((f"flip=2:{bad}", "--fault flip", "above 0, at most 1") for bad in ("0", "1.1", "nan", "")),
            *((f"flip={bad}", "--fault flip", "holders") for bad in ("", "0", "a,,b", "a,a")),
            *((f"flip={bad}", "--fault flip", "percentage") for bad in ("0%", "101%", "1.2.3%")),
            *((f"scale=1:{bad}", "--fault scale", "factor") for bad in ("nan", "inf", "1e10", "")),
            ("garbage=", "--fault garbage", "holders"),
            ("coordinator=", "--fault coordinator", "two-lists"),
            ("coordinator=honest", "--fault coordinator", "two-lists"),
        ],
    )
    def test_a_value_that_is_none_is_refused_by_name(self, option, setting, allowed):
        with pytest.raises(BadInput) as refusal:
            Faults.parse([option])
        assert refusal.value.setting == setting
        assert allowed in refusal.value.allowed
        assert refusal.value.remedy

    def test_a_kind_is_given_once(self):
        with pytest.raises(BadInput, match="--fault flip is '2'; allowed: each kind once"):
            Faults.parse(["flip=1", "flip=2"])

    @pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1])
    def test_fields_are_checked_however_they_are_given(self, value):
        with pytest.raises(BadInput, match="drop-mask"):
            Faults(drop={"mask": value})

    @pytest.mark.parametrize(
        ("option", "words"),
        [
            ("flip=h9", "--fault flip is 'h9'; allowed: names of this simulation's holders: h0, h1, h2, h3"),
            ("garbage=5", "--fault garbage is 5; allowed: at most 4, the number of holders"),
        ],
    )
    def test_a_holder_that_is_not_there_is_refused(self, option, words):
        with pytest.raises(BadInput, match=words):
            run(option)

    def test_faults_of_masks_need_masks(self):
        for option in ("drop-open=0.1", "drop-keys=0.1", "coordinator=two-lists", "coordinator=fake-holder"):
            with pytest.raises(BadInput, match=r"no masks.*distributed"):
                run(option)

    def test_an_engine_without_messages_has_faults_of_data_only(self):
        faults = Faults.parse(["flip=1", "drop-mask=0.1"])
        with pytest.raises(BadInput, match=r"'drop-mask=0.1'; allowed: flip .*no messages.*--engine full"):
            federate(MASKED, held(4), engine="fast", faults=faults)
        block = federate(MASKED, held(4), engine="fast", faults=Faults.parse(["flip=h2"])).faults
        assert not_caught(block) == {"flip": ["h2"]}

    def test_a_seed_says_who_and_each_kind_has_its_own_draw(self):
        many, who = names(100), Who.parse("30%", "--fault flip")
        assert who.choose(many, 1, "flip") == who.choose(many, 1, "flip")
        assert len(who.choose(many, 1, "flip")) == 30
        assert who.choose(many, 1, "flip") != who.choose(many, 2, "flip")
        assert who.choose(many, 1, "flip") != who.choose(many, 1, "scale")

    def test_the_help_names_every_kind(self):
        for word in (*PHASES, *LIES, "slow=", "timeout=", "flip=", "scale=", "garbage=", "replay="):
            assert word in HELP


class TestNone:
    def test_without_faults_a_run_says_nothing_of_them(self):
        assert federate(LOCAL, held(1)).faults is None

    def test_with_none_asked_for_nothing_happens(self):
        block = run().faults
        assert block["injected"] == {}
        assert block["not_caught"] == block["caught"]["dropped"] == block["caught"]["refused"] == []
        assert (block["lie"], block["ended"], block["effect"], block["waited_s"]) == (None, None, None, 0)

    def test_errors_without_faults_stay_what_they_are(self):
        with pytest.raises(Refused):
            federate(MASKED, held(2))


class TestDrops:
    @pytest.mark.parametrize("phase", PHASES)
    def test_where_nobody_answers_the_run_ends_with_its_documented_error(self, phase):
        options = [f"drop-{phase}=1"]
        if phase == "consent":  # a list is only signed where somebody is missing: h1, in round 0
            options.append("slow=0.2:601")
        error = ended(*options, text=MASKED)
        kind, code = ("Refused", 3) if phase == "accept" else ("TooFewHolders", 1)
        assert error.exit_code == code
        assert error.faults["ended"] == {"error": str(error), "kind": kind, "exit_code": code}
        assert error.faults["injected"][f"drop-{phase}"]["times"] >= 3
        assert error.faults["waited_s"] >= 600
        json.dumps(error.faults)

    @BOTH
    def test_one_that_is_lost_is_tolerated_and_named(self, text):
        block = (done := run("drop-gradients=0.1", text=text, seed=2)).faults
        assert dropped(block) == [("h2", 2)]
        assert block["injected"] == {"drop-gradients": {"times": 1, "holders": {"h2": 1}}}
        assert done.trained.holders == ("h0", "h1", "h3")
        assert block["waited_s"] == 600
        assert block["ended"] is None

    def test_more_than_tolerated_end_it_and_say_why(self):
        error = ended("drop-counts=0.25", text=MASKED, count=7, seed=24)
        assert len(error.faults["caught"]["dropped"]) == 2
        assert "2 of 7 holders are missing, and their noise; allowed: at most 1 (privacy.tolerated)" in str(
            error
        )

    def test_a_study_that_tolerates_two_goes_on_without_them(self):
        text = MASKED.replace('trust = "distributed"', 'trust = "distributed"\ntolerated = 2')
        assert parse_study(text).privacy.tolerated == 2
        assert len(run("drop-counts=0.25", text=text, count=7, seed=24).trained.holders) == 5

    def test_control_the_coordinator_does_not_count_and_the_holders_do(self, monkeypatch):
        monkeypatch.setattr(SecureSums, "_require_noise", nothing)
        error = ended("drop-counts=0.25", text=MASKED, count=7, seed=24)
        assert ("survivors", "holders") in refused(error.faults)

    def test_the_question_or_the_answer_is_lost_and_who_has_answered_has_paid(self):
        done = run("drop-counts=0.25", seed=28)
        assert dropped(done.faults) == [("h1", 0), ("h3", 0)]
        assert done.spent["h1"] == 0
        assert 0 < done.spent["h3"] < 1.9
        assert done.spent["h0"] == pytest.approx(2.0, rel=1e-6)


class TestSlow:
    @BOTH
    def test_an_answer_after_the_time_out_is_missing(self, text):
        block = run("slow=0.25:601", text=text).faults
        ((name, number),) = dropped(block)
        assert number == 0
        assert "no answer within 600 s" in block["caught"]["dropped"][0]["reason"]
        assert block["injected"] == {"slow": {"times": 1, "holders": {name: 1}}}
        assert block["waited_s"] == 600

    def test_one_before_it_is_waited_for_and_the_wait_is_counted(self):
        block = (done := run("slow=0.25:599")).faults
        assert dropped(block) == []
        assert block["waited_s"] == SUMS * 599
        assert done.trained.holders == names(4)

    def test_the_time_out_can_be_set(self):
        block = run("slow=0.25:11", "timeout=10").faults
        assert len(dropped(block)) == 1
        assert (block["timeout_s"], block["waited_s"]) == (10, 10)


class TestFlippedLabels:
    def test_as_many_labels_as_was_said_are_turned_round_and_nothing_else(self):
        before = held(4)
        seen = {}

        def load(holder, study):
            seen[holder.name] = holder._load(study)
            return real(holder, study)

        real = Holder._open
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Holder, "_open", load)
            block = federate(LOCAL, before, faults=Faults.parse(["flip=h1,h2:0.25"])).faults
        assert {name: int((seen[name].labels != before[name].labels).sum()) for name in seen} == {
            "h0": 0, "h1": 15, "h2": 15, "h3": 0,
        }  # fmt: skip
        assert seen["h1"].columns is before["h1"].columns
        assert block["injected"]["flip"] == {"times": 30, "holders": {"h1": 15, "h2": 15}}
        assert not_caught(block) == {"flip": ["h1", "h2"]}
        assert before["h1"].labels.tolist() == held(4)["h1"].labels.tolist()

    @pytest.mark.parametrize("engine", ["full", "fast"])
    def test_they_ruin_the_model_and_nothing_catches_it(self, engine):
        """Three of four holders turn all labels round, at epsilon 100.

        False alarms: over 20 runs the two were .8336 +- .0001 and .1775 +- .0005.
        """
        test, text, whole = records(2000, 99), with_epsilon(MASKED, 100.0), held(4, 300)
        clean = federate(text, whole, engine=engine)
        done = federate(text, whole, engine=engine, faults=Faults.parse(["flip=3"]))
        auroc, bad = (evaluate(scorecard_of(each), test).metrics.auroc for each in (clean, done))
        assert auroc > 0.7
        assert bad < 0.3
        block = effect_of(done.faults, auroc=bad, clean_auroc=auroc)
        assert block["effect"] == {"auroc": bad, "clean_auroc": auroc, "auroc_change": bad - auroc}
        assert len(not_caught(block)["flip"]) == 3
        json.dumps(block)


class TestScaledUpdates:
    def test_in_the_clear_one_that_is_larger_than_its_persons_is_dropped(self):
        block = run("scale=h1:1e4").faults
        assert dropped(block) == [("h1", 1)]
        assert "larger than its persons can make it" in block["caught"]["dropped"][0]["reason"]
        assert not_caught(block) == {}

    def test_control_without_that_look_it_is_taken(self, monkeypatch):
        monkeypatch.setattr(sums, "_too_long", nothing)
        assert not_caught(run("scale=h1:1e4").faults) == {"scale": ["h1"]}

    def test_under_masks_it_ends_the_run_and_nobody_is_named(self):
        error = ended("scale=h1:1e4", text=MASKED)
        assert error.exit_code == 1
        assert "larger than its persons can make it" in str(error)
        assert dropped(error.faults) == []
        assert not_caught(error.faults) == {}

    def test_control_without_that_look_it_is_taken_under_masks_too(self, monkeypatch):
        monkeypatch.setattr(Run, "_largest", lambda *_: {})
        assert not_caught(run("scale=h1:1e4", text=MASKED).faults) == {"scale": ["h1"]}

    @BOTH
    def test_within_what_its_persons_can_do_it_moves_the_model_until_the_audit_holds_it_back(
        self, text, tmp_path
    ):
        """One of three holders turns its gradients round, four times over, at epsilon 100.

        False alarms: over 20 runs each it was .233 +- .003; without it .83.
        """
        test, whole = records(2000, 99), held(3, 300)
        done = federate(with_epsilon(text, 100.0), whole, faults=Faults.parse(["scale=h1:-4"]))
        assert evaluate(scorecard_of(done), test).metrics.auroc < 0.5
        assert not_caught(done.faults) == {"scale": ["h1"]}
        assert "ranking: worse than guessing" in published(done, tmp_path / "ruined")["held"][0]
        honest = federate(with_epsilon(text, 100.0), whole)
        assert published(honest, tmp_path / "honest")["held"] == []
        assert done.faults["injected"] == {"scale": {"times": 2, "holders": {"h1": 2}}}

    def test_what_the_grid_cuts_is_said(self):
        assert run("scale=h1:1e9").faults["caught"]["cut"] == {"times": 1, "holders": {"h1": 1}}

    def test_counts_and_tallies_are_as_they_are(self):
        persons = federate(with_epsilon(LOCAL, 100.0), held(3), faults=Faults.parse(["scale=3:0"])).trained
        assert persons.counts.sum() > 0
        assert persons.audit["persons"] == pytest.approx(180, rel=0.2)


class TestGarbage:
    @BOTH
    def test_a_holder_that_answers_with_rubbish_is_dropped(self, text):
        block = run("garbage=h2", text=text).faults
        assert dropped(block) == [("h2", 0)]
        assert block["injected"]["garbage"]["holders"].keys() == {"h2"}
        assert not_caught(block) == {}

    def test_each_kind_of_it_is_rubbish(self):
        """Random bytes, a stranger's signature, a changed byte."""
        for seed in SEEDS:
            assert dropped(run("garbage=h2", count=3, seed=seed).faults) == [("h2", 0)]

    def test_control_without_signatures_a_forged_answer_is_taken(self, monkeypatch):
        monkeypatch.setattr(wire, "verify", nothing)
        assert dropped(run("garbage=h2", seed=SEEDS[1]).faults) != [("h2", 0)]


class TestReplay:
    @BOTH
    def test_a_holder_that_is_set_back_to_an_older_copy_refuses_by_itself(self, text):
        block = run("replay=h1", text=text).faults
        assert dropped(block) == [("h1", 2)]
        assert {each["holder"] for each in block["caught"]["ledger"]} == {"h1"}
        assert ("gradient" if text == LOCAL else "mask", "ledger") in refused(block)
        assert not_caught(block) == {}
        assert block["ended"] is None

    def test_control_one_that_does_not_is_found_out_by_the_coordinator(self, monkeypatch):
        monkeypatch.setattr(Books, "require", nothing)
        block = run("replay=h1").faults
        assert dropped(block) == [("h1", 2)]
        assert "its ledger has" in block["caught"]["dropped"][0]["reason"]
        assert ("gradient", "ledger") not in refused(block)

    def test_control_without_either_it_spends_twice(self, monkeypatch):
        monkeypatch.setattr(Books, "require", nothing)
        monkeypatch.setattr(courier, "_older", nothing)
        done = run("replay=h1")
        assert not_caught(done.faults) == {"replay": ["h1"]}
        assert done.spent["h1"] < done.spent["h0"] - 0.1  # round 1 is not in its books


# What the holders answer to each lie, in a run in the clear and in one under masks.
AGAIN, AFTER = "round 1 again, at other parameters", "a round after the last"
STUDY = {
    "the run with double its epsilon": "refused (epsilon)",
    "the run with half its epsilon": "refused (changed)",
    "a sum at the parameters of another model": "refused (invalid)",
}
DEAF = "no answer: the holder's application failed; its log says why"
FORGED = {
    "a question with a stranger's signature": DEAF,
    "a question with its last byte changed": DEAF,
    "a question meant for another holder": DEAF,
}
ANSWERS = {
    ("asks-again", LOCAL): {AGAIN: "answered with the bytes of before"},
    ("asks-again", MASKED): {AGAIN: "refused (changed)"},
    ("more-rounds", LOCAL): {AFTER: "refused (changed)"},
    ("more-rounds", MASKED): {AFTER: "refused (changed)"},
    ("other-study", LOCAL): STUDY,
    ("other-study", MASKED): STUDY,
    ("another-run", LOCAL): {"the same study in a new run": "refused (budget)"},
    ("another-run", MASKED): {"the same study in a new run": "refused (budget)"},
    ("unsigned", LOCAL): FORGED,
    ("unsigned", MASKED): FORGED,
    ("two-lists", MASKED): {
        "to open the round for everybody": "answered (opened)",
        "to sign a list without one holder": "refused (changed)",
    },
    ("fake-holder", MASKED): {"keys for a session with made-up holders": "refused (holders)"},
}


class TestLies:
    @pytest.mark.parametrize(("lie", "text"), ANSWERS, ids=lambda each: each if each in LIES else each[-8:-2])
    def test_holders_refuse_by_themselves_and_the_run_goes_on(self, lie, text):
        block = (done := run(f"coordinator={lie}", text=text)).faults
        answers = block["lie"]["answers"]
        assert {each["question"]: each["answer"] for each in answers} == ANSWERS[lie, text]
        assert (block["lie"]["told"], block["lie"]["learned"]) == (True, None)
        assert block["not_caught"] == []
        assert done.trained.holders == names(4)
        # What is said of the answers is in the holders' own audit logs too.
        codes = {each["answer"][9:-1] for each in answers if each["answer"].startswith("refused")}
        assert codes == {code for _, code in refused(block)}
        json.dumps(block)

    def test_another_model_for_one_holder_ends_a_masked_run_unopened(self):
        error = ended("coordinator=changed-theta", text=MASKED)
        assert error.exit_code == 1
        assert error.faults["lie"]["victim"] == "h0"
        assert error.faults["lie"]["learned"] is None
        assert ("open", "aggregation") in refused(error.faults)

    def test_in_the_clear_one_holder_may_be_asked_otherwise_and_that_is_said(self):
        block = run("coordinator=changed-theta").faults
        assert block["lie"]["learned"] == "a sum of h0 at other parameters, under all of its noise"
        assert not_caught(block) == {"changed-theta": []}

    def test_a_lie_that_finds_no_moment_is_not_told(self):
        error = ended("coordinator=more-rounds", "drop-gradients=1")
        assert error.faults["lie"]["told"] is False


class TestControlsOfLies:
    """The same lies where the defence is taken out: each one is believed, and the report says so."""

    @pytest.fixture
    def sent(self, monkeypatch):
        """What the holders released, by ledger and round: the integers under their masks."""
        kept, release = {}, Ledger.release

        def spy(ledger, *, run, round, payload):  # noqa: A002
            kept.setdefault((round, id(ledger)), np.frombuffer(payload, dtype="<i8"))
            return release(ledger, run=run, round=round, payload=payload)

        monkeypatch.setattr(Ledger, "release", spy)
        return kept

    @pytest.fixture
    def liar(self, monkeypatch):
        """The liars of the runs that follow."""
        seen, told = [], Liar.told
        monkeypatch.setattr(Liar, "told", lambda one: seen.append(one) or told(one))
        return seen

    def believed(self, lie, text=MASKED):
        try:
            block = run(f"coordinator={lie}", text=text).faults
        except EndedByFaults as error:
            block = error.faults
        assert not_caught(block) == {lie: []}
        assert block["lie"]["learned"]
        return block

    def test_without_proofs_a_round_of_two_questions_is_opened(self, monkeypatch):
        monkeypatch.setattr(Cohort, "require_sent", nothing)
        self.believed("changed-theta")

    def test_with_two_lists_the_difference_is_one_holders_vector(self, monkeypatch, sent, liar):
        monkeypatch.setattr(Ledger, "open_round", nothing)
        monkeypatch.setattr(Member, "_settle", nothing)
        block = self.believed("two-lists")
        assert "h0" in block["lie"]["learned"]
        first = [payload for (number, _), payload in sent.items() if number == 1]
        assert np.array_equal(liar[0].vector, first[0])

    def test_with_invented_holders_the_sum_is_one_holders_vector(self, sent, liar):
        """No defence is taken out: without pins and floors there is none."""
        block = self.believed("fake-holder-unpinned")
        assert dropped(block) == [("h0", 0)]
        assert np.array_equal(liar[0].vector, next(iter(sent.values())))

    def test_without_stored_bytes_a_round_is_answered_twice(self, monkeypatch):
        charge = NoisySum.charge
        monkeypatch.setattr(NoisySum, "charge", lambda *each: charge(*each) and None)
        monkeypatch.setattr(Ledger, "release", lambda _, *, payload, **__: payload)
        self.believed("asks-again", LOCAL)

    @BOTH
    def test_without_a_fixed_number_of_rounds_the_reservation_still_holds(self, monkeypatch, text):
        monkeypatch.setattr(Holder, "_require_rounds", nothing)
        block = run("coordinator=more-rounds", text=text).faults
        assert {each["answer"] for each in block["lie"]["answers"]} == {"refused (budget)"}

    def test_without_that_and_without_the_reservation_the_accountant_still_counts(self, monkeypatch):
        monkeypatch.setattr(Holder, "_require_rounds", nothing)
        monkeypatch.setattr(RunAccount, "has_room_for", lambda *_: True)
        block = run("coordinator=more-rounds").faults
        assert {each["answer"] for each in block["lie"]["answers"]} == {DEAF}
        monkeypatch.setattr(ExactAccountant, "get_epsilon", lambda *_: 0.0)
        self.believed("more-rounds", LOCAL)

    def test_without_comparing_studies_another_one_is_accepted(self, monkeypatch):
        monkeypatch.setattr(Holder, "_require_same", nothing)
        block = run("coordinator=other-study").faults
        assert {each["answer"] for each in block["lie"]["answers"]} == set(STUDY.values())  # by the ledger
        reserve = Ledger.reserve
        monkeypatch.setattr(
            Ledger,
            "reserve",
            lambda ledger, **plan: plan["run"] in ledger.open_runs() or reserve(ledger, **plan),
        )
        self.believed("other-study", LOCAL)

    def test_without_a_budget_a_second_run_is_accepted(self, monkeypatch):
        monkeypatch.setattr("assay.privacy.ledger.require_room", nothing)
        self.believed("another-run", LOCAL)

    def test_without_signatures_anybody_is_answered(self, monkeypatch):
        monkeypatch.setattr(wire, "verify", nothing)
        self.believed("unsigned", LOCAL)
