"""A session of secure aggregation: everybody's keys, then everybody's shares, once for 32 rounds.

What the next question depends on is stored before it is asked: the holders before they are asked for keys,
the keys before anybody makes shares for them, the shares before anybody is asked for masked values. After a
crash the same holders are asked the same. A holder that is missing in either exchange is out of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from assay.privacy.cohort import Advert
from assay.privacy.errors import Refused
from assay.privacy.messages import (
    Keys,
    KeysRequest,
    Shares,
    SharesRequest,
)
from assay.privacy.secagg import MIN_HOLDERS, SESSION_ROUNDS, Tally, Terms
from assay.server.records import Collected, Session
from assay.server.sums import Aborted, Panel

__all__ = ["SessionSetup", "Sessions"]

Names = tuple[str, ...]


class Sessions(Protocol):
    """What secure sums keep over a crash of the coordinator; every write is durable when it returns."""

    def session(self, number: int) -> Session | None:
        """Return a session of the run as it was saved last, or None."""

    def save_session(self, session: Session) -> None:
        """Keep a session; the same number again replaces it."""

    def collected(self, number: int) -> Collected | None:
        """Return what is to be opened in a round, or None while that is not decided."""

    def save_collected(self, collected: Collected) -> None:
        """Keep what is to be opened in a round; it is decided once."""


class SessionSetup:
    """Opens the sessions of one run, each once, also over crashes."""

    def __init__(
        self,
        panel: Panel,
        sessions: Sessions,
        *,
        study: str,
        federation: str,
        roster: Mapping[str, bytes],
        minimum: int,
    ) -> None:
        """Build it.

        Args:
            panel: the holders of the run.
            sessions: what an earlier process of this run has kept.
            study: SHA-256 of the study, 64 hexadecimal digits.
            federation: its identifier, 64 hexadecimal digits.
            roster: Ed25519 key (32 bytes) of every admitted holder by name.
            minimum: a session with fewer holders is of no use; at least 3.
        """
        self._panel, self._sessions, self._minimum = panel, sessions, max(minimum, MIN_HOLDERS)
        self._study, self._federation, self._roster = study, federation, roster
        self._open: Tally | None = None

    def enter(self, number: int, active: Names) -> Tally:
        """Return the session of a round, set up with the ``active`` holders where it is new.

        Raises:
            Aborted: too few holders take part in it.
        """
        session = number // SESSION_ROUNDS
        if self._open is not None and self._open.cohort.terms.session == session:
            return self._open
        stored = self._sessions.session(session)
        if stored is None:
            terms = self._terms(session, self._keys_of(number, active))
            self._save(terms, b"")
        else:
            keys = {name: bytes.fromhex(key) for name, key in stored.holders.items()}
            terms = self._terms(session, keys)
        kept = stored.tally if stored else b""
        tally = Tally.unpack(terms, kept) if kept else self._gather_keys(number, terms)
        if not tally.sharers:
            self._gather_shares(number, tally)
        self._open = tally
        return tally

    def _keys_of(self, number: int, active: Names) -> dict[str, bytes]:
        keys = {name: self._roster[name] for name in active if name in self._roster}
        for name in active:
            if name not in keys:
                self._panel.drop(number, name, "no longer admitted")
        self._panel.require(number, len(keys), self._minimum)
        return keys

    def _terms(self, session: int, keys: Mapping[str, bytes]) -> Terms:
        return Terms(
            federation=self._federation, run=self._panel.run, session=session, study=self._study, keys=keys
        )

    def _gather_keys(self, number: int, terms: Terms) -> Tally:
        """Ask for the session's public keys and keep them before anybody makes shares for them."""
        holders = {name: key.hex() for name, key in terms.keys.items()}
        request = KeysRequest(run=self._panel.run, session=terms.session, holders=holders)
        answers = self._panel.ask_for(Keys, number, dict.fromkeys(holders, request), session=terms.session)
        adverts = {}
        for name, answer in answers.items():
            try:
                Advert.open(answer.advert, terms=terms, name=name)
            except Refused as error:
                self._panel.drop(number, name, str(error))
            else:
                adverts[name] = answer.advert
        self._panel.require(number, len(adverts), self._minimum)
        try:
            tally = Tally(terms, adverts)
        except Refused as error:  # keys that are each well formed and do not go together
            raise Aborted(f"round {number}: {error}. The run is aborted") from None
        self._save(tally.cohort.terms, tally.pack())
        return tally

    def _gather_shares(self, number: int, tally: Tally) -> None:
        """Let everybody share its secrets among all; only those whose shares are in take part."""
        session = tally.cohort.terms.session
        adverts = b"".join(tally.cohort.raw[name] for name in tally.names)
        request = SharesRequest(
            run=self._panel.run, session=session, names=list(tally.names), adverts=adverts
        )
        answers = self._panel.ask_for(Shares, number, dict.fromkeys(tally.names, request), session=session)
        for name, answer in answers.items():
            try:
                tally.add_shares(name, answer.shares)
            except Refused as error:
                self._panel.drop(number, name, str(error))
        self._panel.require(number, len(tally.sharers), max(self._minimum, tally.threshold))
        self._save(tally.cohort.terms, tally.pack())

    def _save(self, terms: Terms, tally: bytes) -> None:
        holders = {name: key.hex() for name, key in terms.keys.items()}
        self._sessions.save_session(
            Session(run=self._panel.run, session=terms.session, holders=holders, tally=tally)
        )
