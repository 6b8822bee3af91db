"""Sessions of secure aggregation in one process, with holders that drop out; and the golden vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from assay.privacy.keys import Identity
from assay.privacy.masking import framed
from assay.privacy.secagg import ADVERT_BYTES, SESSION_ROUNDS, SHARE_BYTES, Member, Tally, Terms

VECTORS = Path(__file__).parent / "vectors" / "secagg.json"
NAMES = tuple(f"holder-{number:02d}" for number in range(30))
# A holder falls silent before it sends this; NEVER stays.
KEYS, SHARES, MASKED, CONSENT, OPENED, NEVER = range(6)
ROUNDS = 80  # of the run


def fixed(*parts: object) -> bytes:
    """Return 32 bytes that depend on the parts only."""
    return hashlib.sha256(repr(parts).encode()).digest()


def identity(name: str) -> Identity:
    return Identity(Ed25519PrivateKey.from_private_bytes(fixed("identity", name)))


def terms(names: Sequence[str], *, session: int = 0, run: str = "5a" * 16, study: str = "c3" * 32) -> Terms:
    keys = {name: identity(name).public for name in names}
    return Terms(federation="fe" * 32, run=run, session=session, study=study, keys=keys)


@dataclass(kw_only=True)
class Asked:
    """One round as it was played, so that a test can change a message and hand it in again."""

    round: int
    context: bytes
    active: tuple[str, ...]
    survivors: tuple[str, ...]
    values: dict[str, np.ndarray]
    masked: dict[str, np.ndarray]
    proofs: dict[str, bytes]

    def put_to(self, member: Member) -> Member:
        """Return ``member`` once it has seen the question and made its context."""
        made = member.context(round=self.round, rounds=ROUNDS, question=b"theta", active=self.active)
        assert made == self.context
        return member

    @property
    def expected(self) -> np.ndarray:
        return np.sum([self.values[name] for name in self.survivors], axis=0)


class Session:
    """A set-up session: members that have joined, and a tally with everybody's shares."""

    def __init__(self, names: Sequence[str], agreed: Terms | None = None, *, salt: object = 0) -> None:
        self.terms = agreed or terms(names)
        self.members = {name: self.member(name, salt) for name in names}
        self.adverts = {name: member.advert() for name, member in self.members.items()}
        for member in self.members.values():
            member.join(self.adverts)
        self.shares = {name: member.shares() for name, member in self.members.items()}
        self.tally = self.new_tally(names)

    def member(self, name: str, salt: object = 0) -> Member:
        return Member(name=name, terms=self.terms, seed=fixed("seed", salt, name), identity=identity(name))

    def joined(self, name: str, salt: object = 0) -> Member:
        """Return the member as it is after a restart: same seed, nothing remembered."""
        member = self.member(name, salt)
        member.join(self.adverts)
        return member

    def new_tally(self, sharers: Sequence[str]) -> Tally:
        tally = Tally(self.terms, self.adverts)
        for name in sharers:
            tally.add_shares(name, self.shares[name])
        return tally

    def ask(
        self,
        number: int,
        *,
        active: Sequence[str] = (),
        missing: Sequence[str] = (),
        size: int = 3,
        silent: Sequence[str] = (),
    ) -> Asked:
        """Play a round up to the opening; ``silent`` holders give no consent."""
        active = tuple(active or self.members)
        about = {"round": number, "rounds": ROUNDS, "question": b"theta", "active": active}
        context = self.tally.context(**about)
        assert {self.members[name].context(**about) for name in active} == {context}
        draw = np.random.default_rng(number)
        values = {name: draw.integers(-(1 << 43), (1 << 43) + 1, size) for name in active}
        survivors = tuple(name for name in active if name not in missing)
        masked = {
            name: self.members[name].masked(values[name], round=number, context=context, active=active)
            for name in survivors
        }
        sign = Member.sent if survivors == active else lambda m, *about: m.consent(*about, survivors)
        signers = [name for name in survivors if survivors == active or name not in silent]
        proofs = {name: sign(self.members[name], number, context) for name in signers}
        return Asked(
            round=number,
            context=context,
            active=active,
            survivors=survivors,
            values=values,
            masked=masked,
            proofs=proofs,
        )

    def ciphertexts(self, name: str, asked: Asked) -> dict[str, bytes]:
        blob = self.tally.ciphertexts_for(name, asked.round, asked.active)
        senders = [sender for sender in sorted(asked.active) if sender != name]
        assert len(blob) == SHARE_BYTES * len(senders)
        return {sender: blob[i * SHARE_BYTES :][:SHARE_BYTES] for i, sender in enumerate(senders)}

    def open(self, name: str, asked: Asked, *, member: Member | None = None, **changed: object) -> bytes:
        """Have a holder open a round; it sees the genuine question first, then what is ``changed`` in it."""
        question = {
            "round": asked.round,
            "context": asked.context,
            "active": asked.active,
            "survivors": asked.survivors,
            "tolerated": len(asked.active),
            "proofs": asked.proofs,
        } | changed
        if "ciphertexts" not in question:
            question["ciphertexts"] = self.ciphertexts(name, asked)
        return asked.put_to(member or self.members[name]).open(**question)

    def open_all(self, asked: Asked, openers: Sequence[str] = ()) -> dict[str, bytes]:
        return {name: self.open(name, asked) for name in openers or asked.survivors}

    def unmask(self, asked: Asked, opened: Mapping[str, bytes], **changed: object):
        question = {
            "round": asked.round,
            "context": asked.context,
            "active": asked.active,
            "masked": asked.masked,
        } | changed
        return self.tally.unmask(opened=opened, **question)


def play(session: Session, number: int, drops: Mapping[str, int], opened: dict[str, bytes]):
    """Play one round in which every holder falls silent before the phase given, and return the sum.

    ``opened`` collects what holders give away, also where the round fails afterwards.
    """
    session.tally = session.new_tally([name for name in session.members if drops[name] > SHARES])
    active = [name for name in session.members if drops[name] > SHARES]
    asked = session.ask(
        number,
        active=active or ["nobody"],
        missing=[name for name in active if drops[name] <= MASKED],
        silent=[name for name in active if drops[name] <= CONSENT],
    )
    for name in asked.survivors:
        if drops[name] > OPENED:
            opened[name] = session.open(name, asked)
    total, liars = session.unmask(asked, opened)
    assert liars == ()
    np.testing.assert_array_equal(total, asked.expected)
    return total


def succeeds(names: Sequence[str], drops: Mapping[str, int]) -> bool:
    """Say by counting alone whether a round must give a sum."""
    left = [sum(drops[name] > phase for name in names) for phase in range(NEVER)]
    needed = 2 * left[KEYS] // 3 + 1
    return left[KEYS] >= 3 and all(count >= needed for count in left[SHARES:])


# The golden vectors ------------------------------------------------------------

# Four holders of four that need three: one may drop out. Written by hand only, when the protocol changes:
#   python -c "import sys; sys.path.insert(0, 'tests'); import secagg_support as s; s.write_vectors()"
_VECTOR_NAMES = ("ash", "birch", "cedar", "elm")


def write_vectors() -> None:
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(json.dumps(make_vectors(), indent=1) + "\n", encoding="ascii")


def make_vectors() -> dict:
    session = Session(_VECTOR_NAMES, terms(_VECTOR_NAMES, session=1), salt="vectors")
    whole = session.ask(32, size=4)
    dropped = session.ask(63, size=4, missing=["birch"])
    sent = {name: session.members[name].sent(63, dropped.context) for name in dropped.survivors}
    agreed = session.terms
    return {
        "about": "Golden and negative vectors of docs/secure-aggregation.md; bytes in hexadecimal.",
        "terms": {
            "federation": agreed.federation,
            "run": agreed.run,
            "session": agreed.session,
            "study": agreed.study,
            "keys": _hex(agreed.keys),
            "digest": agreed.digest.hex(),
        },
        "identity_seeds": {name: fixed("identity", name).hex() for name in _VECTOR_NAMES},
        "seeds": {name: fixed("seed", "vectors", name).hex() for name in _VECTOR_NAMES},
        "adverts": _hex(session.adverts),
        "session_id": session.tally.session_id.hex(),
        "shares_sha256": {name: hashlib.sha256(blob).hexdigest() for name, blob in session.shares.items()},
        "rounds": [_round(session, whole), _round(session, dropped)],
        "refused": [*_bad_adverts(session), *_bad_openings(session, whole, dropped, sent)],
    }


def _hex(table: Mapping[str, bytes]) -> dict[str, str]:
    return {name: data.hex() for name, data in table.items()}


def _round(session: Session, asked: Asked) -> dict:
    opened = session.open_all(asked)
    total, _ = session.unmask(asked, opened)
    return {
        "round": asked.round,
        "rounds": ROUNDS,
        "question": b"theta".hex(),
        "active": asked.active,
        "survivors": asked.survivors,
        "context": asked.context.hex(),
        "values": {name: values.tolist() for name, values in asked.values.items()},
        "masked": {name: values.tolist() for name, values in asked.masked.items()},
        "proofs": _hex(asked.proofs),
        "ciphertexts": {name: _hex(session.ciphertexts(name, asked)) for name in asked.survivors},
        "opened": _hex(opened),
        "sum": total.tolist(),
    }


def forged_advert(session: Session, name: str, at: int, word: bytes) -> bytes:
    """Return an advert with 32 bytes replaced, signed by its holder as if nothing were wrong."""
    body = session.adverts[name][: ADVERT_BYTES - 64]
    body = body[:at] + word + body[at + 32 :]
    return body + identity(name).sign("secagg-advert", framed(session.terms.digest, name.encode(), body))


def low_order_points() -> Iterator[bytes]:
    """Yield every encoding of a point of low order: canonical, not reduced, and with the highest bit set."""
    p = 2**255 - 19
    order_8 = (
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    )
    small = [0, 1, p - 1, p, p + 1, *(int.from_bytes(bytes.fromhex(word), "little") for word in order_8)]
    for u in small:
        yield u.to_bytes(32, "little")
        yield (u + 2**255).to_bytes(32, "little")


def _bad_adverts(session: Session) -> list[dict]:
    """One advert replaced; whoever joins must refuse."""
    adverts = session.adverts
    last = ADVERT_BYTES - 64 - 64  # the mask key of the last round
    other = Session(_VECTOR_NAMES, terms(_VECTOR_NAMES, session=2), salt="vectors").adverts
    high_bit = bytes([*adverts["elm"][last : last + 31], adverts["elm"][last + 31] | 0x80])
    cases = {
        "a signature with one bit changed": adverts["elm"][:-1] + bytes([adverts["elm"][-1] ^ 1]),
        "a commitment with one bit changed": bytes([*adverts["elm"][:64], adverts["elm"][64] ^ 1])
        + adverts["elm"][65:],
        "the advert of another holder": adverts["ash"],
        "an advert of the next session": other["elm"],
        "one byte too few": adverts["elm"][:-1],
        "one byte too many": adverts["elm"] + b"\0",
        "a mask key with the highest bit set, signed": forged_advert(session, "elm", last, high_bit),
        "a mask key that another holder sent, signed": forged_advert(
            session, "elm", last, adverts["ash"][last : last + 32]
        ),
        "the share key as mask key, signed": forged_advert(session, "elm", last, adverts["elm"][:32]),
        "a commitment that another holder sent, signed": forged_advert(
            session, "elm", 64, adverts["ash"][64:96]
        ),
    }
    cases["a share key of low order, signed"] = forged_advert(session, "elm", 0, bytes(32))
    for point in low_order_points():
        cases[f"a mask key of low order, {point.hex()}, signed"] = forged_advert(session, "elm", last, point)
    return [
        {"what": what, "step": "join", "holder": "ash", "adverts": {"elm": advert.hex()}}
        for what, advert in cases.items()
    ]


def _bad_openings(session: Session, whole: Asked, dropped: Asked, sent: Mapping[str, bytes]) -> list[dict]:
    """One thing changed in what a restarted holder that knows both questions is to open; it must refuse."""
    consents = dropped.proofs
    few = dict(list(consents.items())[:2])
    flipped = {**consents, "elm": bytes([consents["elm"][0] ^ 1]) + consents["elm"][1:]}
    ciphertexts = session.ciphertexts("ash", dropped)
    bad_share = bytes([*ciphertexts["elm"][:-1], ciphertexts["elm"][-1] ^ 1])
    cases: dict[str, dict] = {
        "too few consents": {"proofs": _hex(few)},
        "a consent with one bit changed": {"proofs": _hex(flipped)},
        "consents to another round": {"proofs": _hex(whole.proofs)},
        "a consent of a holder that dropped out": {"proofs": _hex({**consents, "birch": consents["elm"]})},
        "a consent given by another holder": {"proofs": _hex({**consents, "elm": consents["cedar"]})},
        "survivors below the threshold": {"survivors": ["ash", "elm"]},
        "a survivor that was not active": {"survivors": ["ash", "cedar", "elm", "oak"]},
        "the opener is no survivor": {"survivors": ["birch", "cedar", "elm"]},
        "more missing than tolerated": {"tolerated": 0},
        "a ciphertext with one bit changed": {"ciphertexts": _hex({**ciphertexts, "elm": bad_share})},
        "ciphertexts of another round": {"ciphertexts": _hex(session.ciphertexts("ash", whole))},
        "two ciphertexts exchanged": {
            "ciphertexts": _hex({**ciphertexts, "elm": ciphertexts["cedar"], "cedar": ciphertexts["elm"]})
        },
        "a ciphertext is missing": {
            "ciphertexts": _hex({name: ciphertexts[name] for name in ("birch", "cedar")})
        },
        # All of it fits together, but the context is over four: nobody consented to three, one is missing.
        "active holders that are not those of the context": {
            "active": dropped.survivors,
            "tolerated": 0,
            "proofs": _hex(sent),
            "ciphertexts": _hex({name: ciphertexts[name] for name in ("cedar", "elm")}),
        },
        "another context": {"context": whole.context.hex()},
        "a round of another session": {"round": 31},
    }
    complete = {
        "round": dropped.round,
        "context": dropped.context.hex(),
        "active": dropped.active,
        "survivors": dropped.survivors,
        "tolerated": 1,
        "proofs": _hex(consents),
        "ciphertexts": _hex(ciphertexts),
    }
    return [
        {"what": what, "step": "open", "holder": "ash", **complete, **change}
        for what, change in cases.items()
    ]


assert SESSION_ROUNDS == 32  # the rounds of the vectors belong to session 1
