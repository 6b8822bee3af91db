"""Who takes part in one session of secure aggregation, with which keys: checked, signed and named by a hash.

A session serves :data:`SESSION_ROUNDS` rounds of a run. Each holder advertises one key for encrypted shares
and, for every round, a mask key and the hash of a self-mask seed. :class:`Cohort` is the verified set of
these adverts; its ``session_id`` covers every byte of them, and every key, mask and signature that follows
covers the session id.

Bonawitz et al. 2017, figure 4, round 0 (advertise keys), for 32 rounds at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from assay.privacy.errors import BadInput, Tampered
from assay.privacy.keys import SIGNATURE_BYTES, Identity, verify
from assay.privacy.masking import framed, refuse, require_point, u32
from assay.privacy.names import check_holder_name

__all__ = [
    "ADVERT_BYTES",
    "CONTEXT_BYTES",
    "MAX_HOLDERS",
    "MIN_HOLDERS",
    "SESSION_ROUNDS",
    "VALUE_BOUND",
    "Advert",
    "Cohort",
    "Terms",
    "fewest_holders",
    "threshold",
]

SESSION_ROUNDS = 32
MIN_HOLDERS = 3
MAX_HOLDERS = 1000
VALUE_BOUND = 1 << 43
"""Every number of one holder is smaller: a sum over 1000 holders stays exact in float64, below 2^53."""
MAX_SESSIONS = 1 << 16
CONTEXT_BYTES = 32
_KEY = 32
ADVERT_BYTES = _KEY + SESSION_ROUNDS * 2 * _KEY + SIGNATURE_BYTES
_HEX64 = re.compile(r"[0-9a-f]{64}")
_HEX32 = re.compile(r"[0-9a-f]{32}")


def threshold(holders: int) -> int:
    """Return how many of ``holders`` must open a round: floor(2n/3) + 1.

    Twice as many are more than ``holders`` and every c < n/3 of them counted double: two sets of openers
    share an honest holder (Bonawitz et al. 2017, section 6.2).
    """
    return 2 * holders // 3 + 1


def fewest_holders(tolerated: int) -> int:
    """Return how few holders may be summed if ``tolerated`` of them may collude with the coordinator.

    From 2 * threshold - n colluding holders on, two lists of survivors can be opened in one round, and their
    difference is one holder's values. 3 * tolerated - 1 is the least n from which on that is out of reach.
    """
    return max(MIN_HOLDERS, 3 * tolerated - 1)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all parties of a session agree on before it begins.

    Attributes:
        federation: 64 lower-case hexadecimal digits.
        run: 32 lower-case hexadecimal digits.
        session: number of the session within the run, from 0; it serves the rounds 32 * session .. + 31.
        study: SHA-256 of the study, 64 lower-case hexadecimal digits.
        keys: Ed25519 public key, 32 bytes, of every holder that may take part; 3..1000, all different.
    """

    federation: str
    run: str
    session: int
    study: str
    keys: Mapping[str, bytes]

    def __post_init__(self) -> None:
        for setting, pattern, digits in (
            ("federation", _HEX64, 64),
            ("run", _HEX32, 32),
            ("study", _HEX64, 64),
        ):
            value = getattr(self, setting)
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise BadInput(setting, value=value, allowed=f"{digits} lower-case hexadecimal digits")
        session = self.session
        if isinstance(session, bool) or not isinstance(session, int) or not 0 <= session < MAX_SESSIONS:
            raise BadInput("session", value=session, allowed=f"0..{MAX_SESSIONS - 1}")
        if not MIN_HOLDERS <= len(self.keys) <= MAX_HOLDERS:
            allowed = f"{MIN_HOLDERS}..{MAX_HOLDERS} holders"
            raise BadInput("keys", value=f"{len(self.keys)} holders", allowed=allowed)
        for name, key in self.keys.items():
            check_holder_name(name)
            if not isinstance(key, bytes) or len(key) != _KEY:
                raise BadInput(f"identity key of {name}", allowed=f"{_KEY} bytes")
        if len(set(self.keys.values())) != len(self.keys):
            raise BadInput("keys", allowed="a different identity key for each holder")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all attributes, 32 bytes; every advert is signed over it."""
        names = (part for name in sorted(self.keys) for part in (name.encode(), self.keys[name]))
        fixed = (bytes.fromhex(self.federation), bytes.fromhex(self.run), u32(self.session))
        whole = framed(b"assay/secagg-terms/v1", *fixed, bytes.fromhex(self.study), *names)
        return hashlib.sha256(whole).digest()

    @cached_property
    def served(self) -> range:
        """The rounds of the run that this session serves."""
        return range(SESSION_ROUNDS * self.session, SESSION_ROUNDS * (self.session + 1))

    def slot(self, round: int) -> int:  # noqa: A002 - what it is called on the wire
        """Return the place of ``round`` within the session, 0..31.

        Raises:
            Refused: another session serves it (``"aggregation"``).
        """
        if round not in self.served:
            rounds = f"{self.served[0]}..{self.served[-1]}"
            raise refuse(f"round {round} is not of session {self.session}; allowed: {rounds}")
        return self.served.index(round)


@dataclass(frozen=True, kw_only=True)
class Advert:
    """The public half of one holder's secrets of a session.

    Attributes:
        share_key: X25519 key that others encrypt their shares to, 32 bytes.
        mask_keys: X25519 key of each round, 32 bytes each.
        commitments: SHA-256 over the self-mask seed of each round, 32 bytes each.
    """

    share_key: bytes
    mask_keys: tuple[bytes, ...]
    commitments: tuple[bytes, ...]

    def seal(self, *, terms: Terms, name: str, identity: Identity) -> bytes:
        """Return the signed bytes, :data:`ADVERT_BYTES` of them."""
        pairs = zip(self.mask_keys, self.commitments, strict=True)
        body = self.share_key + b"".join(key + commitment for key, commitment in pairs)
        return body + identity.sign("secagg-advert", framed(terms.digest, name.encode(), body))

    @classmethod
    def open(cls, data: bytes, *, terms: Terms, name: str) -> Advert:
        """Check and decode what :meth:`seal` made.

        Raises:
            Refused: naming the holder: unknown, wrong length or signature, or a key that is none
                (``"aggregation"``).
        """
        if name not in terms.keys:
            raise refuse(f"{name!r} is no holder of this run")
        if len(data) != ADVERT_BYTES:
            raise refuse(f"{name}: its keys have {len(data)} bytes; allowed: {ADVERT_BYTES}")
        body, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
        signed = framed(terms.digest, name.encode(), body)
        _require_signature(terms, name, "secagg-advert", signed, signature)
        words = [body[at : at + _KEY] for at in range(0, len(body), _KEY)]
        for key in (words[0], *words[1::2]):
            require_point(key, sender=name)
        return cls(share_key=words[0], mask_keys=tuple(words[1::2]), commitments=tuple(words[2::2]))


def _require_signature(terms: Terms, name: str, context: str, body: bytes, signature: bytes) -> None:
    try:
        _verified(terms.keys[name], context, body, signature)
    except Tampered:
        raise refuse(f"{name}: its {context} signature does not verify") from None


@lru_cache(maxsize=1 << 12)  # holders join anew at every question; simulated ones check the same proofs
def _verified(key: bytes, context: str, body: bytes, signature: bytes) -> None:
    verify(key, context, body, signature, what=context)


class Cohort:
    """The holders of one session and their verified adverts.

    Attributes:
        terms: what they agreed on.
        names: in order; the position, from 1, is a holder's x in secret sharing.
        adverts: what each advertised.
        raw: the signed bytes of each advert.
        threshold: how many must open a round.
        session_id: SHA-256 over the terms and every byte of every advert, 32 bytes.
    """

    def __init__(self, terms: Terms, adverts: Mapping[str, bytes]) -> None:
        """Verify all adverts.

        Raises:
            Refused: fewer than three holders, an unknown one, or an advert that is not exactly what its
                holder must send (``"aggregation"``); the message names the holder.
        """
        if len(adverts) < MIN_HOLDERS:
            raise refuse(f"{len(adverts)} holders sent keys; secure aggregation needs {MIN_HOLDERS}")
        self.terms = terms
        self.names = tuple(sorted(adverts))
        self.raw = {name: bytes(adverts[name]) for name in self.names}
        self.adverts = {n: Advert.open(self.raw[n], terms=terms, name=n) for n in self.names}
        self.threshold = threshold(len(self.names))
        self._require_distinct()
        parts = (part for name in self.names for part in (name.encode(), self.raw[name]))
        whole = framed(b"assay/secagg-session/v1", terms.digest, *parts)
        self.session_id = hashlib.sha256(whole).digest()

    def _require_distinct(self) -> None:
        """Refuse a key or commitment that occurs twice: somebody copied it, or has no randomness."""
        seen: dict[bytes, str] = {}
        for name, advert in self.adverts.items():
            for word in (advert.share_key, *advert.mask_keys, *advert.commitments):
                if word in seen:
                    raise refuse(f"{seen[word]} and {name}: one key or commitment stands in two places")
                seen[word] = name

    def x(self, name: str) -> int:
        """Return the holder's place in secret sharing, from 1."""
        return self.names.index(name) + 1

    def roll(self, names: Iterable[str], what: str) -> tuple[str, ...]:
        """Return ``names`` in order if they may be the active holders or the survivors of a round.

        They may come in any order: what is hashed and signed is the sorted list.

        Raises:
            Refused: a name twice, or not of this session, or fewer than the threshold (``"aggregation"``).
        """
        ordered = tuple(sorted(names))
        strange = [name for name in ordered if name not in self.adverts]
        if strange:
            raise refuse(f"{what}: {strange[0]!r} is not of this session")
        if len(set(ordered)) != len(ordered):
            raise refuse(f"{what}: a name occurs twice")
        if len(ordered) < self.threshold:
            raise refuse(f"{what}: {len(ordered)} holders; allowed: at least {self.threshold}")
        return ordered

    def context(self, *, round: int, rounds: int, question: bytes, active: Sequence[str]) -> bytes:  # noqa: A002
        """Return the hash of what a round asks of whom; masks and signatures are good for this context only.

        Args:
            round: of the run; one that this session serves.
            rounds: gradient rounds of the run, below 2^32; Assay takes 0 with round 0.
            question: what identifies the question; Assay takes SHA-256 over the bytes of theta.
            active: names of the holders that are asked, in any order.

        Returns:
            32 bytes.

        Raises:
            Refused: another session serves the round, ``rounds`` is out of range, or the active holders are
                too few, unknown or repeated (``"aggregation"``).
        """
        self.terms.slot(round)
        if not 0 <= rounds < 1 << 32:
            raise refuse(f"rounds is {rounds}; allowed: 0..2^32-1")
        names = (name.encode() for name in self.roll(active, "active holders"))
        hashed = hashlib.sha256(question).digest()
        whole = framed(b"assay/secagg-context/v1", self.session_id, u32(round), u32(rounds), hashed, *names)
        return hashlib.sha256(whole).digest()

    def signed_body(self, round: int, context: bytes, survivors: Sequence[str] = ()) -> bytes:  # noqa: A002
        """Return what a holder signs: that it sent its masked values or, with ``survivors``, its consent."""
        return framed(self.session_id, u32(round), context, *(name.encode() for name in survivors))

    def require_sent(self, name: str, *, round: int, context: bytes, signature: bytes) -> None:  # noqa: A002
        """Check the signature by which a holder says that it sent its masked values of a round.

        Raises:
            Refused: naming the holder (``"aggregation"``).
        """
        self._require_signature(name, "secagg-sent", self.signed_body(round, context), signature)

    def require_consent(
        self,
        name: str,
        *,
        round: int,  # noqa: A002
        context: bytes,
        survivors: Sequence[str],
        signature: bytes,
    ) -> None:
        """Check the signature by which a holder consents to opening for ``survivors``, given in order.

        Raises:
            Refused: naming the holder (``"aggregation"``).
        """
        body = self.signed_body(round, context, survivors)
        self._require_signature(name, "secagg-consent", body, signature)

    def _require_signature(self, name: str, context: str, body: bytes, signature: bytes) -> None:
        if name not in self.adverts:
            raise refuse(f"{name!r} is not of this session")
        _require_signature(self.terms, name, context, body, signature)
