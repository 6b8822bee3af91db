"""The coordinator's side of secure aggregation: what it relays, and how it takes the masks off a sum.

It holds no secret of its own. What it rebuilds is checked against what the holders advertised, so that a
wrong share names its holder and never changes a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from assay.privacy import shamir
from assay.privacy.cohort import ADVERT_BYTES, SESSION_ROUNDS, VALUE_BOUND, Cohort, Terms
from assay.privacy.errors import BadInput, Refused
from assay.privacy.masking import add_pair_mask, commitment, refuse, self_mask

__all__ = ["SHARE_BYTES", "Tally"]

SHARE_BYTES = 2 * shamir.ELEMENT_BYTES + 16
_MAGIC = b"ASSAY-TALLY1"


class Tally:
    """One session as the coordinator sees it: adverts, encrypted shares, and the opening of each round.

    Attributes:
        cohort: the verified adverts. Its ``require_sent`` and ``require_consent`` check a holder's signature
            before it is handed on: a wrong one makes all the others refuse.
    """

    def __init__(self, terms: Terms, adverts: Mapping[str, bytes]) -> None:
        """Verify all adverts.

        Raises:
            Refused: one is not what its holder must send; the message names it (``"aggregation"``).
        """
        self.cohort = Cohort(terms, adverts)
        self._shares: dict[str, bytes] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The holders of the session, in order."""
        return self.cohort.names

    @property
    def threshold(self) -> int:
        """How many holders must open a round."""
        return self.cohort.threshold

    @property
    def session_id(self) -> bytes:
        """SHA-256 over the terms and all adverts, 32 bytes."""
        return self.cohort.session_id

    @property
    def sharers(self) -> tuple[str, ...]:
        """The holders whose encrypted shares have come, in order: those that may be active."""
        return tuple(sorted(self._shares))

    def context(self, *, round: int, rounds: int, question: bytes, active: Sequence[str]) -> bytes:  # noqa: A002
        """Return the 32 bytes that bind masks and signatures to one question; see :meth:`Cohort.context`."""
        return self.cohort.context(round=round, rounds=rounds, question=question, active=active)

    def add_shares(self, name: str, blob: bytes) -> None:
        """Keep the encrypted shares that a holder sent for all the others and all rounds.

        Raises:
            Refused: an unknown holder, another length, or other shares than it sent before
                (``"aggregation"``).
        """
        if name not in self.cohort.adverts:
            raise refuse(f"{name!r} is not of this session")
        wanted = SHARE_BYTES * SESSION_ROUNDS * (len(self.names) - 1)
        if len(blob) != wanted:
            raise refuse(f"{name}: its shares have {len(blob)} bytes; allowed: {wanted}")
        if self._shares.setdefault(name, bytes(blob)) != blob:
            raise refuse(f"{name}: it has sent other shares before")

    def ciphertexts_for(self, name: str, round: int, active: Sequence[str]) -> bytes:  # noqa: A002
        """Return what the other ``active`` holders encrypted for one holder and one round.

        Returns:
            :data:`SHARE_BYTES` bytes for each active holder but ``name``, in order of names.

        Raises:
            Refused: the round or a name is not of this session, or an active holder's shares have not come
                (``"aggregation"``).
        """
        slot, asked = self.cohort.terms.slot(round), self.cohort.roll(active, "active holders")
        if name not in asked:
            raise refuse(f"{name!r} is not active")
        pieces = []
        for sender in asked:
            if sender == name:
                continue
            if sender not in self._shares:
                raise refuse(f"{sender}: its shares have not come")
            place = [peer for peer in self.names if peer != sender].index(name)
            at = SHARE_BYTES * (SESSION_ROUNDS * place + slot)
            pieces.append(self._shares[sender][at : at + SHARE_BYTES])
        return b"".join(pieces)

    def add(self, masked: Mapping[str, NDArray[np.uint64]]) -> NDArray[np.uint64]:
        """Return the sum modulo 2^64 of survivors' masked values, which is still masked.

        Args:
            masked: masked values by survivor: uint64, one dimension, equal sizes.

        Raises:
            BadInput: masked values of another type or shape.
            Refused: of unequal sizes, or fewer than the threshold (``"aggregation"``).
        """
        survivors = self.cohort.roll(masked, "survivors")
        return _sum([masked[name] for name in survivors], survivors)

    def unmask(
        self,
        *,
        round: int,  # noqa: A002
        context: bytes,
        active: Sequence[str],
        masked: Mapping[str, NDArray[np.uint64]],
        opened: Mapping[str, bytes],
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """:meth:`add` and :meth:`unmask_sum` in one: raises what they raise."""
        return self.unmask_sum(
            self.add(masked),
            round=round,
            context=context,
            active=active,
            survivors=tuple(masked),
            opened=opened,
        )

    def unmask_sum(
        self,
        masked: NDArray[np.uint64],
        *,
        round: int,  # noqa: A002
        context: bytes,
        active: Sequence[str],
        survivors: Sequence[str],
        opened: Mapping[str, bytes],
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return the sum of the survivors' values, exactly.

        Args:
            masked: what :meth:`add` gave for the survivors.
            round: of the run.
            context: of the round.
            active: names of the holders that were asked.
            survivors: names of those whose values are in the sum.
            opened: what :meth:`Member.open` gave at the survivors that answered, at least the threshold.

        Returns:
            The sum, int64; and the names of holders that opened wrong shares, in order. (A holder that
            encrypted a wrong share makes the one that received it look so.) Shares are looked at as far as
            the sum needs them: a wrong one may stay unnoticed where the others suffice.

        Raises:
            Refused: too few survivors or openers, a secret that cannot be rebuilt because too many shares are
                wrong, or a sum beyond its bound (``"aggregation"``).
        """
        slot, asked = self.cohort.terms.slot(round), self.cohort.roll(active, "active holders")
        survivors = self.cohort.roll(survivors, "survivors")
        _require_within(survivors, asked, "survivors")
        _require_within(opened, survivors, "openers")
        total = masked.copy()
        opening = _Opening(self.cohort, slot, asked, opened)
        for name in survivors:
            seed = opening.self_seed(name)
            total -= self_mask(seed, owner=name, context=context, size=total.size)
        for name in (name for name in asked if name not in survivors):
            private = opening.mask_key(name)
            for peer in survivors:  # what the dropped holder would have added cancels what the peer added
                public = self.cohort.adverts[peer].mask_keys[slot]
                add_pair_mask(total, owner=name, private=private, peer=peer, public=public, context=context)
        result = total.view(np.int64)
        bound = VALUE_BOUND * len(survivors)
        if not bool(((result >= -bound) & (result <= bound)).all()):
            raise refuse("the sum is beyond its bound: a holder sent other values than masked ones")
        return result, opening.liars

    def pack(self) -> bytes:
        """Return everything that must survive a restart; :meth:`unpack` reads it."""
        parts = [_MAGIC]
        for name in self.names:
            shares = self._shares.get(name, b"")
            parts += [bytes([len(name)]), name.encode(), self.cohort.raw[name]]
            parts += [len(shares).to_bytes(4, "big"), shares]
        return b"".join(parts)

    @classmethod
    def unpack(cls, terms: Terms, data: bytes) -> Tally:
        """Read what :meth:`pack` made, for the same terms.

        Raises:
            BadInput: it is something else.
            Refused: an advert does not verify under these terms (``"aggregation"``).
        """
        adverts: dict[str, bytes] = {}
        shares: dict[str, bytes] = {}
        take = _Reader(data)
        if take(len(_MAGIC)) != _MAGIC:
            raise BadInput("stored session", allowed="what this version of Assay stores")
        while not take.done:
            name = take(take(1)[0]).decode("ascii", errors="replace")
            adverts[name] = take(ADVERT_BYTES)
            shares[name] = take(int.from_bytes(take(4), "big"))
        tally = cls(terms, adverts)
        for name, blob in shares.items():
            if blob:
                tally.add_shares(name, blob)
        return tally


class _Reader:
    """Takes bytes off the front of a stored session."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def done(self) -> bool:
        return self._at == len(self._data)

    def __call__(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise BadInput("stored session", allowed="all of it; the end is missing")
        self._at += size
        return piece


class _Opening:
    """The shares of one round, and who gave wrong ones."""

    def __init__(
        self, cohort: Cohort, slot: int, active: tuple[str, ...], opened: Mapping[str, bytes]
    ) -> None:
        self._cohort, self._slot, self._active = cohort, slot, active
        self._names = {cohort.x(name): name for name in opened}
        self._wrong: set[int] = set()
        self._shares: dict[int, list[int]] = {}
        for x, name in self._names.items():
            values = _elements(opened[name], len(active))
            if values is None:
                self._wrong.add(x)
            else:
                self._shares[x] = values
        if len(self._shares) < cohort.threshold:
            raise refuse(f"{len(self._shares)} holders opened the round; {cohort.threshold} are needed")

    @property
    def liars(self) -> tuple[str, ...]:
        return tuple(sorted(self._names[x] for x in self._wrong))

    def self_seed(self, name: str) -> bytes:
        wanted = self._cohort.adverts[name].commitments[self._slot]
        return self._recover(name, lambda secret: commitment(secret) == wanted)

    def mask_key(self, name: str) -> X25519PrivateKey:
        wanted = self._cohort.adverts[name].mask_keys[self._slot]
        secret = self._recover(
            name,
            lambda secret: (
                X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() == wanted
            ),
        )
        return X25519PrivateKey.from_private_bytes(secret)

    def _recover(self, name: str, accept: Callable[[bytes], bool]) -> bytes:
        place = self._active.index(name)
        ordered = sorted(self._shares, key=lambda x: (x in self._wrong, x))  # known liars last
        shares = {x: self._shares[x][place] for x in ordered}
        try:
            secret, wrong = shamir.recover(shares, threshold=self._cohort.threshold, accept=accept)
        except Refused:
            raise refuse(
                f"{name}: its secret of the round cannot be rebuilt; too many shares are wrong"
            ) from None
        self._wrong |= wrong
        return secret


def _elements(blob: bytes, count: int) -> list[int] | None:
    """Return the field elements of an opening, or None if it is not ``count`` of them."""
    size = shamir.ELEMENT_BYTES
    if len(blob) != size * count:
        return None
    values = [int.from_bytes(blob[at : at + size], "big") for at in range(0, len(blob), size)]
    return values if all(value < shamir.PRIME for value in values) else None


def _sum(vectors: Sequence[NDArray[np.uint64]], names: Sequence[str]) -> NDArray[np.uint64]:
    for name, vector in zip(names, vectors, strict=True):
        if (
            not isinstance(vector, np.ndarray)
            or vector.dtype != np.uint64
            or vector.ndim != 1
            or not vector.size
        ):
            raise BadInput(f"masked values of {name}", allowed="a uint64 array of one dimension, not empty")
        if vector.size != vectors[0].size:
            raise refuse(f"{names[0]} and {name} sent different numbers of values")
    total = np.zeros(vectors[0].size, dtype=np.uint64)
    for vector in vectors:
        total += vector
    return total


def _require_within(names: Collection[str], allowed: Collection[str], what: str) -> None:
    strange = sorted(set(names) - set(allowed))
    if strange:
        raise refuse(f"{what}: {strange[0]!r} is none of those that could be")
