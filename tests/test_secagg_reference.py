"""The document alone is enough: a second implementation agrees with the vectors and with Assay."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import secagg_reference as reference

from assay.privacy import secagg
from assay.privacy.errors import AssayError
from assay.privacy.keys import Identity

VECTORS = json.loads((Path(__file__).parent / "vectors" / "secagg.json").read_text())
NAMES = sorted(VECTORS["adverts"])
GENUINE = {name: bytes.fromhex(advert) for name, advert in VECTORS["adverts"].items()}


def unhex(texts):
    return {name: bytes.fromhex(text) for name, text in texts.items()}


# Both implementations behind one face. A reference holder looks like this already; Assay's needs arrays,
# and is told the active holders again.


class Theirs:
    """Assay's Member, spoken to like the reference's Holder."""

    def __init__(self, name, terms, seed, identity_seed):
        key = reference.Ed25519PrivateKey.from_private_bytes(identity_seed)
        words = {"federation": terms.federation, "run": terms.run, "study": terms.study}
        their_terms = secagg.Terms(**words, session=terms.session, keys=terms.keys)
        self.member = secagg.Member(name=name, terms=their_terms, seed=seed, identity=Identity(key))
        self.advert, self.join = self.member.advert, self.member.join
        self.shares, self.sent, self.consent = self.member.shares, self.member.sent, self.member.consent

    def context(self, r, rounds, question, active):
        return self.member.context(round=r, rounds=rounds, question=question, active=active)

    def masked(self, values, r, context, active):
        self.active = active
        words = self.member.masked(np.array(values, dtype=np.int64), round=r, context=context, active=active)
        return [int(word) for word in words]

    def open(self, r, context, survivors, tolerated, proofs, ciphertexts):
        names = {"active": self.active, "survivors": survivors}
        messages = {"proofs": proofs, "ciphertexts": ciphertexts}
        return self.member.open(round=r, context=context, **names, tolerated=tolerated, **messages)


class TheirCoordinator:
    """Assay's Tally, spoken to like the reference's Coordinator."""

    def __init__(self, terms, adverts):
        words = {"federation": terms.federation, "run": terms.run, "study": terms.study}
        self.tally = secagg.Tally(secagg.Terms(**words, session=terms.session, keys=terms.keys), adverts)
        self.add_shares = self.tally.add_shares

    def context(self, r, rounds, question, active):
        return self.tally.context(round=r, rounds=rounds, question=question, active=active)

    def ciphertexts_for(self, receiver, r, active):
        joined = self.tally.ciphertexts_for(receiver, r, active)
        senders = sorted(set(active) - {receiver})
        return {sender: joined[148 * at : 148 * (at + 1)] for at, sender in enumerate(senders)}

    def unmask(self, r, context, active, masked, opened):
        arrays = {name: np.array(words, dtype=np.uint64) for name, words in masked.items()}
        total, liars = self.tally.unmask(
            round=r, context=context, active=active, masked=arrays, opened=opened
        )
        assert liars == ()
        return [int(value) for value in total]


class OurCoordinator(reference.Coordinator):
    """The reference's Coordinator; it makes contexts itself."""

    def context(self, r, rounds, question, active):
        return self.session.context(r, rounds, question, active)


# Golden vectors


def golden_terms():
    plain = {key: VECTORS["terms"][key] for key in ("federation", "run", "session", "study")}
    return reference.Terms(**plain, keys=unhex(VECTORS["terms"]["keys"]))


def golden_holder(role, name):
    seed, identity_seed = (bytes.fromhex(VECTORS[key][name]) for key in ("seeds", "identity_seeds"))
    return role(name, golden_terms(), seed, identity_seed)


@functools.cache
def golden_session():
    holders = {name: golden_holder(reference.Holder, name) for name in NAMES}
    coordinator = OurCoordinator(golden_terms(), GENUINE)
    for name, holder in holders.items():
        holder.join(GENUINE)
        coordinator.add_shares(name, holder.shares())
    return holders, coordinator


def test_terms_adverts_session_id_and_shares_are_the_golden_ones():
    holders, coordinator = golden_session()
    assert golden_terms().digest.hex() == VECTORS["terms"]["digest"]
    assert {name: holder.advert().hex() for name, holder in holders.items()} == VECTORS["adverts"]
    assert coordinator.session.id.hex() == VECTORS["session_id"]
    digests = {name: hashlib.sha256(holder.shares()).hexdigest() for name, holder in holders.items()}
    assert digests == VECTORS["shares_sha256"]


@pytest.mark.parametrize("golden", VECTORS["rounds"], ids=lambda golden: f"round {golden['round']}")
def test_every_message_of_a_round_is_the_golden_one(golden):
    holders, coordinator = golden_session()
    r, active, survivors = golden["round"], golden["active"], golden["survivors"]
    asked = (r, golden["rounds"], bytes.fromhex(golden["question"]), active)
    context = coordinator.context(*asked)
    assert {context.hex(), *(holder.context(*asked).hex() for holder in holders.values())} == {
        golden["context"]
    }

    masked = {name: holders[name].masked(golden["values"][name], r, context, active) for name in survivors}
    assert masked == golden["masked"]

    if survivors == active:
        proofs = {name: holders[name].sent(r, context) for name in survivors}
    else:
        proofs = {name: holders[name].consent(r, context, survivors) for name in survivors}
    assert proofs == unhex(golden["proofs"])

    ciphertexts = {name: coordinator.ciphertexts_for(name, r, active) for name in survivors}
    assert ciphertexts == {receiver: unhex(sent) for receiver, sent in golden["ciphertexts"].items()}

    tolerated = len(active) - len(survivors)
    opened = {
        name: holders[name].open(r, context, survivors, tolerated, proofs, ciphertexts[name])
        for name in survivors
    }
    assert opened == unhex(golden["opened"])
    assert coordinator.unmask(r, context, active, masked, opened) == golden["sum"]


def test_the_golden_sums_are_the_sums():
    for golden in VECTORS["rounds"]:
        values = [golden["values"][name] for name in golden["survivors"]]
        assert [sum(column) for column in zip(*values, strict=True)] == golden["sum"]


# Negative vectors: the holder of the case first sends its genuine values, so that only the message is wrong


@pytest.mark.parametrize("role", [reference.Holder, Theirs])
@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["what"])
def test_both_refuse_what_must_be_refused(case, role):
    holder = golden_holder(role, case["holder"])
    if case["step"] == "join":
        with pytest.raises((reference.Refused, AssayError)):
            holder.join(GENUINE | unhex(case["adverts"]))
        return
    ask_genuinely(holder, case["holder"])
    context, proofs, ciphertexts = (
        bytes.fromhex(case["context"]),
        unhex(case["proofs"]),
        unhex(case["ciphertexts"]),
    )
    if role is Theirs:  # the reference does not ask who is active
        holder.active = case["active"]
    with pytest.raises((reference.Refused, AssayError)):
        holder.open(case["round"], context, case["survivors"], case["tolerated"], proofs, ciphertexts)


@pytest.mark.parametrize("role", [reference.Holder, Theirs])
def test_both_open_the_genuine_round_that_the_refused_cases_spoil(role):
    name = "ash"
    holder, golden = golden_holder(role, name), ask_genuinely_golden()
    ask_genuinely(holder, name)
    ciphertexts = golden_session()[1].ciphertexts_for(name, golden["round"], golden["active"])
    proofs = unhex(golden["proofs"])
    shown = holder.open(
        golden["round"], bytes.fromhex(golden["context"]), golden["survivors"], 1, proofs, ciphertexts
    )
    assert shown.hex() == golden["opened"][name]


def ask_genuinely_golden():
    return VECTORS["rounds"][1]


def ask_genuinely(holder, name):
    golden = ask_genuinely_golden()
    context = bytes.fromhex(golden["context"])
    holder.join(GENUINE)
    for asked in VECTORS["rounds"]:
        holder.context(asked["round"], asked["rounds"], bytes.fromhex(asked["question"]), asked["active"])
    assert (
        holder.masked(golden["values"][name], golden["round"], context, golden["active"])
        == golden["masked"][name]
    )


# More that must be refused; everything that is not wrong by intention is signed as it should be


def signed(name, context, message):
    return reference.sign(bytes.fromhex(VECTORS["identity_seeds"][name]), context, message)


def resigned_advert(name, change):
    """The genuine advert of ``name`` with its body changed, under a signature that verifies."""
    body = change(bytearray(GENUINE[name][:-64]))
    message = reference.frame(golden_terms().digest, name.encode(), bytes(body))
    return bytes(body) + signed(name, "secagg-advert", message)


def with_bytes(at, replacement):
    def change(body):
        body[at : at + len(replacement)] = replacement
        return body

    return change


NOT_CANONICAL = (reference.CURVE + 9).to_bytes(32, "little")  # 9 in other letters: of large order
WRONG_ADVERTS = {
    "only two": {name: GENUINE[name] for name in ("ash", "birch")},
    "its own is missing": {name: GENUINE[name] for name in ("birch", "cedar", "elm")},
    "its own is another": GENUINE | {"ash": resigned_advert("ash", with_bytes(64, bytes(32)))},
    "a stranger": GENUINE | {"oak": GENUINE["elm"]},
    "a share key that is not canonical": GENUINE
    | {"elm": resigned_advert("elm", with_bytes(0, NOT_CANONICAL))},
    "one mask key for two rounds": GENUINE
    | {"elm": resigned_advert("elm", lambda body: with_bytes(96, body[32:64])(body))},
    "one commitment for two rounds": GENUINE
    | {"elm": resigned_advert("elm", lambda body: with_bytes(128, body[64:96])(body))},
}


@pytest.mark.parametrize("role", [reference.Holder, Theirs])
@pytest.mark.parametrize("what", WRONG_ADVERTS)
def test_both_refuse_wrong_sets_of_adverts(what, role):
    with pytest.raises((reference.Refused, AssayError)):
        golden_holder(role, "ash").join(WRONG_ADVERTS[what])


def consents(survivors, signers, r=63):
    message = golden_session()[1].session.consent_message(r, context_of(r), survivors)
    return {name: signed(name, "secagg-consent", message) for name in signers}


def sents(signers, r=63, context=None):
    message = golden_session()[1].session.sent_message(r, context or context_of(63))
    return {name: signed(name, "secagg-sent", message) for name in signers}


def context_of(r):
    return next(bytes.fromhex(golden["context"]) for golden in VECTORS["rounds"] if golden["round"] == r)


OTHERS, THREE = ["birch", "cedar", "elm"], ["ash", "cedar", "elm"]
WRONG_OPENINGS = {
    "one has not sent": lambda: (NAMES, sents(THREE)),
    "sent in another context": lambda: (NAMES, sents(NAMES) | sents(["elm"], context=context_of(32))),
    "sent in another round": lambda: (NAMES, sents(NAMES) | sents(["elm"], r=62)),
    "its own signature does not verify": lambda: (NAMES, sents(NAMES) | sents(["ash"], r=62)),
    "consents where nobody is missing": lambda: (NAMES, consents(NAMES, NAMES)),
    "sent where somebody is missing": lambda: (THREE, sents(THREE)),
    "consents to another list": lambda: (THREE, consents(["ash", "birch", "elm"], THREE)),
    "others consented, it has not": lambda: (THREE, consents(THREE, ["cedar", "elm"])),
    "it is missing itself": lambda: (OTHERS, consents(OTHERS, OTHERS)),
    "one survivor counted twice": lambda: (
        ["ash", "elm", "elm"],
        consents(["ash", "elm", "elm"], ["ash", "elm"]),
    ),
}


@pytest.mark.parametrize("role", [reference.Holder, Theirs])
@pytest.mark.parametrize("what", WRONG_OPENINGS)
def test_both_refuse_proofs_that_do_not_fit_the_survivors(what, role):
    holder, (survivors, proofs) = golden_holder(role, "ash"), WRONG_OPENINGS[what]()
    ask_genuinely(holder, "ash")
    ciphertexts = golden_session()[1].ciphertexts_for("ash", 63, NAMES)
    with pytest.raises((reference.Refused, AssayError)):
        holder.open(63, context_of(63), survivors, 1, proofs, ciphertexts)


@pytest.mark.parametrize("role", [reference.Holder, Theirs])
def test_both_let_the_proof_of_their_own_sent_be_left_out(role):
    holder = golden_holder(role, "ash")
    ask_genuinely(holder, "ash")
    ciphertexts = golden_session()[1].ciphertexts_for("ash", 63, NAMES)
    shown = [
        holder.open(63, context_of(63), NAMES, 0, sents(names), ciphertexts) for names in (OTHERS, NAMES)
    ]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("role", [reference.Holder, Theirs])
def test_both_have_one_question_one_vector_and_one_list_per_round(role):
    holder, values = golden_holder(role, "ash"), ask_genuinely_golden()["values"]["ash"]
    ask_genuinely(holder, "ash")
    ask_genuinely(holder, "ash")  # again is not another
    other = holder.context(63, 80, b"another theta", NAMES)
    holder.consent(63, context_of(63), THREE)
    for refused in (
        lambda: holder.masked(values, 63, other, NAMES),
        lambda: holder.masked([values[0] + 1, *values[1:]], 63, context_of(63), NAMES),
        lambda: holder.sent(63, other),
        lambda: holder.consent(63, other, THREE),
        lambda: holder.consent(63, context_of(63), ["ash", "birch", "elm"]),
        lambda: holder.open(
            63, context_of(63), NAMES, 1, sents(NAMES), golden_session()[1].ciphertexts_for("ash", 63, NAMES)
        ),
    ):
        with pytest.raises((reference.Refused, AssayError)):
            refused()


@pytest.mark.parametrize("role", [reference.Holder, Theirs])
@pytest.mark.parametrize(
    ("values", "r", "active"),
    [
        ([reference.BOUND + 1], 62, NAMES),
        ([1], 62, ["ash", "elm"]),
        ([1], 62, OTHERS),
        ([1], 62, [*THREE, "oak"]),
        ([1], 64, NAMES),
    ],
    ids=[
        "beyond the bound",
        "below the threshold",
        "not active itself",
        "a stranger",
        "another session",
    ],
)
def test_both_mask_nothing_that_is_out_of_bounds(values, r, active, role):
    holder = golden_holder(role, "ash")
    holder.join(GENUINE)
    with pytest.raises((reference.Refused, AssayError)):
        holder.masked(values, r, holder.context(r, 64 if r == 64 else 62, b"", active), active)


@pytest.mark.parametrize("role", [reference.Holder, Theirs])
def test_both_use_a_context_for_nobody_but_its_active_holders(role):
    holder = golden_holder(role, "ash")
    holder.join(GENUINE)
    context = golden_session()[1].context(62, 62, b"", NAMES)
    for active in (NAMES, THREE):  # first one it has not computed, then one for others
        with pytest.raises((reference.Refused, AssayError)):
            holder.masked([1], 62, context, active)
        assert holder.context(62, 62, b"", NAMES) == context
    assert holder.masked([1], 62, context, NAMES)


# Mixed sessions


def mixed_terms(names):
    identity_seeds = {name: hashlib.sha256(f"identity {name}".encode()).digest() for name in names}
    keys = {
        name: reference.Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        for name, seed in identity_seeds.items()
    }
    terms = reference.Terms(federation="ab" * 32, run="cd" * 16, session=2, study="ef" * 32, keys=keys)
    return terms, identity_seeds


def mixed_session(coordinator_role, names, silent=()):
    """Holders of the two kinds by turns; ``silent`` ones are in the terms and never send an advert."""
    terms, identity_seeds = mixed_terms([*names, *silent])
    roles = dict(zip(names, [reference.Holder, Theirs] * len(names), strict=False))
    holders = {
        name: role(name, terms, hashlib.sha256(f"seed {name}".encode()).digest(), identity_seeds[name])
        for name, role in roles.items()
    }
    adverts = {name: holder.advert() for name, holder in holders.items()}
    coordinator = coordinator_role(terms, adverts)
    for name, holder in holders.items():
        holder.join(adverts)
        coordinator.add_shares(name, holder.shares())
    return holders, coordinator


def run_round(holders, coordinator, r, active, missing, question):
    """Return the sum that comes out and the one that should, of 50 values that use the whole range."""
    random = np.random.default_rng(r)
    bound = reference.BOUND
    values = {name: random.integers(-bound, bound, 50, endpoint=True).tolist() for name in active}
    context = coordinator.context(r, 100, question, active)
    assert {holders[name].context(r, 100, question, active) for name in active} == {context}
    masked = {name: holders[name].masked(values[name], r, context, active) for name in active}
    survivors = [name for name in active if name not in missing]
    if missing:
        proofs = {name: holders[name].consent(r, context, survivors) for name in survivors}
    else:
        proofs = {name: holders[name].sent(r, context) for name in active}
    opened = {
        name: holders[name].open(
            r, context, survivors, len(missing), proofs, coordinator.ciphertexts_for(name, r, active)
        )
        for name in survivors
    }
    arrived = {name: masked[name] for name in survivors}
    wanted = [sum(column) for column in zip(*(values[name] for name in survivors), strict=True)]
    return coordinator.unmask(r, context, active, arrived, opened), wanted


@pytest.mark.parametrize("coordinator_role", [OurCoordinator, TheirCoordinator])
def test_holders_of_both_kinds_add_up_in_rounds_with_and_without_somebody_missing(coordinator_role):
    names = ["alder", "aspen", "beech-1", "beech-10", "beech-2", "yew", "zelkova"]  # threshold 5
    holders, coordinator = mixed_session(coordinator_role, names, silent=["b", "zz"])
    for r, active, missing in (
        (64, names, ()),
        (65, names, ("alder", "yew")),
        (66, names[1:], ()),
        (80, names[:-1], ("beech-10",)),
        (95, names, ("zelkova",)),
    ):
        found, wanted = run_round(holders, coordinator, r, active, missing, bytes(range(r)))
        assert found == wanted


@pytest.mark.parametrize("coordinator_role", [OurCoordinator, TheirCoordinator])
def test_three_holders_of_both_kinds_add_up(coordinator_role):
    holders, coordinator = mixed_session(coordinator_role, ["c", "a", "b"])
    found, wanted = run_round(holders, coordinator, 64, ["a", "b", "c"], (), b"")
    assert found == wanted


def test_the_sum_stays_exact_where_the_first_openers_lie():
    names = ["ash", "birch", "cedar", "elm", "fir"]
    holders, coordinator = mixed_session(OurCoordinator, names)
    genuine = holders["ash"].open
    holders["ash"].open = lambda *asked: bytes(66 * 4) + genuine(*asked)[66 * 4 :]
    found, wanted = run_round(holders, coordinator, 70, names, (), b"question")
    assert found == wanted
