"""Secure aggregation: a sum of integer vectors of which nobody, the coordinator included, sees one alone.

The protocol is that of Bonawitz et al. 2017 (full graph, active adversary) with the first two exchanges made
once for 32 rounds: every round has its own mask keys and self-mask seeds, so that each is an instance of its
own and opening one says nothing about another. :class:`Member` is the holder's side, :class:`Tally` the
coordinator's. ``docs/secure-aggregation.md`` specifies every byte and argues why it is safe.

=================  ========================================================================================
guarantee          of a round the coordinator learns the sum over one set of at least ``threshold(n)``
                   holders, or nothing, if fewer than n/3 holders collude with it and the identity keys in
                   ``Terms`` are those of real holders: pinned, as this module takes them on trust
the caller's part  what must survive a restart: the seed, one context and one masked vector per round, one
                   list of survivors per round. A :class:`Member` refuses a second one in memory only
dropped holders    any, as long as ``threshold(n)`` send masked values and as many of them open
a false message    is refused by name (``Refused``, code ``"aggregation"``) or does not change the sum
not covered        what a holder puts into its vector, beyond the bound on the sum
=================  ========================================================================================

Nothing here reads a file, a clock or a random number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from assay.privacy import shamir
from assay.privacy.cohort import (
    ADVERT_BYTES,
    CONTEXT_BYTES,
    MAX_HOLDERS,
    MIN_HOLDERS,
    SESSION_ROUNDS,
    VALUE_BOUND,
    Cohort,
    Terms,
    threshold,
)
from assay.privacy.errors import BadInput, Refused
from assay.privacy.holder_secrets import HolderSecrets
from assay.privacy.keys import Identity
from assay.privacy.masking import add_pair_mask, agree, derive, framed, refuse, self_mask, u32
from assay.privacy.tally import SHARE_BYTES, Tally

__all__ = [
    "ADVERT_BYTES",
    "CONTEXT_BYTES",
    "MAX_HOLDERS",
    "MIN_HOLDERS",
    "SESSION_ROUNDS",
    "SHARE_BYTES",
    "VALUE_BOUND",
    "Member",
    "Tally",
    "Terms",
    "threshold",
]

_NONCE = bytes(12)  # every key encrypts one message
# A question needs one context; whoever asks without end must not fill the memory.
_MAX_MADE = 2 * SESSION_ROUNDS


@dataclass(kw_only=True)
class _Round:
    """A context of one round and, once it is used, what the holder has committed itself to in it."""

    number: int
    context: bytes
    active: tuple[str, ...]
    values: bytes = b""
    survivors: tuple[str, ...] = ()


class Member:
    """One holder in one session. Everything secret follows from ``seed``: a restart gives the same bytes.

    The order is :meth:`advert`, :meth:`join`, :meth:`shares`; then per round :meth:`context`,
    :meth:`masked`, :meth:`sent`, where holders dropped out :meth:`consent`, and :meth:`open`.
    """

    def __init__(self, *, name: str, terms: Terms, seed: bytes, identity: Identity) -> None:
        """Derive the session's keys.

        Args:
            name: of this holder, one of ``terms.keys``.
            terms: of the session.
            seed: 32 unpredictable bytes, kept for this session alone and erased after the run.
            identity: the holder's, with the key that ``terms`` names.

        Raises:
            BadInput: the name, the identity or the seed does not fit.
        """
        if terms.keys.get(name) != identity.public:
            raise BadInput("identity", value=name, allowed="a holder of the terms, with the key they name")
        self.name, self._terms, self._identity = name, terms, identity
        self._secrets = HolderSecrets(seed, terms)
        self._cohort: Cohort | None = None
        self._agreed: dict[str, bytes] = {}
        self._made: dict[bytes, _Round] = {}
        self._rounds: dict[int, _Round] = {}

    def __repr__(self) -> str:
        return f"Member({self.name}, session {self._terms.session})"

    def advert(self) -> bytes:
        """Return the holder's public keys and commitments, signed; :data:`ADVERT_BYTES` bytes."""
        return self._secrets.advert().seal(terms=self._terms, name=self.name, identity=self._identity)

    def join(self, adverts: Mapping[str, bytes]) -> None:
        """Accept the adverts of all holders of the session, this one's among them. Once and for all.

        Raises:
            Refused: fewer than three, an unknown holder, an advert that does not verify, this holder's own
                missing or altered (``"aggregation"``), or other adverts than before (``"changed"``).
        """
        if self._cohort is not None:
            if self._cohort.raw != dict(adverts):
                raise Refused("the session was joined with other adverts", code="changed")
            return
        if adverts.get(self.name) != self.advert():
            raise refuse(f"{self.name}: its own keys are missing or not what it sent")
        self._cohort = Cohort(self._terms, adverts)

    @property
    def _joined(self) -> Cohort:
        if self._cohort is None:
            raise refuse("the keys of the other holders have not come yet")
        return self._cohort

    @property
    def names(self) -> tuple[str, ...]:
        """The holders of the session, in order."""
        return self._joined.names

    @property
    def session_id(self) -> bytes:
        """SHA-256 over the terms and all adverts, 32 bytes."""
        return self._joined.session_id

    def context(self, *, round: int, rounds: int, question: bytes, active: Sequence[str]) -> bytes:  # noqa: A002
        """Return the 32 bytes that bind masks and signatures to one question; see :meth:`Cohort.context`.

        The methods below take no other context than one made here, also after a restart: who is active is
        then what the hash says, not what somebody says about it. The first one that is used in a round is its
        only one; to make others, for comparison, changes nothing.

        Raises:
            Refused: as :meth:`Cohort.context`, or this holder is not active (``"aggregation"``).
        """
        asked = self._roll(active, "active holders")
        made = self._joined.context(round=round, rounds=rounds, question=question, active=asked)
        self._made.pop(made, None)
        self._made[made] = _Round(number=round, context=made, active=asked)
        if len(self._made) > _MAX_MADE:
            del self._made[next(iter(self._made))]  # the oldest
        return made

    def shares(self) -> bytes:
        """Return the encrypted shares of this holder's secrets, for every other holder and every round.

        Returns:
            For each other holder in order of names, for each of the 32 rounds: :data:`SHARE_BYTES` bytes.

        Raises:
            Refused: another holder's key cannot be used (``"aggregation"``).
        """
        cohort = self._joined
        polynomials = {number: self._secrets.polynomials(cohort, number) for number in self._terms.served}
        pieces = []
        for x, peer in enumerate(cohort.names, start=1):
            if peer == self.name:
                continue
            for number, pair in polynomials.items():
                plain = b"".join(_share(polynomial, x) for polynomial in pair)
                cipher, about = self._cipher(sender=self.name, receiver=peer, round=number)
                pieces.append(cipher.encrypt(_NONCE, plain, about))
        return b"".join(pieces)

    def _cipher(self, *, sender: str, receiver: str, round: int) -> tuple[ChaCha20Poly1305, bytes]:  # noqa: A002
        """Return the cipher for the one message between two holders in a round, and what it is bound to."""
        peer = receiver if sender == self.name else sender
        cohort = self._joined
        if peer not in self._agreed:
            self._agreed[peer] = agree(self._secrets.share_key, cohort.adverts[peer].share_key, sender=peer)
        about = (sender.encode(), receiver.encode(), u32(round))
        key = derive(self._agreed[peer], b"assay/secagg-share/v1", cohort.session_id, *about)
        return ChaCha20Poly1305(key), framed(*about)

    def masked(
        self,
        values: NDArray[np.int64],
        *,
        round: int,  # noqa: A002
        context: bytes,
        active: Sequence[str],
    ) -> NDArray[np.uint64]:
        """Return ``values`` plus this holder's masks of the round, modulo 2^64.

        A round's masks hide one vector: another one, or another context, is refused. After a restart the
        caller must send what it stored, never mask anew.

        Args:
            values: int64, one dimension, at least one value, each at most :data:`VALUE_BOUND` in size.
            round: of the run.
            context: what :meth:`context` gave for these ``active`` holders.
            active: names of the holders that are asked, this one among them; sorted first.

        Returns:
            uint64, as many values.

        Raises:
            BadInput: values of another type, shape or size, or a context that is not 32 bytes.
            Refused: the context was not made here, for this round and these holders (``"aggregation"``), or
                the round has masked other values or another question (``"changed"``).
        """
        cohort, slot = self._joined, self._terms.slot(round)
        peers = self._roll(active, "active holders")
        _require_values(values)
        state = self._bound(round, context, peers)
        digest = hashlib.sha256(values.astype("<i8").tobytes()).digest()
        if state.values not in (b"", digest):
            raise Refused(f"round {round} has masked other values; send those again", code="changed")
        private = self._secrets.mask_key(round)
        total = values.astype(np.int64).view(np.uint64)
        seed = self._secrets.self_seed(round)
        total += self_mask(seed, owner=self.name, context=context, size=values.size)
        for peer in peers:
            if peer != self.name:
                public = cohort.adverts[peer].mask_keys[slot]
                add_pair_mask(
                    total, owner=self.name, private=private, peer=peer, public=public, context=context
                )
        state.values = digest
        return total

    def sent(self, round: int, context: bytes) -> bytes:  # noqa: A002
        """Return the 64-byte signature that goes with the masked values of a round.

        Raises:
            Refused: the context was not made here for this round (``"aggregation"``), or the round has
                another (``"changed"``).
        """
        self._bound(round, context)
        return self._identity.sign("secagg-sent", self._joined.signed_body(round, context))

    def consent(self, round: int, context: bytes, survivors: Sequence[str]) -> bytes:  # noqa: A002
        """Return the 64-byte signature that consents to opening a round for ``survivors``, and no others.

        Raises:
            Refused: fewer survivors than the threshold, others than active ones, this holder not among them,
                a context that was not made here (``"aggregation"``), or another list or context before
                (``"changed"``).
        """
        ordered = self._roll(survivors, "survivors")
        state = self._bound(round, context)
        _require_active(ordered, state.active)
        self._settle(state, round, ordered)
        return self._identity.sign("secagg-consent", self._joined.signed_body(round, context, ordered))

    def open(
        self,
        *,
        round: int,  # noqa: A002
        context: bytes,
        active: Sequence[str],
        survivors: Sequence[str],
        tolerated: int,
        proofs: Mapping[str, bytes],
        ciphertexts: Mapping[str, bytes],
    ) -> bytes:
        """Return this holder's shares for one round: of a survivor its self-mask seed, else its mask key.

        Never both of one holder: a round is opened for one list of survivors.

        Args:
            round: of the run.
            context: what :meth:`context` gave for these ``active`` holders.
            active: names of the holders that were asked; sorted first, as ``survivors``.
            survivors: names of those whose masked values arrived, this holder among them.
            tolerated: how many of the active holders may be missing before the noise is too little.
            proofs: name to signature. With nobody missing: of every other active holder, that it sent its
                values in this context. Otherwise consents to these survivors, at least the threshold, this
                holder's counted as the others are. Each one given must verify.
            ciphertexts: name to the :data:`SHARE_BYTES` bytes that each other active holder encrypted.

        Returns:
            66 bytes per active holder, in order of names.

        Raises:
            BadInput: ``tolerated`` is negative, or a context that is not 32 bytes.
            Refused: a list, context, signature or ciphertext does not fit (``"aggregation"``), or the round
                was opened for others (``"changed"``). Nothing is given away.
        """
        if not tolerated >= 0:
            raise BadInput("tolerated", value=tolerated, allowed="at least 0")
        asked = self._roll(active, "active holders")
        left = self._roll(survivors, "survivors")
        _require_active(left, asked)
        _require_noise(left, asked, tolerated)
        state = self._bound(round, context, asked)
        self._require_proofs(round, context, asked, left, proofs)
        if set(ciphertexts) != set(asked) - {self.name}:
            raise refuse("the encrypted shares are not those of the other active holders")
        pairs = {name: self._decrypt(name, round, ciphertexts[name]) for name in ciphertexts}
        pairs[self.name] = self._own_shares(round)
        self._settle(state, round, left)
        return b"".join(pairs[name][1 if name in left else 0] for name in asked)

    def _roll(self, names: Sequence[str], what: str) -> tuple[str, ...]:
        ordered = self._joined.roll(names, what)
        if self.name not in ordered:
            raise refuse(f"{what}: {self.name} itself is not among them")
        return ordered

    def _bound(
        self,
        round: int,  # noqa: A002
        context: bytes,
        active: tuple[str, ...] | None = None,
    ) -> _Round:
        """Return what is settled in a round; its first context is its only one, for its active holders."""
        self._terms.slot(round)
        if not isinstance(context, bytes) or len(context) != CONTEXT_BYTES:
            raise BadInput("context", allowed=f"{CONTEXT_BYTES} bytes")
        state = self._rounds.get(round) or self._made.get(context)
        if state is None or state.number != round:
            raise refuse(f"round {round}: its context was not made by this holder")
        if state.context != context:
            raise Refused(f"round {round} was begun with another question", code="changed")
        if active not in (None, state.active):
            raise refuse("the active holders are not those of the context")
        self._rounds[round] = state
        return state

    def _settle(self, state: _Round, round: int, survivors: tuple[str, ...]) -> None:  # noqa: A002
        if state.survivors not in ((), survivors):
            raise Refused(f"round {round} is opened for other survivors", code="changed")
        state.survivors = survivors

    def _require_proofs(
        self,
        round: int,  # noqa: A002
        context: bytes,
        active: tuple[str, ...],
        survivors: tuple[str, ...],
        proofs: Mapping[str, bytes],
    ) -> None:
        """Bonawitz et al. 2017, figure 4, round 3: the same list for everybody, before a share leaves."""
        cohort = self._joined
        strange = sorted(set(proofs) - set(survivors))
        if strange:
            raise refuse(f"{strange[0]!r} signed, but is no survivor")
        if survivors == active:
            missing = sorted(set(active) - set(proofs) - {self.name})
            if missing:
                raise refuse(f"{missing[0]}: no signature that it sent its values")
            for name, signature in proofs.items():
                cohort.require_sent(name, round=round, context=context, signature=signature)
            return
        if len(proofs) < cohort.threshold:
            raise refuse(f"{len(proofs)} consents; allowed: at least {cohort.threshold}")
        for name, signature in proofs.items():
            cohort.require_consent(
                name, round=round, context=context, survivors=survivors, signature=signature
            )

    def _decrypt(self, sender: str, round: int, ciphertext: bytes) -> tuple[bytes, bytes]:  # noqa: A002
        """Return the two shares that ``sender`` encrypted for this holder."""
        cipher, about = self._cipher(sender=sender, receiver=self.name, round=round)
        try:
            plain = cipher.decrypt(_NONCE, ciphertext, about)
        except InvalidTag:
            plain = b""
        if len(plain) != 2 * shamir.ELEMENT_BYTES:
            raise refuse(f"{sender}: its encrypted shares for {self.name} do not open")
        return plain[: shamir.ELEMENT_BYTES], plain[shamir.ELEMENT_BYTES :]

    def _own_shares(self, round: int) -> tuple[bytes, bytes]:  # noqa: A002
        x = self._joined.x(self.name)
        of_mask, of_self = self._secrets.polynomials(self._joined, round)
        return _share(of_mask, x), _share(of_self, x)


def _share(polynomial: Sequence[int], x: int) -> bytes:
    return shamir.evaluate(polynomial, x).to_bytes(shamir.ELEMENT_BYTES, "big")


def _require_values(values: NDArray[np.int64]) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != np.int64 or values.ndim != 1 or not values.size:
        raise BadInput("values", allowed="an int64 array of one dimension, not empty")
    if not bool(((values >= -VALUE_BOUND) & (values <= VALUE_BOUND)).all()):
        raise BadInput("values", allowed=f"integers from -{VALUE_BOUND} to {VALUE_BOUND}")


def _require_active(survivors: tuple[str, ...], active: tuple[str, ...]) -> None:
    strange = sorted(set(survivors) - set(active))
    if strange:
        raise refuse(f"survivors: {strange[0]} was not active")


def _require_noise(survivors: tuple[str, ...], active: tuple[str, ...], tolerated: int) -> None:
    if len(active) - len(survivors) > tolerated:
        missing = len(active) - len(survivors)
        raise refuse(f"{missing} holders are missing; allowed: {tolerated}, or the noise is too little")
