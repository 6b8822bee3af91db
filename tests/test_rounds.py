"""A run: too few holders end it cleanly, a stop resumes bit for bit, and no bad answer enters the sum."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from rounds_support import NAMES, Federation, Store, check_exact
from toy_study import (
    COORDINATOR,
    FEATURES,
    FEDERATION,
    GRID,
    LAST,
    ROUNDS,
    RUN,
    STUDY,
    SUMMED,
    TEXT,
    holder,
    offer,
    policy,
)

from assay.client.app import make_app
from assay.models.label import mechanism_of
from assay.models.scorecard import Scorecard
from assay.privacy.errors import Refused, Tampered, Unavailable
from assay.privacy.keys import Identity
from assay.privacy.messages import (
    Accepted,
    Close,
    CountsRequest,
    GradientRequest,
    Offer,
    Release,
)
from assay.privacy.wire import Frame, open_frame, seal
from assay.server.courier import NoAnswer
from assay.server.rounds import Interrupted, Run, TooFewHolders
from assay.simulations.grid import LocalGrid

LIMITS = policy().limits


@pytest.fixture
def federation(tmp_path):
    return Federation(tmp_path)


def silent(message, honest):
    return NoAnswer(reason="no answer within 1 s")


def silent_from(number):
    """Answer nothing from gradient round ``number`` on, not even the close."""

    def fault(message, honest):
        gone = isinstance(message, GradientRequest) and message.round >= number
        return NoAnswer(reason="no answer within 1 s") if gone else honest()

    return fault


def changed(number, **changes):
    """Change the release of one round."""

    def fault(message, honest):
        answer = honest()
        if isinstance(answer, Release) and answer.round == number:
            return replace(answer, **{key: change(answer) for key, change in changes.items()})
        return answer

    return fault


class Scripted:
    """Three equal holders without noise, and a courier that loses the gradients of some."""

    federation, roster = FEDERATION, {}  # nobody is asked for who they are where trust is local

    def __init__(self, silent):
        self.silent = silent

    def ask(self, messages, *, timeout):
        return {name: self.answer(name, message) for name, message in messages.items()}

    def answer(self, name, message):
        if isinstance(message, Offer):
            return Accepted(run=RUN, pattern=GRID.patterns)
        if isinstance(message, CountsRequest):
            unit = mechanism_of(STUDY, GRID, number=0, rounds=0).unit
            values = np.zeros(GRID.width)
            for start, end in itertools.pairwise(GRID.offsets):
                values[start:end] = 4000.0 / (end - start)
            values[-1] = 4000.0  # everybody has everything
            return Release(run=RUN, round=0, unit=unit, values=np.rint(values / unit).astype(np.int64))
        if name in self.silent:
            return NoAnswer(reason="lost")
        noise = mechanism_of(STUDY, GRID, number=message.round, rounds=message.rounds)
        if message.round <= message.rounds:
            values = np.arange(noise.size, dtype=np.int64) << 22
        else:
            values = np.full(noise.size, round(20.0 / noise.unit))
        return Release(run=RUN, round=message.round, unit=noise.unit, values=values)

    def train(self):
        run = Run(
            run=RUN,
            study_text=TEXT,
            courier=self,
            minimum_holders=2,
            timeout_s=1.0,
            store=Store(),
            report=lambda step: None,
        )
        return run.train(list(NAMES))


class TestWhole:
    def test_a_run_asks_for_counts_and_then_for_each_round_and_spends_what_was_promised(self, federation):
        trained = federation.train()
        kinds = [(type(message), getattr(message, "round", 0)) for name, message in federation.asked]
        assert kinds == [
            (kind, number)
            for kind, number in [(Offer, 0), (CountsRequest, 0)]
            + [(GradientRequest, r + 1) for r in range(LAST)]
            for _ in NAMES
        ]
        assert (trained.rounds, trained.holders) == (ROUNDS, NAMES)
        assert trained.theta.shape == (GRID.width,)
        assert np.isfinite(trained.theta).all()
        for name in NAMES:
            assert 2.0 * (1 - 1e-6) <= federation.spent(name) <= 2.0

    def test_every_holder_gets_the_same_parameters(self, federation):
        federation.train()
        gradients = [message for _, message in federation.asked if isinstance(message, GradientRequest)]
        for number in range(1, LAST + 1):
            assert len({m.theta.tobytes() for m in gradients if m.round == number}) == 1

    def test_the_audit_is_one_of_the_card_that_is_published(self, federation):
        trained = federation.train()
        asked = {m.round: m.theta for _, m in federation.asked if isinstance(m, GradientRequest)}
        assert asked[LAST].tobytes() == trained.card.theta.tobytes()
        theta = trained.platt.theta(asked[ROUNDS + 1], GRID)
        assert theta.tobytes() == trained.theta.tobytes()
        assert (
            trained.card.points.tolist() == Scorecard.of(STUDY, GRID, theta, trained.counts).points.tolist()
        )

    def test_the_fit_knows_which_components_the_holders_have(self, federation):
        """What nobody has stays at zero: there is nothing but noise in its cells."""

        def lacks_the_house(message, honest):
            answer = honest()
            return replace(answer, pattern=0b110) if isinstance(answer, Accepted) else answer

        federation.faults = dict.fromkeys(NAMES, lacks_the_house)
        trained = federation.train()
        assert dict(trained.patterns) == dict.fromkeys(NAMES, 0b110)
        house = slice(GRID.offsets[3], GRID.offsets[4])
        assert not trained.theta[house].any()
        assert np.abs(trained.theta[: GRID.offsets[3]]).max() > 0

    def test_a_holder_that_states_components_that_the_study_does_not_have_ends_it(self, federation):
        def boasts(message, honest):
            answer = honest()
            return replace(answer, pattern=GRID.patterns + 1) if isinstance(answer, Accepted) else answer

        federation.faults = {"north": boasts}
        with pytest.raises(Refused, match="north states components"):
            federation.train()
        assert federation.open_runs() == dict.fromkeys(NAMES, ())

    def test_counts_are_the_exact_sum_of_what_was_released(self, federation):
        released = {}

        def note(name):
            def fault(message, honest):
                answer = honest()
                if isinstance(answer, Release) and answer.round == 0:
                    released[name] = answer
                return answer

            return fault

        federation.faults = {name: note(name) for name in NAMES}
        trained = federation.train()
        total = sum(release.values for release in released.values())
        unit = released["east"].unit
        assert np.allclose(trained.counts, total * unit, rtol=1e-12, atol=1e-12 * unit * 2**30)
        # Three times 300 persons, each once per feature, with noise.
        assert trained.counts[: GRID.size].sum() / FEATURES == pytest.approx(900, rel=0.5)

    def test_the_model_is_what_the_ledgers_integers_give(self, federation):
        trained = federation.train()
        check_exact(federation, trained, lambda number: NAMES)

    def test_progress_shows_what_is_spent_and_it_only_grows(self, federation):
        federation.train()
        kinds = ["offer", "counts", *["round"] * ROUNDS, "calibration", "audit"]
        assert [step.kind for step in federation.reports] == kinds
        assert [step.round for step in federation.reports] == [0, *range(LAST + 1)]
        spent = [step.epsilon for step in federation.reports]
        assert spent == sorted(spent)
        assert spent[0] == 0
        assert spent[-1] == pytest.approx(2.0, rel=1e-6)

    def test_closing_tells_the_holders_and_frees_their_ledgers(self, federation):
        run = federation.run()
        run.train(list(NAMES))
        run.close("done")
        assert federation.open_runs() == dict.fromkeys(NAMES, ())

    def test_a_holder_that_was_set_back_is_reported_when_a_finished_run_is_closed(self, federation):
        cloned = NoAnswer(reason="an older copy", ledger=True)
        federation.faults["south"] = lambda message, honest: (
            cloned if isinstance(message, Close) else honest()
        )
        run = federation.run()
        run.train(list(NAMES))
        run.close("done")
        (step,) = federation.steps("ledger")
        assert (step.holders, step.round) == (("south",), LAST)
        assert step.epsilon == pytest.approx(2.0, rel=1e-6)


class TestTooFew:
    def test_too_few_accept_and_nothing_is_spent_and_everyone_is_closed(self, tmp_path):
        strict = policy(epsilon_per_run=1.0)
        federation = Federation(tmp_path, rules={"north": strict, "south": strict})
        with pytest.raises(Refused, match=r"1 holder.*at least 2 .*north: declined \(epsilon\)") as caught:
            federation.train()
        assert caught.value.code == "holders"
        assert federation.store.saved == []
        assert federation.open_runs() == dict.fromkeys(NAMES, ())
        assert all(federation.spent(name) == 0 for name in NAMES)
        assert not any(isinstance(message, CountsRequest) for _, message in federation.asked)

    def test_two_holders_cannot_hide_in_a_sum_and_are_told_what_else_to_do(self, tmp_path):
        federation = Federation(tmp_path, text=SUMMED, rules={"north": policy(epsilon_per_run=1.0)})
        with pytest.raises(
            Refused, match=r'holders is 2; .*trust = "local".*north: declined \(epsilon\)'
        ) as no:
            federation.train()
        assert no.value.code == "holders"
        assert federation.open_runs() == dict.fromkeys(NAMES, ())
        assert {type(message) for _, message in federation.asked} == {Offer, Close}

    def test_enough_accept_and_the_others_are_left_alone(self, tmp_path):
        federation = Federation(tmp_path, rules={"south": policy(epsilon_per_run=1.0)})
        assert federation.train().holders == ("east", "north")
        assert federation.spent("south") == 0
        asked = [type(message) for name, message in federation.asked if name == "south"]
        assert asked == [Offer]

    def test_nobody_answers(self, federation):
        federation.faults = dict.fromkeys(NAMES, silent)
        with pytest.raises(Refused, match="0 holder"):
            federation.train()

    def test_an_acceptance_that_is_no_acceptance_does_not_count(self, federation):
        federation.faults = {
            "north": lambda message, honest: message,
            "south": lambda message, honest: message,
        }
        with pytest.raises(Refused, match=r"1 holder.*north: an unexpected answer"):
            federation.train()

    def test_fewer_than_the_minimum_at_the_counts_aborts_and_closes_everyone(self, federation):
        def lost(message, honest):
            return NoAnswer(reason="lost") if isinstance(message, CountsRequest) else honest()

        federation.faults = {"north": lost, "south": lost}
        with pytest.raises(TooFewHolders, match=r"round 0: 1 holder\(s\) answered in time.*at least 2"):
            federation.train()
        assert federation.open_runs() == dict.fromkeys(NAMES, ())
        assert federation.spent("north") == 0

    def test_fewer_than_the_minimum_in_a_round_aborts_and_closes_everyone(self, federation):
        federation.faults = {"north": silent_from(3), "south": silent_from(3)}
        with pytest.raises(TooFewHolders, match="round 3: 1 holder"):
            federation.train()
        assert federation.open_runs() == dict.fromkeys(NAMES, ())
        assert [message.outcome for _, message in federation.asked if isinstance(message, Close)] == [
            "aborted"
        ] * 3
        assert 0 < federation.spent("north") < federation.spent("east") < 2.0


class TestDropped:
    def test_a_holder_that_falls_silent_is_dropped_and_the_run_ends(self, federation):
        federation.faults = {"south": silent_from(2)}
        trained = federation.train()
        assert trained.holders == ("east", "north")
        dropped = [step for step in federation.reports if step.kind == "dropped"]
        assert [(step.round, step.holders, step.detail) for step in dropped] == [
            (2, ("south",), "no answer within 1 s")
        ]
        later = [message for name, message in federation.asked if name == "south"]
        assert max(message.round for message in later if isinstance(message, GradientRequest)) == 2
        assert federation.spent("south") < 2.0

    def test_a_dropped_holder_that_is_back_at_the_end_has_its_reservation_freed(self, federation):
        federation.faults = {"south": silent_from(2)}
        run = federation.run()
        run.train(list(NAMES))
        assert federation.open_runs()["south"] == (RUN,)
        run.close("done")
        assert federation.open_runs() == dict.fromkeys(NAMES, ())

    def test_a_dropped_holder_does_not_shrink_the_step(self):
        """With three equal holders, two stand for all three."""
        three, two = (Scripted(silent=names).train() for names in ((), ("south",)))
        assert two.holders == ("east", "north")
        assert np.abs(three.theta).max() > 0.1
        assert np.allclose(two.theta, three.theta, rtol=1e-9, atol=1e-12)
        assert three.baseline["scores"] == pytest.approx([120.0] * 20, rel=1e-3)
        assert two.baseline["scores"] == pytest.approx(three.baseline["scores"], rel=1e-9)

    @pytest.mark.parametrize(
        ("fault", "detail"),
        [
            (changed(2, round=lambda _: 3), "another round"),
            (changed(2, round=lambda _: 0), "another round"),
            (changed(2, values=lambda answer: answer.values[:-1]), "another round or model"),
            (changed(2, values=lambda answer: np.r_[answer.values, 0]), "another round or model"),
            (changed(2, values=lambda answer: answer.values + 2**45), "larger than its persons"),
            (changed(2, unit=lambda answer: answer.unit * 2), "another grid"),
            (changed(2, unit=lambda answer: np.nextafter(answer.unit, 1.0).item()), "another grid"),
            (lambda message, honest: Accepted(run=RUN, pattern=1), "unexpected"),
        ],
        ids=[
            "next round",
            "counts",
            "too short",
            "too long",
            "drowns the others",
            "twice the unit",
            "nearly the unit",
            "no release",
        ],
    )
    def test_a_release_that_does_not_fit_is_dropped(self, federation, fault, detail):
        def from_round_2(message, honest):
            late = isinstance(message, GradientRequest) and message.round == 2
            return fault(message, honest) if late else honest()

        federation.faults = {"south": from_round_2}
        assert federation.train().holders == ("east", "north")
        (dropped,) = [step for step in federation.reports if step.kind == "dropped"]
        assert (dropped.round, dropped.holders) == (2, ("south",))
        assert detail in dropped.detail

    def test_what_a_dropped_holder_sent_is_not_in_the_sum(self, federation):
        """Values that would wreck the model, on a grid that is not the run's."""
        huge = changed(
            1, unit=lambda answer: answer.unit * 2**40, values=lambda a: np.full_like(a.values, 2**52)
        )
        federation.faults = {"south": huge}
        assert np.abs(federation.train().theta).max() <= 10.0
        assert federation.store.saved[-1][0] == LAST


class TestResuming:
    @pytest.fixture
    def whole(self, federation):
        return federation.train()

    @pytest.mark.parametrize("number", range(LAST + 1))
    def test_from_every_checkpoint_it_ends_in_the_same_model_bit_for_bit(self, federation, whole, number):
        """The holders have released all rounds already, so they repeat what they sent."""
        charged = {name: federation.ledgers[name].charged(RUN) for name in NAMES}
        state = federation.store.state(number)
        federation.restart_all()
        again = federation.run().train([], state)
        assert again.theta.tobytes() == whole.theta.tobytes()
        assert again.counts.tobytes() == whole.counts.tobytes()
        assert (again.audit, again.baseline) == (whole.audit, whole.baseline)
        assert again.card.to_json() == whole.card.to_json()
        assert (again.rounds, again.holders) == (whole.rounds, whole.holders)
        assert {name: federation.ledgers[name].charged(RUN) for name in NAMES} == charged

    def test_from_the_offer_alone_it_ends_in_the_same_model(self, federation, whole):
        offered = federation.store.saved[0][1]
        federation.restart_all()
        assert federation.run().train([], offered).theta.tobytes() == whole.theta.tobytes()

    def test_without_a_checkpoint_it_begins_again_and_ends_in_the_same_model(self, federation, whole):
        federation.restart_all()
        assert federation.train().theta.tobytes() == whole.theta.tobytes()
        assert all(federation.spent(name) <= 2.0 for name in NAMES)

    def test_a_full_disk_leaves_the_run_open_and_it_goes_on_once_there_is_room(self, federation):
        """The holders have paid for the run: a coordinator that cannot store must not end it."""

        kept = federation.store

        class Full(Store):
            def save(self, number, state):
                if number >= 2:
                    raise Unavailable("database or disk is full")
                kept.save(number, state)

        federation.store = Full()
        with pytest.raises(Unavailable, match="full"):
            federation.train()
        assert federation.open_runs() == dict.fromkeys(NAMES, (RUN,))
        federation.store = kept
        trained = federation.resume()
        assert trained.rounds == ROUNDS
        assert all(federation.spent(name) <= 2.0 for name in NAMES)

    def test_a_holder_dropped_before_the_checkpoint_stays_dropped(self, federation):
        federation.faults = {"south": silent_from(2)}
        whole = federation.train()
        federation.faults = {}
        again = federation.run().train([], federation.store.state(2))
        assert again.theta.tobytes() == whole.theta.tobytes()
        assert again.holders == ("east", "north")

    @pytest.mark.parametrize("exchanges", range(LAST + 2))
    def test_a_stop_anywhere_leaves_the_run_to_be_resumed(self, federation, exchanges):
        steps = itertools.count()
        run = federation.run(stopping=lambda: next(steps) // 2 >= exchanges)
        with pytest.raises(Interrupted):
            run.train(list(NAMES))
        assert not any(isinstance(message, Close) for _, message in federation.asked)
        trained = federation.resume()
        assert trained.rounds == ROUNDS
        for name in NAMES:
            assert 2.0 * (1 - 1e-6) <= federation.spent(name) <= 2.0
            charges = [e for e in federation.ledgers[name].summary(LIMITS).entries if e["kind"] == "charge"]
            assert sorted(entry["round"] for entry in charges) == list(range(LAST + 1))

    def test_a_holder_cut_off_by_the_stop_is_not_dropped(self, federation):
        stop = []

        def cut_off(message, honest):
            if isinstance(message, GradientRequest) and message.round == 2:
                stop.append(True)
                return NoAnswer(reason="the coordinator is stopping")
            return honest()

        federation.faults = {"south": cut_off}
        with pytest.raises(Interrupted):
            federation.run(stopping=lambda: bool(stop)).train(list(NAMES))
        federation.faults = {}
        assert federation.resume().holders == NAMES


class TestHolderApp:
    """The holder answers nobody but its coordinator, and says no with one word."""

    def app(self, folder, **changes):
        log = []
        settings = {
            "identity": Identity.generate(),
            "federation": FEDERATION,
            "coordinator_key": COORDINATOR.public,
        }
        made = make_app(holder(folder, **changes), log=log.append, **settings)
        return made, settings["identity"], log

    def put(self, app, frame):
        grid = LocalGrid({"north": app})
        content = RecordDict({"assay": ConfigRecord({"frame": frame})})
        message = grid.create_message(content, "train", grid.nodes()["north"], "")
        (reply,) = grid.send_and_receive([message], timeout=5.0)
        return reply

    def test_an_offer_is_answered_with_a_signed_acceptance(self, tmp_path):
        app, identity, log = self.app(tmp_path)
        ask = Frame(federation=FEDERATION, sender="coordinator", receiver="north")
        reply = self.put(app, seal(offer(), ask, COORDINATOR))
        tell = Frame(federation=FEDERATION, sender="north", receiver="coordinator")
        answer = open_frame(reply.content["assay"]["frame"], tell, identity.public)
        assert (answer.kind, answer.run) == ("accepted", RUN)
        assert log == [f"run {RUN[:8]} offer: accepted"]

    @pytest.mark.parametrize(
        ("frame", "signer"),
        [
            (Frame(federation=FEDERATION, sender="coordinator", receiver="north"), Identity.generate()),
            (Frame(federation=FEDERATION, sender="coordinator", receiver="south"), COORDINATOR),
            (Frame(federation="0" * 64, sender="coordinator", receiver="north"), COORDINATOR),
            (Frame(federation=FEDERATION, sender="south", receiver="north"), COORDINATOR),
        ],
        ids=["another key", "replayed from south", "another federation", "not the coordinator"],
    )
    def test_a_question_that_is_not_its_coordinators_is_not_answered(self, tmp_path, frame, signer):
        app, _, log = self.app(tmp_path)
        reply = self.put(app, seal(offer(), frame, signer))
        assert reply.has_error()
        assert log == []
        with pytest.raises(Tampered):
            open_frame(seal(offer(), frame, Identity.generate()), frame, COORDINATOR.public)

    def test_a_refusal_leaves_with_one_word_and_its_reason_stays(self, tmp_path):
        app, identity, log = self.app(tmp_path, rules=policy(epsilon_per_run=1.0))
        ask = Frame(federation=FEDERATION, sender="coordinator", receiver="north")
        reply = self.put(app, seal(offer(), ask, COORDINATOR))
        tell = Frame(federation=FEDERATION, sender="north", receiver="coordinator")
        answer = open_frame(reply.content["assay"]["frame"], tell, identity.public)
        assert (answer.kind, answer.code) == ("declined", "epsilon")
        assert "policy.epsilon_per_run" in log[0]
