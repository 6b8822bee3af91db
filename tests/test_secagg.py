"""Secure aggregation: the exact sum of those that stayed, or a typed refusal and nothing given away."""

from __future__ import annotations

import copy
import itertools
import json
from random import Random

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from secagg_support import (
    CONSENT,
    KEYS,
    MASKED,
    NAMES,
    NEVER,
    OPENED,
    ROUNDS,
    SHARES,
    VECTORS,
    Session,
    fixed,
    forged_advert,
    identity,
    low_order_points,
    make_vectors,
    play,
    succeeds,
    terms,
)

from assay.privacy.cohort import Advert
from assay.privacy.errors import AssayError, BadInput, Refused
from assay.privacy.masking import add_pair_mask, agree, require_point, self_mask
from assay.privacy.secagg import (
    ADVERT_BYTES,
    MAX_HOLDERS,
    MIN_HOLDERS,
    SESSION_ROUNDS,
    SHARE_BYTES,
    VALUE_BOUND,
    Member,
    Tally,
    Terms,
    threshold,
)

FIVE = NAMES[:5]


@pytest.fixture(scope="module")
def five_once() -> Session:
    return Session(FIVE)


@pytest.fixture
def five(five_once) -> Session:
    """Five holders as they are after a restart: joined, nothing remembered. Four must open."""
    session = copy.copy(five_once)
    session.members = {name: five_once.joined(name) for name in FIVE}
    return session


def refused(match: str, code: str = "aggregation"):
    return _Refusal(match, code)


class _Refusal:
    """As ``pytest.raises(Refused)``, and the code is the expected one."""

    def __init__(self, match: str, code: str) -> None:
        self._raises, self._code = pytest.raises(Refused, match=match), code

    def __enter__(self):
        self._info = self._raises.__enter__()

    def __exit__(self, *error: object):
        done = self._raises.__exit__(*error)
        assert self._info.value.code == self._code
        return done


# The sum ------------------------------------------------------------


def test_the_sum_is_exact_and_masked_values_look_like_nothing(five):
    asked = five.ask(3, size=1000)
    total, liars = five.unmask(asked, five.open_all(asked))
    np.testing.assert_array_equal(total, asked.expected)
    assert total.dtype == np.int64
    assert liars == ()
    for name, masked in asked.masked.items():
        assert masked.dtype == np.uint64
        assert not (masked.view(np.int64) == asked.values[name]).any()
        # Values are below 2^44 in size; of uniform words one in 2^19 is. The seeds are fixed: no false alarm.
        assert (np.abs(masked.view(np.int64).astype(float)) < 2**44).sum() < 2


@pytest.mark.parametrize("extreme", [VALUE_BOUND, -VALUE_BOUND, 0])
def test_values_at_the_bound_are_added_exactly(five, extreme):
    asked = five.ask(0)
    for name in FIVE:
        asked.values[name] = np.full(3, extreme)
        member = five.members[name] = asked.put_to(five.joined(name))
        asked.masked[name] = member.masked(
            asked.values[name], round=0, context=asked.context, active=asked.active
        )
    total, _ = five.unmask(asked, five.open_all(asked))
    assert total.tolist() == [5 * extreme] * 3


def test_threshold_shares_suffice_and_more_give_the_same(five):
    asked = five.ask(1)
    opened = five.open_all(asked)
    sums = [
        five.unmask(asked, {name: opened[name] for name in some})[0]
        for count in (4, 5)
        for some in itertools.combinations(FIVE, count)
    ]
    assert all((total == asked.expected).all() for total in sums)


def test_values_that_cannot_be_written_to_are_masked_and_left_as_they_are(five):
    values = np.arange(4)
    values.flags.writeable = False
    member = five.members[FIVE[0]]
    context = member.context(round=0, rounds=0, question=b"", active=FIVE)
    member.masked(values, round=0, context=context, active=FIVE)
    assert values.tolist() == [0, 1, 2, 3]


def test_order_of_names_does_not_matter(five):
    backwards = tuple(reversed(FIVE))
    asked = five.ask(0, active=backwards)
    assert asked.context == five.tally.context(round=0, rounds=ROUNDS, question=b"theta", active=FIVE)
    total, _ = five.unmask(asked, five.open_all(asked), active=FIVE)
    np.testing.assert_array_equal(total, asked.expected)


def test_a_restart_gives_the_same_bytes(five):
    asked, again = five.ask(7, missing=FIVE[:1]), {}
    name = FIVE[2]
    member = five.member(name)
    assert member.advert() == five.adverts[name]
    member.join(five.adverts)
    assert member.shares() == five.shares[name]
    asked.put_to(member)
    again = member.masked(asked.values[name], round=7, context=asked.context, active=FIVE)
    np.testing.assert_array_equal(again, asked.masked[name])
    assert member.consent(7, asked.context, asked.survivors) == asked.proofs[name]
    assert five.open(name, asked, member=member) == five.open(name, asked)


def test_the_coordinator_stores_and_restores_its_half(five):
    asked = five.ask(0, missing=FIVE[4:])
    five.tally = five.new_tally(FIVE[1:])
    five.tally = Tally.unpack(five.terms, five.tally.pack())
    assert five.tally.sharers == FIVE[1:]
    five.tally.add_shares(FIVE[0], five.shares[FIVE[0]])
    five.tally = Tally.unpack(five.terms, five.tally.pack())
    assert (five.tally.names, five.tally.threshold) == (FIVE, 4)
    total, _ = five.unmask(asked, five.open_all(asked))
    np.testing.assert_array_equal(total, asked.expected)


# Holders that drop out ------------------------------------------------------------


def outcome(session: Session, number: int, drops: dict[str, int]) -> None:
    """Check one pattern of drop-outs: the exact sum where counting says so, else a refusal."""
    opened: dict[str, bytes] = {}
    if succeeds(list(drops), drops):
        play(session, number, drops, opened)
        return
    with pytest.raises(Refused) as caught:
        play(session, number, drops, opened)
    assert caught.value.code == "aggregation"
    assert len(opened) < threshold(len(session.members))


def try_patterns(patterns) -> None:
    """Play each pattern in a round of its own, in sessions of those that sent keys."""
    sessions: dict[tuple[str, ...], tuple[Session, itertools.count]] = {}
    for drops in patterns:
        joined = tuple(name for name in drops if drops[name] > KEYS)
        if len(joined) < MIN_HOLDERS:
            assert not succeeds(list(drops), drops)
            with refused("needs 3"):
                Tally(terms(tuple(drops)), dict.fromkeys(joined, b""))
            continue
        if joined not in sessions:
            sessions[joined] = Session(joined, terms(tuple(drops))), itertools.count()
        session, numbers = sessions[joined]
        number = next(numbers)
        if number % SESSION_ROUNDS == 0:
            session.members = {name: session.joined(name) for name in joined}
        outcome(session, number % SESSION_ROUNDS, drops)


def test_three_holders_every_pattern_of_drop_outs():
    patterns = itertools.product(range(NEVER + 1), repeat=3)
    try_patterns(dict(zip(NAMES, pattern, strict=False)) for pattern in patterns)


@pytest.mark.parametrize("phase", [KEYS, SHARES, MASKED, CONSENT, OPENED])
def test_five_holders_every_set_of_drop_outs_in_every_phase(phase):
    sets = itertools.product((phase, NEVER), repeat=5)
    try_patterns(dict(zip(NAMES, pattern, strict=False)) for pattern in sets)


def random_patterns(count: int, patterns: int, sets: int):
    """Yield patterns in which a few holders fall silent anywhere, for a few different sets of keys."""
    draw = Random(count)
    late = []
    for _ in range(sets):
        gone = draw.sample(NAMES[:count], draw.choice((0, 0, 1, 2)))
        late.append(dict.fromkeys(gone, KEYS))
    for number in range(patterns):
        drops = dict.fromkeys(NAMES[:count], NEVER)
        for name in draw.sample(NAMES[:count], draw.randint(0, count // 2)):
            drops[name] = draw.choice((SHARES, MASKED, CONSENT, OPENED))
        yield drops | late[number % sets]


def test_ten_holders_two_hundred_random_patterns_of_drop_outs():
    try_patterns(random_patterns(10, 200, 6))


@pytest.mark.slow
def test_twenty_holders_two_hundred_random_patterns_of_drop_outs():
    try_patterns(random_patterns(20, 200, 6))


@pytest.mark.slow
def test_five_holders_every_pattern_of_drop_outs_after_the_keys():
    patterns = itertools.product(range(SHARES, NEVER + 1), repeat=5)
    try_patterns(dict(zip(NAMES, pattern, strict=False)) for pattern in patterns)


def test_patterns_of_both_outcomes_are_tried():
    patterns = list(random_patterns(10, 200, 6))
    good = sum(succeeds(list(drops), drops) for drops in patterns)
    assert 50 < good < 150


def test_more_missing_than_tolerated_are_not_opened_for(five):
    asked = five.ask(0, missing=FIVE[:1])
    with refused("1 holders are missing; allowed: 0"):
        five.open(FIVE[1], asked, tolerated=0)
    assert five.open(FIVE[1], asked, tolerated=1)
    with pytest.raises(BadInput, match="tolerated"):
        five.open(FIVE[1], asked, tolerated=-1)


def test_no_two_sets_of_openers_fit_beside_each_other():
    """Bonawitz et al. 2017: below n/3 colluders, who count twice, two sets of openers share an honest one."""
    assert [threshold(n) for n in (3, 4, 5, 6, 9, 10, 1000)] == [3, 3, 4, 5, 7, 7, 667]
    for n in range(MIN_HOLDERS, MAX_HOLDERS + 1):
        colluders = (n - 1) // 3
        assert 2 * threshold(n) > n + colluders
        assert threshold(n) <= n


# One list, one vector, one question per round ------------------------------------------------------------


def test_a_second_list_of_survivors_is_refused(five):
    asked = five.ask(0)
    five.open(FIVE[0], asked)
    member = five.members[FIVE[0]]
    with refused("other survivors", "changed"):
        member.consent(0, asked.context, FIVE[:4])
    fewer = {name: five.members[name].consent(0, asked.context, FIVE[:4]) for name in FIVE[1:4]}
    fewer[FIVE[0]] = asked.put_to(five.joined(FIVE[0])).consent(0, asked.context, FIVE[:4])
    with refused("other survivors", "changed"):
        five.open(FIVE[0], asked, survivors=FIVE[:4], proofs=fewer)
    # Control: the proofs are good, a holder that has opened nothing yet accepts them.
    assert five.open(FIVE[1], asked, survivors=FIVE[:4], proofs=fewer)
    with refused("other survivors", "changed"):
        five.open(FIVE[1], asked)


def test_a_consent_is_to_one_list_only(five):
    asked = five.ask(0, missing=FIVE[:1])
    five.members[FIVE[1]].consent(0, asked.context, asked.survivors)  # again the same
    with refused("other survivors", "changed"):
        five.members[FIVE[1]].consent(0, asked.context, FIVE[:4])


def test_an_opening_never_holds_both_shares_of_a_holder(five):
    """A share of the seed of a survivor, of the mask key of the others: a list gives one or the other."""
    whole, fewer = five.ask(0), five.ask(1, missing=FIVE[4:])
    assert len(five.open(FIVE[0], whole)) == 66 * 5
    all_lists = [five.open(FIVE[0], asked) for asked in (whole, fewer)]
    assert all(len(blob) == 66 * 5 for blob in all_lists)
    dropped = five.open(FIVE[0], fewer)[66 * 4 :]
    other = five.joined(FIVE[0])
    proofs = {name: fewer.put_to(five.joined(name)).sent(1, fewer.context) for name in FIVE}
    kept = five.open(FIVE[0], fewer, member=other, survivors=FIVE, proofs=proofs)[66 * 4 :]
    assert dropped != kept


def test_other_values_or_another_question_in_one_round_are_refused(five):
    asked = five.ask(0)
    member, name = five.members[FIVE[0]], FIVE[0]
    about = {"round": 0, "context": asked.context, "active": FIVE}
    again = member.masked(asked.values[name], **about)
    np.testing.assert_array_equal(again, asked.masked[name])
    with refused("other values", "changed"):
        member.masked(asked.values[name] + 1, **about)
    other = member.context(round=0, rounds=ROUNDS, question=b"theta", active=FIVE[:4])
    with refused("another question", "changed"):
        member.masked(asked.values[name], round=0, context=other, active=FIVE[:4])
    with refused("another question", "changed"):
        member.sent(0, other)
    with refused("another question", "changed"):
        member.consent(0, other, FIVE[:4])
    with refused("another question", "changed"):
        five.open(name, asked, context=other)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_round_is_not_opened_for_fewer_by_saying_that_fewer_were_active(restarted):
    """Twelve were asked and sent. Nine of them, called everybody, need no consents and nobody is missing: the
    sum over nine would come out, with less noise than tolerated, beside the sum over twelve."""
    twelve, nine = Session(NAMES[:12]), NAMES[:9]
    asked, name = twelve.ask(0), NAMES[0]
    member = asked.put_to(twelve.joined(name)) if restarted else twelve.members[name]
    ciphertexts = twelve.ciphertexts(name, asked)
    claim = {
        "active": nine,
        "survivors": nine,
        "tolerated": 0,
        "proofs": {peer: asked.proofs[peer] for peer in nine},
        "ciphertexts": {peer: ciphertexts[peer] for peer in nine[1:]},
    }
    with refused("active holders are not those of the context"):
        twelve.open(name, asked, member=member, **claim)
    with refused("active holders are not those of the context"):
        member.masked(asked.values[name], round=0, context=asked.context, active=nine)
    with refused("context was not made by this holder"):
        twelve.joined(name).open(round=0, context=asked.context, **claim)
    # Control: nothing else is wrong with it. Whom the question names, twelve or nine, opens.
    consents = {peer: asked.put_to(twelve.joined(peer)).consent(0, asked.context, nine) for peer in nine}
    fewer = {"survivors": nine, "proofs": consents}
    with refused("3 holders are missing; allowed: 2"):
        twelve.open(name, asked, member=member, tolerated=2, **fewer)
    assert twelve.open(name, asked, member=member, tolerated=3, **fewer)
    alone = twelve.ask(1, active=nine)
    assert twelve.open(name, alone, tolerated=0)


@pytest.mark.parametrize("use", ["masked", "sent", "consent", "open"])
def test_a_holder_uses_no_context_that_it_did_not_make(five, use):
    asked, member = five.ask(0), five.joined(FIVE[0])
    uses = {
        "masked": lambda number: member.masked(
            np.arange(3), round=number, context=asked.context, active=FIVE
        ),
        "sent": lambda number: member.sent(number, asked.context),
        "consent": lambda number: member.consent(number, asked.context, FIVE[:4]),
        "open": lambda number: member.open(
            round=number,
            context=asked.context,
            active=FIVE,
            survivors=FIVE,
            tolerated=0,
            proofs=asked.proofs,
            ciphertexts=five.ciphertexts(FIVE[0], asked),
        ),
    }
    with refused("round 0: its context was not made"):
        uses[use](0)
    asked.put_to(member)
    with refused("round 1: its context was not made"):
        uses[use](1)
    assert len(uses[use](0)) > 0


def test_survivors_that_were_not_active_get_no_consent(five):
    asked = five.ask(0, active=FIVE[:4])
    with refused("holder-04 was not active"):
        five.members[FIVE[0]].consent(0, asked.context, FIVE)
    assert five.members[FIVE[0]].consent(0, asked.context, FIVE[:4])


def test_a_context_without_the_holder_itself_is_refused(five):
    with refused("active holders: holder-00 itself"):
        five.members[FIVE[0]].context(round=0, rounds=0, question=b"", active=FIVE[1:])


def test_contexts_are_made_for_comparison_as_often_as_one_likes(five):
    member = five.members[FIVE[0]]
    about = {"round": 0, "rounds": 0, "active": FIVE}
    made = [member.context(question=bytes([number]), **about) for number in range(200)]
    with refused("was not made"):  # it is no longer remembered
        member.sent(0, made[0])
    assert member.context(question=b"\0", **about) == made[0]
    member.sent(0, made[0])
    for number in range(200):
        assert member.context(question=bytes([number]), **about) == made[number]
    member.sent(0, made[0])
    with refused("another question", "changed"):
        member.sent(0, made[199])


@pytest.mark.parametrize(
    "changed", [{"round": 1}, {"rounds": ROUNDS - 1}, {"question": b"thetb"}, {"active": FIVE[:4]}]
)
def test_everything_that_is_asked_is_in_the_context(five, changed):
    asked = {"round": 0, "rounds": ROUNDS, "question": b"theta", "active": FIVE}
    first = five.tally.context(**asked)
    assert five.members[FIVE[0]].context(**asked) == first
    assert five.tally.context(**(asked | changed)) != first


def test_a_holder_that_was_asked_something_else_spoils_the_round_and_reveals_nothing(five):
    """Pasquini et al. 2022: another model for one holder would single it out; here masks do not cancel."""
    asked = five.ask(0, size=20)
    victim = FIVE[0]
    member = five.joined(victim)
    other = member.context(round=0, rounds=ROUNDS, question=b"trap", active=FIVE)
    asked.masked[victim] = member.masked(asked.values[victim], round=0, context=other, active=FIVE)
    asked.proofs[victim] = member.sent(0, other)
    for name in FIVE[1:]:
        with refused(f"{victim}: its secagg-sent signature"):
            five.open(name, asked)
    # Even with all shares of the round (honest holders give none), there is no sum.
    asked.proofs[victim] = asked.put_to(five.joined(victim)).sent(0, asked.context)
    opened = {name: five.open(name, asked, member=five.joined(name)) for name in FIVE}
    with refused("beyond its bound"):
        five.unmask(asked, opened)


def test_opening_a_round_is_worthless_for_another(five):
    first, second = five.ask(0, missing=FIVE[:1]), five.ask(1, missing=FIVE[:1])
    opened = five.open_all(first)
    with refused("cannot be rebuilt"):
        five.unmask(second, opened)


# What is refused ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"survivors": FIVE[:3]}, "survivors: 3 holders; allowed: at least 4"),
        ({"survivors": FIVE[1:]}, "itself is not among them"),
        ({"survivors": (*FIVE[:4], FIVE[3])}, "twice"),
        ({"survivors": (*FIVE, "holder-07")}, "'holder-07' is not of this session"),
        ({"active": FIVE[:4]}, "holder-04 was not active"),
        ({"active": FIVE[:3]}, "active holders: 3 holders"),
        ({"active": FIVE[1:]}, "active holders: holder-00 itself"),
        ({"proofs": {}}, "holder-01: no signature"),
        ({"ciphertexts": {}}, "not those of the other active"),
        ({"round": 1}, "round 1: its context was not made by this holder"),
        ({"context": bytes(32)}, "round 0: its context was not made by this holder"),
        ({"active": FIVE[:4], "survivors": FIVE[:4]}, "not those of the context"),
        ({"round": 32}, r"round 32 is not of session 0; allowed: 0\.\.31"),
        ({"round": -1}, "round -1 is not of session 0"),
    ],
)
def test_a_question_to_open_that_does_not_fit_is_refused(five, changed, match):
    asked = five.ask(0)
    with refused(match):
        five.open(FIVE[0], asked, member=five.joined(FIVE[0]), **changed)


def test_a_signature_missing_of_anybody_active_is_refused_the_own_one_is_not_needed(five):
    asked = five.ask(0)
    for name in FIVE[1:]:
        with refused(f"{name}: no signature"):
            five.open(FIVE[0], asked, proofs={n: s for n, s in asked.proofs.items() if n != name})
    assert five.open(FIVE[0], asked, proofs={n: s for n, s in asked.proofs.items() if n != FIVE[0]})


def test_too_few_consents_or_one_of_somebody_else_are_refused(five):
    asked = five.ask(0, missing=FIVE[4:])
    with refused("3 consents; allowed: at least 4"):
        five.open(FIVE[0], asked, proofs={name: asked.proofs[name] for name in FIVE[:3]})
    with refused("'holder-04' signed, but is no survivor"):
        five.open(FIVE[0], asked, proofs=asked.proofs | {FIVE[4]: asked.proofs[FIVE[0]]})
    # That somebody sent values is no consent to leave others out, nor the other way round.
    sent = {name: five.members[name].sent(0, asked.context) for name in FIVE[:4]}
    with refused("secagg-consent signature"):
        five.open(FIVE[0], asked, proofs=sent)


def test_a_replayed_signature_or_share_is_refused(five):
    old, new = five.ask(0), five.ask(1)
    for name in ("proofs", "ciphertexts"):
        replayed = old.proofs if name == "proofs" else five.ciphertexts(FIVE[0], old)
        with refused("holder-0"):
            five.open(FIVE[0], new, **{name: replayed})


@pytest.mark.parametrize(
    "other", [{"session": 1}, {"run": "00" * 16}, {"study": "00" * 32}], ids=["session", "run", "study"]
)
def test_nothing_of_a_session_serves_another(five, other):
    agreed = terms(FIVE, **other)
    with refused("holder-00: its secagg-advert signature"):
        Tally(agreed, five.adverts)
    elsewhere = Session(FIVE, agreed)
    assert not set(elsewhere.adverts.values()) & set(five.adverts.values())
    number = SESSION_ROUNDS * agreed.session
    asked, there = five.ask(0), elsewhere.ask(number)
    with refused("secagg-sent signature"):
        elsewhere.open(FIVE[0], there, proofs=asked.proofs)
    with refused("do not open"):
        elsewhere.open(FIVE[0], there, ciphertexts=five.ciphertexts(FIVE[0], asked))


def test_one_seed_in_two_sessions_gives_no_key_twice(five):
    next_one = Session(FIVE, terms(FIVE, session=1))
    for name in FIVE:
        first, second = (
            {advert[at : at + 32] for at in range(0, ADVERT_BYTES - 64, 32)}
            for advert in (five.adverts[name], next_one.adverts[name])
        )
        assert len(first) == len(second) == 65
        assert not first & second


def test_no_coefficient_of_a_polynomial_is_used_twice():
    """Equal ones in two rounds would give the difference of two secrets away; equal ones for two sets of
    holders would let the shares of both be put together."""
    agreed, dealer = terms(NAMES[:6]), NAMES[2]
    coefficients = []
    for names in (FIVE, NAMES[1:6]):
        session = Session(names, agreed)
        for number in range(SESSION_ROUNDS):
            secrets = session.members[dealer]._secrets
            for polynomial in secrets.polynomials(session.tally.cohort, number):
                assert len(polynomial) == session.tally.threshold == 4
                coefficients += polynomial[1:]
    assert len(set(coefficients)) == len(coefficients) == 2 * SESSION_ROUNDS * 2 * 3


def test_another_set_of_adverts_is_refused_after_joining(five):
    member = five.members[FIVE[0]]
    member.join(five.adverts)
    with refused("other adverts", "changed"):
        member.join({name: five.adverts[name] for name in FIVE[:4]})


def test_fewer_than_three_holders_do_not_join(five):
    member = five.member(FIVE[0])
    with refused("2 holders sent keys; secure aggregation needs 3"):
        member.join({name: five.adverts[name] for name in FIVE[:2]})


def test_the_own_advert_must_be_there_unaltered(five):
    member = five.member(FIVE[0])
    with refused("holder-00: its own keys"):
        member.join({name: five.adverts[name] for name in FIVE[1:]})
    older = Session(FIVE, salt="before the seed was lost").adverts[FIVE[0]]
    with refused("holder-00: its own keys"):
        member.join(five.adverts | {FIVE[0]: older})


def test_somebody_unknown_does_not_join(five):
    with refused("'mallory' is no holder"):
        five.member(FIVE[0]).join(five.adverts | {"mallory": five.adverts[FIVE[1]]})
    with refused("'mallory' is no holder"):
        Advert.open(five.adverts[FIVE[1]], terms=five.terms, name="mallory")
    Advert.open(five.adverts[FIVE[1]], terms=five.terms, name=FIVE[1])


@pytest.mark.parametrize("use", ["context", "shares", "names", "session_id"])
def test_nothing_works_before_the_keys_of_the_others_are_there(five, use):
    member = five.member(FIVE[0])
    with refused("have not come"):
        {
            "context": lambda: member.context(round=0, rounds=0, question=b"", active=FIVE),
            "shares": member.shares,
            "names": lambda: member.names,
            "session_id": lambda: member.session_id,
        }[use]()


@pytest.mark.parametrize("point", list(low_order_points()), ids=bytes.hex)
@pytest.mark.parametrize("at", [0, 32, ADVERT_BYTES - 64 - 64], ids=["shares", "first mask", "last mask"])
def test_a_point_of_low_order_is_refused_in_every_spelling(five, point, at):
    advert = forged_advert(five, FIVE[3], at, point)
    with refused("holder-03: a public key"):
        five.member(FIVE[0]).join(five.adverts | {FIVE[3]: advert})
    with refused("holder-03: a public key"):
        Advert.open(advert, terms=five.terms, name=FIVE[3])


def test_the_library_refuses_low_order_points_too_and_wrong_lengths():
    private = X25519PrivateKey.from_private_bytes(fixed("key"))
    for bad in (*low_order_points(), b"", bytes(31), bytes(33)):
        with refused("mallory: X25519"):
            agree(private, bad, sender="mallory")
        with refused("mallory: a public key"):
            require_point(bad, sender="mallory")


def test_a_copied_key_or_commitment_is_refused(five):
    for at, word in ((32, 32), (32, 96), (32, 0), (64, 64), (0, 0)):
        copied = five.adverts[FIVE[1]][word : word + 32]
        advert = forged_advert(five, FIVE[3], at, copied)
        with refused("holder-01 and holder-03: one key or commitment"):
            five.member(FIVE[0]).join(five.adverts | {FIVE[3]: advert})


def test_the_same_point_in_other_letters_does_not_cancel_masks():
    """Whoever sends 1/u for the key u of another adds a point of order 2, which X25519 multiplies away: both
    agree on the same secrets with everybody. Without the names in the derivation of a mask, a holder between
    the two would add one and subtract the other, and be left with none of an honest neighbour."""
    field = 2**255 - 19
    victim, honest = (X25519PrivateKey.from_private_bytes(fixed(name)) for name in ("victim", "honest"))
    public = honest.public_key().public_bytes_raw()
    twin = pow(int.from_bytes(public, "little"), -1, field).to_bytes(32, "little")
    require_point(twin, sender="mallory")
    assert agree(victim, public, sender="a") == agree(victim, twin, sender="c")  # control: the threat is real
    total = np.zeros(4, dtype=np.uint64)
    about = {"owner": "b", "private": victim, "context": bytes(32)}
    add_pair_mask(total, peer="a", public=public, **about)
    add_pair_mask(total, peer="c", public=twin, **about)
    assert (total != 0).all()


def test_each_mask_is_for_one_context_and_its_holders():
    """Else whoever is asked twice gives two vectors under one mask, and with them their difference."""
    seeds = [
        self_mask(seed, owner=owner, context=context, size=4)
        for seed, owner, context in itertools.product((fixed(1), fixed(2)), "ab", (bytes(32), fixed(3)))
    ]
    private, public = (X25519PrivateKey.from_private_bytes(fixed(name)) for name in "xy")
    pairs = []
    for owner, peer, context in itertools.product("ab", "cd", (bytes(32), fixed(3))):
        pairs.append(np.zeros(4, dtype=np.uint64))
        about = {"owner": owner, "peer": peer, "context": context}
        add_pair_mask(pairs[-1], private=private, public=public.public_key().public_bytes_raw(), **about)
    words = {int(word) for mask in (*seeds, *pairs) for word in mask}
    assert len(words) == 4 * (len(seeds) + len(pairs)) == 64


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(3, dtype=np.int32),
        np.zeros(3, dtype=np.uint64),
        np.zeros(3),
        np.zeros((3, 1), dtype=np.int64),
        np.zeros(0, dtype=np.int64),
        np.array([VALUE_BOUND + 1]),
        np.array([0, -VALUE_BOUND - 1]),
        np.array([np.iinfo(np.int64).min]),
        [1, 2, 3],
    ],
)
def test_values_of_another_type_shape_or_size_are_refused_before_anything_is_masked(five, values):
    context = five.tally.context(round=0, rounds=0, question=b"", active=FIVE)
    with pytest.raises(BadInput, match="values"):
        five.members[FIVE[0]].masked(values, round=0, context=context, active=FIVE)


@pytest.mark.parametrize("context", [bytes(31), bytes(33), "x" * 32])
def test_a_context_that_is_no_hash_is_refused(five, context):
    with pytest.raises(BadInput, match="context"):
        five.members[FIVE[0]].sent(0, context)


@pytest.mark.parametrize(("number", "rounds"), [(0, -1), (0, 1 << 32), (1, 1 << 40)])
def test_a_number_of_rounds_that_does_not_fit_is_refused(five, number, rounds):
    for party in (five.tally, five.members[FIVE[0]]):
        with refused(rf"rounds is {rounds}; allowed: 0\.\."):
            party.context(round=number, rounds=rounds, question=b"", active=FIVE)
        assert party.context(round=number, rounds=number, question=b"", active=FIVE)


def test_a_member_needs_its_own_identity_and_a_whole_seed(five):
    with pytest.raises(BadInput, match="identity"):
        Member(name=FIVE[0], terms=five.terms, seed=bytes(32), identity=identity(FIVE[1]))
    with pytest.raises(BadInput, match="identity"):
        Member(name="mallory", terms=five.terms, seed=bytes(32), identity=identity(FIVE[1]))
    with pytest.raises(BadInput, match="seed"):
        Member(name=FIVE[0], terms=five.terms, seed=bytes(31), identity=identity(FIVE[0]))


@pytest.mark.parametrize(
    "changed",
    [
        {"federation": "FE" * 32},
        {"federation": "fe" * 31},
        {"run": "5a" * 32},
        {"study": None},
        {"session": -1},
        {"session": True},
        {"session": 1.0},
        {"session": 1 << 16},
        {"keys": {name: identity(name).public for name in FIVE[:2]}},
        {"keys": {name: bytes(32) for name in FIVE}},
        {"keys": {name: identity(name).public[:31] for name in FIVE}},
        {"keys": {name.upper(): identity(name).public for name in FIVE}},
        {"keys": {f"h{n}": n.to_bytes(32, "big") for n in range(MAX_HOLDERS + 1)}},
    ],
)
def test_terms_outside_their_range_are_refused(changed):
    good = {
        "federation": "fe" * 32,
        "run": "5a" * 16,
        "session": 0,
        "study": "c3" * 32,
        "keys": {name: identity(name).public for name in FIVE},
    }
    Terms(**good)
    with pytest.raises(BadInput):
        Terms(**(good | changed))


def test_secrets_are_not_in_what_is_printed(five):
    seed = fixed("seed", 0, FIVE[0])
    member = five.members[FIVE[0]]
    for text in (repr(member), repr(member._secrets)):
        assert "session 0" in text
        assert seed.hex() not in text


# The coordinator's side ------------------------------------------------------------


def test_shares_are_taken_once_whole_and_from_holders_of_the_session(five):
    tally = five.new_tally(())
    name, blob = FIVE[0], five.shares[FIVE[0]]
    assert len(blob) == SHARE_BYTES * SESSION_ROUNDS * 4
    for bad in (blob[:-1], blob + b"\0", b""):
        with refused("holder-00: its shares have"):
            tally.add_shares(name, bad)
    tally.add_shares(name, blob)
    tally.add_shares(name, blob)
    with refused("holder-00: it has sent other shares"):
        tally.add_shares(name, bytes(len(blob)))
    with refused("'mallory' is not of this session"):
        tally.add_shares("mallory", blob)
    assert tally.sharers == (name,)


def test_ciphertexts_are_given_only_for_active_holders_that_shared(five):
    tally = five.new_tally(FIVE[1:])
    assert len(tally.ciphertexts_for(FIVE[1], 0, FIVE[1:])) == 3 * SHARE_BYTES
    with refused("holder-00: its shares have not come"):
        tally.ciphertexts_for(FIVE[1], 0, FIVE)
    with refused("'holder-00' is not active"):
        tally.ciphertexts_for(FIVE[0], 0, FIVE[1:])


def test_the_coordinator_can_check_a_signature_before_it_relies_on_it(five):
    whole, fewer = five.ask(0), five.ask(1, missing=FIVE[4:])
    name = FIVE[0]
    about = {"round": 0, "context": whole.context}
    five.tally.cohort.require_sent(name, signature=whole.proofs[name], **about)
    with refused("holder-00: its secagg-sent"):
        five.tally.cohort.require_sent(name, signature=whole.proofs[FIVE[1]], **about)
    with refused("'mallory' is not of this session"):
        five.tally.cohort.require_sent("mallory", signature=whole.proofs[name], **about)
    about = {"round": 1, "context": fewer.context, "signature": fewer.proofs[name]}
    five.tally.cohort.require_consent(name, survivors=FIVE[:4], **about)
    with refused("holder-00: its secagg-consent"):
        five.tally.cohort.require_consent(name, survivors=FIVE, **about)


def test_too_few_openers_give_no_sum(five):
    asked = five.ask(0)
    opened = five.open_all(asked, FIVE[:3])
    with refused("3 holders opened the round; 4 are needed"):
        five.unmask(asked, opened)
    with refused("openers: 'mallory'"):
        five.unmask(asked, opened | {"mallory": opened[FIVE[0]]})
    with refused("survivors: 3 holders"):
        five.unmask(asked, opened, masked={name: asked.masked[name] for name in FIVE[:3]})
    with refused("survivors: 'holder-04'"):
        five.unmask(asked, opened, active=FIVE[:4])


@pytest.mark.parametrize("missing", [(), FIVE[4:]], ids=["all", "one dropped"])
@pytest.mark.parametrize("liar", FIVE[:4])
@pytest.mark.parametrize("bit", [0, 300, 527, 66 * 8 * 4 + 3])
def test_a_wrong_share_names_its_holder_or_ends_the_round(five, missing, liar, bit):
    asked = five.ask(0, missing=missing)
    opened = five.open_all(asked)
    opened[liar] = flipped(opened[liar], bit)
    if missing:  # four opened and four are needed
        with refused("cannot be rebuilt|3 holders opened"):
            five.unmask(asked, opened)
        return
    total, liars = five.unmask(asked, opened)
    np.testing.assert_array_equal(total, asked.expected)
    assert liars == (liar,)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[len(data) - 1 - bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_share_in_another_spelling_of_the_same_number_is_wrong_too(five):
    asked = five.ask(0)
    opened = five.open_all(asked)
    liar = FIVE[0]
    value = int.from_bytes(opened[liar][:66], "big") + 2**521 - 1
    opened[liar] = value.to_bytes(66, "big") + opened[liar][66:]
    total, liars = five.unmask(asked, opened)
    np.testing.assert_array_equal(total, asked.expected)
    assert liars == (liar,)


@pytest.mark.parametrize("blob", [b"", bytes(66 * 5 - 1), bytes(66 * 5 + 1), b"\xff" * (66 * 5)])
def test_an_opening_that_is_none_names_its_holder(five, blob):
    asked = five.ask(0)
    opened = five.open_all(asked) | {FIVE[2]: blob}
    total, liars = five.unmask(asked, opened)
    np.testing.assert_array_equal(total, asked.expected)
    assert liars == (FIVE[2],)


def test_a_holder_that_lies_about_one_share_is_passed_over_for_the_others():
    ten = Session(NAMES[:10])
    asked = ten.ask(0, missing=NAMES[9:10])
    opened = ten.open_all(asked)
    for liar, place in ((NAMES[0], 0), (NAMES[1], 5)):
        opened[liar] = flipped(opened[liar], 8 * 66 * (9 - place) + 5)
    total, liars = ten.unmask(asked, opened)
    np.testing.assert_array_equal(total, asked.expected)
    assert liars == NAMES[:2]


@pytest.mark.parametrize(
    "vector",
    [np.zeros(3, dtype=np.int64), np.zeros((3, 1), dtype=np.uint64), np.zeros(0, dtype=np.uint64), [1]],
)
def test_masked_values_of_another_type_or_shape_are_refused(five, vector):
    asked = five.ask(0)
    with pytest.raises(BadInput, match="masked values of holder-01"):
        five.unmask(asked, five.open_all(asked), masked=asked.masked | {FIVE[1]: vector})


def test_masked_values_of_two_sizes_are_refused(five):
    asked = five.ask(0)
    with refused("holder-00 and holder-02 sent different numbers"):
        five.unmask(
            asked, five.open_all(asked), masked=asked.masked | {FIVE[2]: np.zeros(4, dtype=np.uint64)}
        )


def test_a_sum_beyond_its_bound_is_refused(five):
    asked = five.ask(0)
    far = np.uint64(1 << 62)
    with refused("beyond its bound"):
        five.unmask(asked, five.open_all(asked), masked=asked.masked | {FIVE[2]: asked.masked[FIVE[2]] + far})


@pytest.mark.parametrize("cut", [0, 5, 11, 12, 13, 30, 3000, -1])
def test_a_stored_session_that_is_cut_off_is_refused(five, cut):
    data = five.tally.pack()
    with pytest.raises((BadInput, Refused)):
        Tally.unpack(five.terms, data[:cut])
    with pytest.raises(BadInput):
        Tally.unpack(five.terms, data + b"\x01")


# One byte changed ------------------------------------------------------------


def test_ten_thousand_changed_bytes_are_refused_by_type_or_change_nothing():
    """Each message of a small session with one byte changed, at the party that reads it.

    A changed masked value is the one thing nobody can notice within the bound: it changes the sum by as much,
    as any other input of that holder would.
    """
    session, draw = Session(NAMES[:4]), Random(20)
    whole, fewer = session.ask(0), session.ask(1, missing=NAMES[3:4])
    rounds = [(asked, session.open_all(asked), session.joined(NAMES[0])) for asked in (whole, fewer)]
    handlers = [
        _change_advert,
        _change_proof,
        _change_ciphertext,
        _change_opened,
        _change_masked,
        _change_stored,
    ]
    accepted, texts = dict.fromkeys((handler.__name__ for handler in handlers), 0), set()
    for number in range(10_200):
        handler = handlers[number % len(handlers)]
        try:
            handler(session, draw, *rounds[number // len(handlers) % 2])
            accepted[handler.__name__] += 1
        except AssayError as error:
            texts.add(str(error))
    assert accepted["_change_advert"] == accepted["_change_proof"] == accepted["_change_ciphertext"] == 0
    assert accepted["_change_opened"] > 0
    assert accepted["_change_stored"] > 0
    assert texts
    assert not any("\n" in text for text in texts)


def _mutated(draw: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= draw.randrange(1, 256)
    return bytes(changed)


def _change_advert(session, draw, *_):
    name = draw.choice(list(session.adverts))
    Advert.open(_mutated(draw, session.adverts[name]), terms=session.terms, name=name)


def _change_proof(session, draw, asked, _, member):
    name = draw.choice(list(asked.proofs))
    session.open(
        NAMES[0], asked, member=member, proofs=asked.proofs | {name: _mutated(draw, asked.proofs[name])}
    )


def _change_ciphertext(session, draw, asked, _, member):
    ciphertexts = session.ciphertexts(NAMES[0], asked)
    name = draw.choice(list(ciphertexts))
    ciphertexts[name] = _mutated(draw, ciphertexts[name])
    session.open(NAMES[0], asked, member=member, ciphertexts=ciphertexts)


def _change_opened(session, draw, asked, opened, _):
    name = draw.choice(list(opened))
    total, liars = session.unmask(asked, opened | {name: _mutated(draw, opened[name])})
    np.testing.assert_array_equal(total, asked.expected)
    assert set(liars) <= {name}


def _change_masked(session, draw, asked, opened, _):
    name = draw.choice(list(asked.masked))
    changed = np.frombuffer(_mutated(draw, asked.masked[name].tobytes()), dtype=np.uint64)
    total, _ = session.unmask(asked, opened, masked=asked.masked | {name: changed})
    np.testing.assert_array_equal(total - asked.expected, (changed - asked.masked[name]).view(np.int64))


def _change_stored(session, draw, asked, *_):
    data = session.tally.pack()
    tally = Tally.unpack(session.terms, _mutated(draw, data))
    # What was changed is an encrypted share: the holder it is for will notice.
    assert (tally.names, tally.session_id) == (session.tally.names, session.tally.session_id)


# Golden vectors ------------------------------------------------------------


def test_the_golden_vectors_hold():
    stored = json.loads(VECTORS.read_text(encoding="ascii"))
    assert json.loads(json.dumps(make_vectors())) == stored


@pytest.fixture(scope="module")
def stored_vectors() -> dict:
    return json.loads(VECTORS.read_text(encoding="ascii"))


def _vector_member(stored: dict, name: str) -> Member:
    about = {key: value for key, value in stored["terms"].items() if key not in ("keys", "digest")}
    keys = {holder: bytes.fromhex(key) for holder, key in stored["terms"]["keys"].items()}
    agreed = Terms(keys=keys, **about)
    assert agreed.digest.hex() == stored["terms"]["digest"]
    return Member(name=name, terms=agreed, seed=bytes.fromhex(stored["seeds"][name]), identity=identity(name))


def test_every_negative_vector_is_refused_and_its_unchanged_twin_is_not(stored_vectors):
    adverts = {name: bytes.fromhex(advert) for name, advert in stored_vectors["adverts"].items()}
    assert len(stored_vectors["refused"]) == 41
    for case in stored_vectors["refused"]:
        member = _vector_member(stored_vectors, case["holder"])
        if case["step"] == "join":
            changed = {name: bytes.fromhex(advert) for name, advert in case["adverts"].items()}
            with refused("."):
                member.join(adverts | changed)
            continue
        _asked_vectors(member, stored_vectors)
        with refused("."):
            _open_vector(member, case)
    member = _asked_vectors(_vector_member(stored_vectors, "ash"), stored_vectors)
    good = stored_vectors["rounds"][1]
    question = good | {"ciphertexts": good["ciphertexts"]["ash"], "tolerated": 1}
    assert _open_vector(member, question).hex() == good["opened"]["ash"]


def _asked_vectors(member: Member, stored: dict) -> Member:
    """Have a holder join and see the questions of both rounds."""
    member.join({name: bytes.fromhex(advert) for name, advert in stored["adverts"].items()})
    for asked in stored["rounds"]:
        question = {"question": bytes.fromhex(asked["question"]), "active": asked["active"]}
        made = member.context(round=asked["round"], rounds=asked["rounds"], **question)
        assert made.hex() == asked["context"]
    return member


def _open_vector(member: Member, case: dict) -> bytes:
    return member.open(
        round=case["round"],
        context=bytes.fromhex(case["context"]),
        active=case["active"],
        survivors=case["survivors"],
        tolerated=case["tolerated"],
        proofs={name: bytes.fromhex(proof) for name, proof in case["proofs"].items()},
        ciphertexts={name: bytes.fromhex(data) for name, data in case["ciphertexts"].items()},
    )
