"""Secure aggregation at a holder: one question per round, one list per opening, the same after a crash."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from aggregation_support import (
    FOUR,
    IDENTITIES,
    LIMITS,
    NAMES,
    SEVEN,
    START,
    Federation,
    Killed,
    bare,
    kill,
    killed_after,
    proofs_of,
    shares_request,
)
from scipy import stats
from toy_study import (
    FEDERATION,
    GRID,
    LAST,
    OTHER_RUN,
    ROUNDS,
    RUN,
    SUMMED,
    TEXT,
    counts,
    gradient,
    offer,
    policy,
)

from assay.client import aggregation, circle
from assay.client.training import LocalTraining
from assay.models.label import mechanism_of
from assay.models.study import parse_study
from assay.privacy import mechanism
from assay.privacy.accounting import TALLIES
from assay.privacy.auditlog import AuditLog
from assay.privacy.errors import BadInput, Refused
from assay.privacy.ledger import Ledger
from assay.privacy.messages import (
    Close,
    OpenRequest,
    SharesRequest,
)
from assay.privacy.secagg import ADVERT_BYTES, SHARE_BYTES, Member, Terms

STUDY = parse_study(SUMMED)


@pytest.fixture
def make(tmp_path):
    made = []

    def build(*args, **settings):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Federation(folder, *args, **settings))
        return made[-1]

    yield build
    for each in made:
        each.stop()


@pytest.fixture
def three(make):
    return make().begin()


@pytest.fixture
def four(make):
    return make(FOUR).begin()


@pytest.fixture
def trained(monkeypatch):
    """The rounds whose sums were computed from records."""
    calls, real = [], LocalTraining.noisy

    def spy(self, *, number, **settings):
        calls.append(number)
        return real(self, number=number, **settings)

    monkeypatch.setattr(LocalTraining, "noisy", spy)
    return calls


@pytest.fixture
def no_noise(monkeypatch):
    monkeypatch.setattr(mechanism, "discrete_gaussian", lambda size, *_: np.zeros(size, dtype=np.int64))


def refusal(home, question, kind=Refused):
    with pytest.raises(kind) as caught:
        home.holder.answer(question)
    return getattr(caught.value, "code", None)


class TestWholeRun:
    @pytest.mark.parametrize("twice", [False, True], ids=["at once", "every question twice, with restarts"])
    def test_the_sum_is_exact_and_every_round_is_charged_once(self, make, twice):
        federation = make(twice=twice).begin()
        for number in range(LAST + 1):
            masked = federation.masked(number)
            assert np.array_equal(federation.total(number, masked), federation.stored(number))
        federation.close()
        for home in federation.homes.values():
            for kind in ("charge", "release", "open"):
                assert [row["round"] for row in home.rows(kind)] == list(range(LAST + 1))
            spent = home.ledger.summary(LIMITS).spent_epsilon
            assert 2.0 * (1 - 1e-6) <= spent <= 2.0
            home.ledger.verify()

    def test_the_ledger_says_which_part_of_the_noise_was_this_holders(self, four):
        four.masked(0)
        for home in four.homes.values():
            (row,) = home.rows("charge")
            assert row["noise_share"] == 1 / 3  # four holders, one tolerated
            assert row["question"] == four.context(0).hex()
            promised = mechanism_of(STUDY, GRID, number=0, rounds=0, contributors=3)
            assert row["noise_multiplier"] == promised.noise_multiplier

    def test_what_leaves_one_holder_looks_like_chance(self, three):
        """All bits of many masked values: each is one half the time, but for one in a million tries."""
        bits = []
        for number in range(LAST + 1):
            masked = three.masked(number)["north"].values
            assert not np.any(masked == three.homes["north"].integers(number).view(np.uint64))
            bits.append(np.unpackbits(masked.view(np.uint8)))
        ones = np.concatenate(bits)
        low, high = stats.binom.ppf([5e-7, 1 - 5e-7], ones.size, 0.5)
        assert low <= ones.sum() <= high

    def test_a_missing_holder_is_left_out_of_the_sum(self, four):
        for number, gone in ((0, "west"), (1, "east")):
            masked = four.masked(number)
            del masked[gone]
            assert np.array_equal(four.total(number, masked), four.stored(number, sorted(masked)))

    def test_a_later_session_may_have_fewer_holders(self, make):
        federation = make(FOUR, text=SUMMED.replace("rounds = 4", "rounds = 33")).begin()
        masked = federation.masked(0)
        assert np.array_equal(federation.total(0, masked), federation.stored(0))
        federation.names = NAMES
        federation.set_up(session=1)
        masked = federation.masked(32, rounds=33)
        total = federation.total(32, masked, rounds=33)
        assert np.array_equal(total, federation.stored(32))


class TestNoise:
    """The unmasked sum carries the noise that was promised, and a smaller share would be noticed."""

    T = 40
    FALSE_ALARM = 1e-6

    def noise(self, make, monkeypatch):
        text = SUMMED.replace("rounds = 4", f"rounds = {self.T}")
        noisy, plain = make(text=text).begin(), make(text=text).begin()
        noisy.set_up(session=1)
        plain.set_up(session=1)
        found = []
        for number in range(self.T + TALLIES + 1):
            total = noisy.total(number, noisy.masked(number, rounds=self.T), rounds=self.T)
            with monkeypatch.context() as off:
                off.setattr(mechanism, "discrete_gaussian", lambda size, *_: np.zeros(size, dtype=np.int64))
                truth = plain.total(number, plain.masked(number, rounds=self.T), rounds=self.T)
            promised = mechanism_of(STUDY, GRID, number=number, rounds=self.T, contributors=2)
            # All three have answered: their noise is 3/2 of what is promised with one of them tolerated.
            found.append((total - truth) / (promised.std / promised.unit * math.sqrt(3 / 2)))
        return np.concatenate(found)

    def looks_right(self, noise):
        low, high = stats.chi2.ppf([self.FALSE_ALARM / 2, 1 - self.FALSE_ALARM / 2], df=noise.size)
        return bool(low <= np.sum(noise**2) <= high)

    def test_the_sum_has_the_promised_variance_and_shape(self, make, monkeypatch):
        noise = self.noise(make, monkeypatch)
        assert self.looks_right(noise)
        assert stats.kstest(noise, "norm").pvalue > self.FALSE_ALARM
        assert not self.looks_right(noise * math.sqrt(2 / 3))  # shares of 1/n instead of 1/(n - t)
        assert not self.looks_right(noise / math.sqrt(2))


class TestSessions:
    def test_keys_need_an_accepted_run_under_distributed_trust(self, make):
        federation = make()
        home, request = federation.homes["north"], federation.keys_request()
        assert refusal(home, request) == "unknown"
        home.holder.answer(offer(TEXT))
        assert refusal(home, request) == "trust"
        assert home.sessions() == []

    def test_a_closed_run_begins_no_session(self, three):
        three.close()
        assert refusal(three.homes["north"], three.keys_request(session=1)) == "unknown"
        assert three.homes["north"].sessions() == []

    def test_a_run_that_is_closed_but_not_tidied_up_begins_no_session(self, three, monkeypatch):
        home = three.homes["north"]
        with monkeypatch.context() as killed:
            killed.setattr("pathlib.Path.unlink", kill)
            with pytest.raises(Killed):
                home.holder.answer(Close(run=RUN, outcome="done"))
        assert refusal(home, three.keys_request(session=1)) == "closed"
        assert home.sessions() == [f"{RUN}-0.json"]

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            (lambda keys: {**keys, "north": IDENTITIES["west"].public.hex()}, "holders"),
            (lambda keys: {name: keys[name] for name in ("east", "south")}, "holders"),
            (lambda keys: {name: keys[name] for name in ("north", "south")}, "holders"),
            (lambda keys: {**keys, "east": keys["south"]}, "holders"),
        ],
        ids=["own key replaced", "not in it", "two holders", "one key under two names"],
    )
    def test_a_circle_that_hides_nobody_is_refused(self, make, change, code):
        federation = make()
        federation.offer()
        honest = federation.keys_request()
        home = federation.homes["north"]
        assert refusal(home, replace(honest, holders=change(honest.holders))) == code
        assert home.sessions() == []
        assert home.holder.answer(honest).advert

    def test_enough_holders_must_remain_beside_the_tolerated(self, make):
        federation = make(text=SUMMED + "tolerated = 2\n")
        federation.offer()
        assert refusal(federation.homes["north"], federation.keys_request()) == "holders"

    def test_the_holders_own_minimum_counts(self, make):
        federation = make(rules={"north": policy(minimum_holders=4)})
        federation.offer()
        assert refusal(federation.homes["north"], federation.keys_request()) == "holders"
        assert federation.homes["east"].holder.answer(federation.keys_request()).advert

    def test_pinned_peers_and_nobody_else_are_summed_with(self, make):
        pins = {"east": IDENTITIES["east"].fingerprint.lower(), "south": IDENTITIES["south"].fingerprint}
        federation = make(FOUR, rules={"north": policy(peers=pins)})
        federation.offer()
        home = federation.homes["north"]
        assert refusal(home, federation.keys_request(FOUR)) == "holders"
        swapped = federation.keys_request(NAMES)
        swapped.holders["east"] = IDENTITIES["west"].public.hex()
        assert refusal(home, swapped) == "holders"
        assert home.holder.answer(federation.keys_request(NAMES)).advert

    def test_a_session_begins_once_with_one_set_of_holders(self, make):
        federation = make(FOUR)
        federation.offer()
        home = federation.homes["north"]
        first = home.holder.answer(federation.keys_request(FOUR))
        assert refusal(home, federation.keys_request(NAMES)) == "changed"
        home.restart()
        assert refusal(home, federation.keys_request(NAMES)) == "changed"
        assert home.holder.answer(federation.keys_request(FOUR)) == first

    def test_a_holder_cannot_become_another_during_a_run(self, three):
        request = three.keys_request(session=1)
        request.holders["east"] = IDENTITIES["west"].public.hex()
        home = three.homes["north"]
        assert refusal(home, request) == "changed"
        home.restart()
        assert refusal(home, request) == "changed"
        assert home.sessions() == [f"{RUN}-0.json"]

    def test_every_session_and_every_run_has_its_own_keys(self, make):
        federation = make(rules={name: policy(epsilon_per_year=4, epsilon_per_study=4) for name in NAMES})
        federation.offer()
        adverts = [federation.adverts(session=session)["north"] for session in (0, 1)]
        federation.offer(OTHER_RUN)
        adverts.append(federation.adverts(run=OTHER_RUN)["north"])
        words = [advert[at : at + 32] for advert in adverts for at in range(0, ADVERT_BYTES - 64, 32)]
        assert len(set(words)) == len(words)

    def test_shares_go_to_one_set_of_holders(self, make):
        federation = make(FOUR)
        federation.offer()
        adverts = federation.adverts()
        home = federation.homes["north"]
        smaller = {name: adverts[name] for name in NAMES}
        first = home.holder.answer(shares_request(adverts))
        assert refusal(home, shares_request(smaller)) == "changed"
        home.restart()
        assert refusal(home, shares_request(smaller)) == "changed"
        assert home.holder.answer(shares_request(adverts)) == first

    def test_adverts_that_do_not_verify_fix_nothing(self, make):
        federation = make()
        federation.offer()
        adverts = federation.adverts()
        home = federation.homes["north"]
        for name in NAMES:
            broken = {**adverts, name: adverts[name][:-1] + bytes([adverts[name][-1] ^ 1])}
            assert refusal(home, shares_request(broken)) == "aggregation"
        foreign = Member(
            name="east",
            terms=Terms(
                federation=FEDERATION,
                run=OTHER_RUN,
                session=0,
                study=STUDY.digest,
                keys={name: IDENTITIES[name].public for name in NAMES},
            ),
            seed=bytes(32),
            identity=IDENTITIES["east"],
        ).advert()
        assert refusal(home, shares_request({**adverts, "east": foreign})) == "aggregation"
        assert home.log("session") == []
        assert home.holder.answer(shares_request(adverts)).shares

    def test_adverts_of_too_few_or_without_its_own_are_refused(self, make):
        federation = make(FOUR)
        federation.offer()
        adverts = federation.adverts()
        home = federation.homes["north"]
        two = {name: adverts[name] for name in ("east", "north")}
        assert refusal(home, shares_request(two)) == "holders"
        others = {name: adverts[name] for name in ("east", "south", "west")}
        assert refusal(home, shares_request(others)) == "aggregation"
        cut = shares_request(adverts)
        assert refusal(home, replace(cut, adverts=cut.adverts[:-4])) == "aggregation"

    def test_shares_before_keys_are_refused(self, make):
        federation = make()
        federation.offer()
        request = SharesRequest(run=RUN, session=0, names=list(NAMES), adverts=bytes(3 * ADVERT_BYTES))
        assert refusal(federation.homes["north"], request) == "unknown"

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
    def test_a_session_file_that_others_can_read_is_refused(self, three, mode, trained):
        home = three.homes["north"]
        home.session_file().chmod(mode)
        home.restart()
        with pytest.raises(BadInput, match="chmod 600"):
            home.holder.answer(three.mask("north"))
        assert trained == []
        assert home.rows("charge") == []

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: "",
            lambda text: "[]",
            lambda text: "[" * 100_000,
            lambda text: text[: len(text) // 2],
            lambda text: text.replace('"seed":"', '"seed":"00'),
            lambda text: text.replace('"seed":"', '"seed":"zz'),
            lambda text: text.replace('"adverts":{', '"adverts":3,"x":{'),
            lambda text: text.replace('"adverts":{"east":"', '"adverts":{"east":"x'),
            lambda text: text.replace('"holders":{"east"', '"holders":{"toast"'),
        ],
    )
    def test_a_damaged_session_file_ends_the_run_here_with_words(self, three, damage, trained):
        home = three.homes["north"]
        file = home.session_file()
        file.write_text(damage(file.read_text()))
        home.restart()
        assert refusal(home, three.mask("north")) == "aggregation"
        assert trained == []

    def test_session_files_are_private_and_gone_after_the_run(self, three):
        home = three.homes["north"]
        three.masked(0)
        folder = home.directory / "sessions"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]
        three.close()
        assert home.sessions() == []

    def test_an_abandoned_run_leaves_no_seed_behind(self, three):
        home = three.homes["north"]
        home.rules = policy(epsilon_per_year=4, epsilon_per_study=4)
        home.restart()
        home.holder.answer(offer(SUMMED, OTHER_RUN))
        assert home.sessions() == []
        assert refusal(home, three.mask("north")) == "unknown"

    def test_a_crash_while_closing_leaves_nothing_behind_after_the_next_start(self, three, monkeypatch):
        home = three.homes["north"]
        (home.directory / "sessions" / f".{RUN}-1.json.77.tmp").write_text("half")
        with monkeypatch.context() as killed:
            killed.setattr(circle.CircleStore, "forget", kill)
            killed.setattr("pathlib.Path.unlink", kill)
            with pytest.raises(Killed):
                home.holder.answer(Close(run=RUN, outcome="done"))
        assert home.sessions() != []
        home.restart()
        assert home.sessions() == []
        assert list((home.directory / "accepted").glob("*.toml")) == []
        assert refusal(home, three.mask("north")) == "unknown"


class TestOneQuestionPerRound:
    def variants(self, federation, number):
        theta = START + 1e-12
        yield federation.mask("north", number, active=NAMES)  # without west
        if number:
            yield federation.mask("north", number, theta=theta)
            yield federation.mask("north", number, rounds=ROUNDS + 1)

    @pytest.mark.parametrize("number", [0, 1])
    @pytest.mark.parametrize("restart", [False, True])
    def test_another_question_in_the_same_round_is_refused(self, four, trained, number, restart):
        home = four.homes["north"]
        first = home.holder.answer(four.mask("north", number))
        computed, rows, file = len(trained), home.rows(), home.session_file()
        kept = file.read_bytes()
        if restart:
            home.restart()
        for question in self.variants(four, number):
            assert refusal(home, question) == "changed"
        assert (len(trained), home.rows(), file.read_bytes()) == (computed, rows, kept)
        assert bare(home.holder.answer(four.mask("north", number))) == bare(first)

    def test_as_many_other_holders_are_another_question(self, make):
        federation = make(SEVEN[:5]).begin()
        home, others = federation.homes["north"], (*NAMES, SEVEN[4])
        home.holder.answer(federation.mask("north", active=FOUR))
        assert refusal(home, federation.mask("north", active=others)) == "changed"
        home.restart()
        assert refusal(home, federation.mask("north", active=others)) == "changed"

    def test_another_question_is_refused_when_the_first_was_only_charged(self, four, monkeypatch):
        home = four.homes["north"]
        with monkeypatch.context() as killed:
            killed.setattr(LocalTraining, "noisy", kill)
            with pytest.raises(Killed):
                home.holder.answer(four.mask("north"))
        home.restart()
        assert refusal(home, four.mask("north", active=NAMES)) == "changed"
        assert home.rows("release") == []
        assert home.holder.answer(four.mask("north")).round == 0

    def test_the_context_is_what_the_other_holders_compute(self, four):
        """Masks of holders that were asked different things do not cancel."""
        masked = four.masked(1, names=("east", "north", "south"))
        masked["west"] = four.ask("west", four.mask("west", 1, theta=START + 1e-9))
        with pytest.raises(Refused) as caught:
            four.total(1, masked)
        assert caught.value.code == "aggregation"  # the proofs of one speak of another model

    def test_a_holder_that_was_not_set_up_masks_nothing(self, make, trained):
        federation = make()
        federation.offer()
        home = federation.homes["north"]
        assert refusal(home, federation.mask("north")) == "unknown"
        home.holder.answer(federation.keys_request())
        assert refusal(home, federation.mask("north")) == "unknown"
        assert trained == []
        assert home.rows("charge") == []

    @pytest.mark.parametrize("active", [("east", "south", "west"), (*FOUR, "zoe"), ("east", "north")])
    def test_active_holders_that_are_not_of_the_session_or_too_few_are_refused(self, four, active, trained):
        home = four.homes["north"]
        assert refusal(home, four.mask("north", active=active)) == "holders"
        assert trained == []
        assert home.rows("charge") == []

    def test_fewer_active_holders_than_the_threshold_are_refused(self, make, trained):
        """Five holders: four must open, so a round for three could never be opened by honest ones."""
        federation = make(SEVEN[:5]).begin()
        assert refusal(federation.homes["north"], federation.mask("north", active=NAMES)) == "holders"
        assert trained == []
        federation.masked(0, names=FOUR, active=FOUR)

    def test_the_holders_own_minimum_counts_in_every_round(self, make, trained):
        federation = make(FOUR, rules={"north": policy(minimum_holders=4)}).begin()
        assert refusal(federation.homes["north"], federation.mask("north", active=NAMES)) == "holders"
        assert trained == []

    @pytest.mark.parametrize(("session", "number"), [(1, 0), (1, 31), (0, 32)])
    def test_a_round_belongs_to_one_session(self, three, session, number, trained):
        three.set_up(session=1)
        question = replace(three.mask("north", number, rounds=40), session=session)
        assert refusal(three.homes["north"], question) == "aggregation"
        assert trained == []

    @pytest.mark.parametrize("theta", [np.zeros(GRID.size), np.full(GRID.width, 1e300)])
    def test_parameters_of_no_model_are_refused_and_cost_nothing(self, three, theta):
        home = three.homes["north"]
        with pytest.raises(BadInput, match="theta"):
            home.holder.answer(three.mask("north", 1, theta=theta))
        assert home.rows("charge") == []

    def test_the_number_of_rounds_cannot_change_during_a_run(self, three):
        home = three.homes["north"]
        home.holder.answer(three.mask("north", 1))
        home.restart()
        assert refusal(home, three.mask("north", 2, rounds=ROUNDS + 1)) == "changed"
        assert len(home.rows("charge")) == 1

    def test_a_run_beyond_the_budget_is_refused_whole(self, three, trained):
        home = three.homes["north"]
        three.masked(0)
        three.close()
        before, computed = home.rows(), len(trained)
        dear = SUMMED.replace("epsilon = 2.0", "epsilon = 1.99")
        assert refusal(home, offer(dear, OTHER_RUN)) == "budget"
        assert refusal(home, three.keys_request(run=OTHER_RUN)) == "unknown"
        assert (home.rows(), len(trained)) == (before, computed)


class TestTrust:
    def test_a_distributed_run_releases_nothing_in_the_clear(self, three, trained):
        home = three.homes["north"]
        for question in (counts(), gradient(1)):
            assert refusal(home, question) == "trust"
        assert trained == []
        assert home.rows("charge") == []

    def test_a_local_run_masks_nothing(self, make, trained):
        federation = make()
        home = federation.homes["north"]
        home.holder.answer(offer(TEXT))
        for question in (
            federation.mask("north"),
            federation.survivors_request(NAMES),
            OpenRequest(**federation.about(0, NAMES), signers=["north"], blob=bytes(64)),
        ):
            assert refusal(home, question) == "trust"
        assert trained == []


class TestOpening:
    def ready(self, federation, number=0):
        masked = federation.masked(number)
        return masked, proofs_of(masked)

    def test_only_one_list_of_survivors_is_signed(self, four):
        home = four.homes["north"]
        four.masked(0)
        first = home.holder.answer(four.survivors_request(NAMES))
        for others in (FOUR, ("east", "north", "west"), ("north", "south", "west")):
            assert refusal(home, four.survivors_request(others)) == "changed"
        home.restart()
        assert refusal(home, four.survivors_request(("east", "north", "west"))) == "changed"
        assert home.holder.answer(four.survivors_request(NAMES)) == first
        assert len(home.rows("open")) == 1

    @pytest.mark.parametrize("restart", [False, True])
    def test_both_shares_of_one_holder_are_never_given(self, four, restart):
        """First all of them survive; then one is said to be missing, with proofs from everybody."""
        masked, proofs = self.ready(four)
        home = four.homes["north"]
        everybody = four.open_request("north", 0, survivors=FOUR, active=FOUR, proofs=proofs)
        given = home.holder.answer(everybody)
        if restart:
            home.restart()
        # The other three are in league with the coordinator and sign what it wants.
        context = four.context(0)
        consents = {}
        for name in NAMES:
            seed = json.loads((four.homes[name].directory / "sessions" / f"{RUN}-0.json").read_text())["seed"]
            terms = four.tallies[RUN, 0].cohort.terms
            member = Member(name=name, terms=terms, seed=bytes.fromhex(seed), identity=IDENTITIES[name])
            member.join(four.tallies[RUN, 0].cohort.raw)
            question = hashlib.sha256(bytes(8)).digest()  # theta of the counts: one zero
            assert member.context(round=0, rounds=0, question=question, active=FOUR) == context
            consents[name] = member.consent(0, context, NAMES)
        without_west = four.open_request("north", 0, survivors=NAMES, active=FOUR, proofs=consents)
        assert refusal(home, without_west) == "changed"
        assert refusal(home, four.survivors_request(NAMES)) == "changed"
        assert home.holder.answer(everybody) == given
        assert len(masked) == 4

    def test_a_kill_between_the_ledger_and_the_answer_fixes_the_list(self, four, monkeypatch):
        _, proofs = self.ready(four)
        home = four.homes["north"]
        with monkeypatch.context() as killed:
            killed.setattr(Member, "open", kill)
            with pytest.raises(Killed):
                home.holder.answer(four.open_request("north", 0, survivors=FOUR, active=FOUR, proofs=proofs))
        home.restart()
        assert refusal(home, four.survivors_request(NAMES)) == "changed"
        home.holder.answer(four.open_request("north", 0, survivors=FOUR, active=FOUR, proofs=proofs))

    @pytest.mark.parametrize("method", ["consent", "open"])
    def test_nothing_is_revealed_before_it_is_in_the_ledger(self, four, monkeypatch, method):
        _, proofs = self.ready(four)
        home, seen = four.homes["north"], []
        real = getattr(Member, method)

        def spy(self, *args, **settings):
            with Ledger.open(
                home.directory / "ledger.sqlite", IDENTITIES["north"], read_only=True
            ) as another_process:
                rows = another_process.summary(LIMITS).entries
            seen.append([row["kind"] for row in rows][-1])
            seen.append(len(home.log("open")))
            return real(self, *args, **settings)

        monkeypatch.setattr(Member, method, spy)
        if method == "consent":
            home.holder.answer(four.survivors_request(NAMES))
        else:
            home.holder.answer(four.open_request("north", 0, survivors=FOUR, active=FOUR, proofs=proofs))
        assert seen == ["open", 1]

    def test_a_disk_that_cannot_keep_the_choice_gets_nothing_opened(self, four, monkeypatch):
        _, proofs = self.ready(four)
        home, opened = four.homes["north"], []
        monkeypatch.setattr(Ledger, "open_round", kill)
        monkeypatch.setattr(Member, "open", lambda *args, **settings: opened.append(1))
        monkeypatch.setattr(Member, "consent", lambda *args, **settings: opened.append(1))
        for question in (
            four.open_request("north", 0, survivors=FOUR, active=FOUR, proofs=proofs),
            four.survivors_request(NAMES),
        ):
            with pytest.raises(Killed):
                home.holder.answer(question)
        assert opened == []

    @pytest.mark.parametrize(
        "survivors",
        [("east", "south", "west"), ("east", "north"), ("north",)],
        ids=["without this holder", "below the threshold", "this holder alone"],
    )
    def test_survivors_that_cannot_be_are_refused_and_fix_nothing(self, four, survivors):
        _, proofs = self.ready(four)
        home = four.homes["north"]
        assert refusal(home, four.survivors_request(survivors)) == "holders"
        question = four.open_request("north", 0, survivors=FOUR, active=FOUR, proofs=proofs)
        assert refusal(home, replace(question, survivors=sorted(survivors))) == "holders"
        assert home.rows("open") == []
        assert home.holder.answer(question).shares

    def test_more_missing_than_tolerated_would_leave_too_little_noise(self, make):
        """Seven holders, threshold five: with two missing it could be opened, but noise allows one."""
        federation = make(SEVEN).begin()
        federation.masked(0)
        home = federation.homes["north"]
        assert refusal(home, federation.survivors_request((*FOUR, "xena"))) == "holders"
        assert home.rows("open") == []
        assert home.holder.answer(federation.survivors_request((*FOUR, "xena", "yan"))).signature

    @pytest.mark.parametrize("restart", [False, True])
    def test_nobody_can_be_said_to_have_been_inactive(self, make, restart):
        """Seven were asked and two are missing; a coordinator that says six were asked is found out."""
        federation = make(SEVEN).begin()
        federation.masked(0)
        home = federation.homes["north"]
        if restart:
            home.restart()
        five, six = SEVEN[:5], SEVEN[:6]
        assert refusal(home, federation.survivors_request(five, active=six)) == "changed"
        assert home.rows("open") == []

    @pytest.mark.parametrize("restart", [False, True])
    @pytest.mark.parametrize(
        "other",
        [{"active": NAMES}, {"theta": START + 1}, {"rounds": ROUNDS + 1}],
        ids=["active", "model", "T"],
    )
    def test_a_round_is_opened_for_the_question_that_was_answered(self, four, other, restart):
        masked = four.masked(1)
        home = four.homes["north"]
        if restart:
            home.restart()
        assert refusal(home, four.survivors_request(NAMES, 1, **other)) == "changed"
        proofs = {name: sent for name, sent in proofs_of(masked).items() if name in NAMES}
        question = four.open_request("north", 1, survivors=NAMES, proofs=proofs, **({"active": FOUR} | other))
        assert refusal(home, question) == "changed"
        assert home.rows("open") == []
        assert len(home.rows("charge")) == 1

    def test_the_holders_own_minimum_counts_for_survivors(self, make):
        federation = make(FOUR, rules={"north": policy(minimum_holders=4)}).begin()
        federation.masked(0)
        assert refusal(federation.homes["north"], federation.survivors_request(NAMES)) == "holders"

    def test_a_round_that_was_not_answered_is_not_opened(self, four):
        home = four.homes["north"]
        assert refusal(home, four.survivors_request(NAMES)) == "unknown"
        _, proofs = self.ready(four)
        question = four.open_request("north", 0, survivors=FOUR, active=FOUR, proofs=proofs)
        assert refusal(home, replace(question, round=1, rounds=ROUNDS)) == "unknown"
        assert refusal(home, replace(question, session=1)) == "unknown"
        assert home.rows("open") == []

    def test_a_round_of_a_closed_run_is_not_opened(self, four):
        _, proofs = self.ready(four)
        four.close("aborted")
        question = four.open_request("north", 0, survivors=FOUR, active=FOUR, proofs=proofs)
        assert refusal(four.homes["north"], question) == "unknown"

    def test_proofs_or_shares_that_are_not_what_others_sent_open_nothing(self, four):
        _, proofs = self.ready(four)
        home = four.homes["north"]
        good = four.open_request("north", 0, survivors=FOUR, active=FOUR, proofs=proofs)
        fewer = {name: proofs[name] for name in NAMES}
        for blob in (
            good.blob[:-1],
            good.blob + b"\0",
            bytes(64) + good.blob[64:],
            good.blob[:-SHARE_BYTES] + bytes(SHARE_BYTES),
        ):
            assert refusal(home, replace(good, blob=blob)) == "aggregation"
        missing = four.open_request("north", 0, survivors=FOUR, active=FOUR, proofs=fewer)
        assert refusal(home, missing) == "aggregation"
        assert home.holder.answer(good).shares

    def test_signatures_that_something_was_sent_are_no_consent(self, four):
        _, proofs = self.ready(four)
        sent = {name: proofs[name] for name in NAMES}
        question = four.open_request("north", 0, survivors=NAMES, active=FOUR, proofs=sent)
        assert refusal(four.homes["north"], question) == "aggregation"


def never(*args, **settings):
    pytest.fail("computed again, though the answer is stored")


MASK_STEPS = [
    (Ledger, "charge"),
    (LocalTraining, "noisy"),
    (Ledger, "release"),
    (AuditLog, "append"),
    (Member, "sent"),
    (Member, "masked"),
]
OPEN_STEPS = [(Ledger, "open_round"), (AuditLog, "append"), (Member, "open")]
SET_UP_STEPS = [(circle.CircleStore, "save"), (Member, "advert"), (Member, "shares"), (AuditLog, "append")]


def step(case):
    return f"{case[0].__name__}.{case[1]}"


def die(monkeypatch, home, question, where, when):
    """Put a question to a holder that is killed before or after one of its steps; then start it again."""
    owner, method = where
    with monkeypatch.context() as patched:
        patched.setattr(owner, method, kill if when == "before" else killed_after(getattr(owner, method)))
        try:
            home.holder.answer(question)
        except Killed:
            died = True
        else:
            died = False
    home.restart()
    return died


@pytest.mark.parametrize("when", ["before", "after"])
class TestKilled:
    @pytest.mark.parametrize("where", MASK_STEPS, ids=step)
    def test_while_masking_it_answers_as_if_nothing_had_happened(self, three, monkeypatch, where, when):
        home, question = three.homes["north"], three.mask("north")
        assert die(monkeypatch, home, question, where, when)
        masked = three.masked(0)
        if where[1] not in ("charge", "noisy") and (where[1], when) != ("release", "before"):
            home.restart()
            monkeypatch.setattr(LocalTraining, "noisy", never)
        assert bare(home.holder.answer(question)) == bare(masked["north"])
        assert np.array_equal(three.total(0, masked), three.stored(0))
        assert len(home.rows("charge")) == len(home.rows("release")) == len(home.log("release")) == 1
        assert home.log("release")[0]["ledger_seq"] == home.rows("release")[0]["seq"]

    @pytest.mark.parametrize("where", OPEN_STEPS, ids=step)
    def test_while_opening_it_opens_the_same(self, four, monkeypatch, where, when):
        masked = four.masked(0)
        home = four.homes["north"]
        question = four.open_request("north", 0, survivors=FOUR, active=FOUR, proofs=proofs_of(masked))
        assert die(monkeypatch, home, question, where, when)
        assert np.array_equal(four.total(0, masked), four.stored(0))
        assert len(home.rows("open")) == len(home.log("open")) == 1

    @pytest.mark.parametrize("where", [OPEN_STEPS[0], OPEN_STEPS[1], (Member, "consent")], ids=step)
    def test_while_consenting_it_consents_to_the_same(self, four, monkeypatch, where, when):
        masked = four.masked(0)
        del masked["west"]
        home = four.homes["north"]
        assert die(monkeypatch, home, four.survivors_request(NAMES), where, when)
        assert np.array_equal(four.total(0, masked), four.stored(0, NAMES))
        assert len(home.rows("open")) == len(home.log("open")) == 1

    @pytest.mark.parametrize("where", SET_UP_STEPS, ids=step)
    def test_while_setting_up_it_keeps_its_keys(self, make, monkeypatch, where, when):
        federation = make()
        federation.offer()
        home = federation.homes["north"]
        died = die(monkeypatch, home, federation.keys_request(), where, when)
        adverts = federation.adverts()
        died |= die(monkeypatch, home, shares_request(adverts), where, when)
        assert died
        federation.set_up()
        masked = federation.masked(0)
        assert np.array_equal(federation.total(0, masked), federation.stored(0))


def test_the_seed_of_a_session_comes_from_the_operating_system(make, monkeypatch):
    drawn = []

    def urandom(size):
        drawn.append(size)
        return bytes(range(size))

    federation = make()
    federation.offer()
    monkeypatch.setattr(aggregation.os, "urandom", urandom)
    federation.homes["north"].holder.answer(federation.keys_request())
    assert 32 in drawn
    file = federation.homes["north"].directory / "sessions" / f"{RUN}-0.json"
    assert json.loads(file.read_text())["seed"] == bytes(range(32)).hex()
