"""The signed list of admitted holders.

The coordinator's key signs every line, and once more the whole list, so that a line can neither be
changed nor left out nor brought back by someone who can write the database but not sign.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from assay.privacy.enrolment import Request
from assay.privacy.errors import BadInput, Refused
from assay.privacy.keys import Identity, canonical_json, verify
from assay.privacy.transport import load_certificate
from assay.server.records import Member
from assay.server.registry import Registry

__all__ = ["Roster"]


class Roster:
    """The members of one federation."""

    def __init__(
        self, registry: Registry, identity: Identity, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._registry, self._identity, self._clock = registry, identity, clock

    def everyone(self) -> tuple[Member, ...]:
        """Return every line in the order of admission, the revoked ones too.

        Raises:
            Tampered: a line or the list as a whole is not what the coordinator signed.
        """
        members, head = self._registry.roster()
        for member in members:
            verify(
                self._identity.public,
                "roster",
                _body(member),
                member.signature,
                what=f"roster line {member.seq}",
            )
        if members or head is not None:
            verify(self._identity.public, "roster-head", _digest(members), head or b"", what="roster")
        return members

    def members(self) -> tuple[Member, ...]:
        """Return those who may take part, in the order of admission.

        Raises:
            Tampered: as :meth:`everyone`.
        """
        return tuple(member for member in self.everyone() if member.revoked_at is None)

    def admit(self, request: Request, certify: Callable[[], str], keep: Callable[[str], bool]) -> Member:
        """Write the holder of a verified request into the list; the same request again changes nothing.

        Args:
            request: what the holder sent.
            certify: makes its client certificate, PEM.
            keep: whether a certificate given earlier need not be renewed yet.

        Raises:
            BadInput: the name belongs to another key, or the key to another name.
            Refused: the key was revoked.
            Tampered: as :meth:`everyone`.
        """
        with self._registry.writing():
            everyone = self.everyone()
            known = _known(everyone, request)
            if known is not None and keep(known.certificate_pem):
                return known
            certificate_pem = certify()
            member = Member(
                seq=known.seq if known else len(everyone) + 1,
                name=request.name,
                identity_public=request.identity_public.hex(),
                transport_public=request.transport_public,
                certificate_pem=certificate_pem,
                serial=_serial(certificate_pem),
                fingerprint=request.fingerprint,
                admitted_at=known.admitted_at if known else int(self._clock()),
                revoked_at=None,
                signature=b"",
            )
            return self._put(everyone, member)

    def revoke(self, name: str) -> Member:
        """End a holder's membership for good: its keys are never admitted again.

        Raises:
            BadInput: no member has that name.
            Tampered: as :meth:`everyone`.
        """
        with self._registry.writing():
            everyone = self.everyone()
            for member in everyone:
                if member.name == name and member.revoked_at is None:
                    return self._put(everyone, replace(member, revoked_at=int(self._clock())))
        raise BadInput(
            "name", value=name, allowed="a member of the roster", remedy="See: assay server status DIR"
        )

    def _put(self, everyone: tuple[Member, ...], changed: Member) -> Member:
        signed = replace(changed, signature=self._identity.sign("roster", _body(changed)))
        others = [member for member in everyone if member.seq != signed.seq]
        members = tuple(sorted([*others, signed], key=lambda member: member.seq))
        self._registry.put_member(signed, self._identity.sign("roster-head", _digest(members)))
        return signed


def _known(everyone: tuple[Member, ...], request: Request) -> Member | None:
    """Return the member this request made before; refuse one that shares only a name or only a key."""
    identity, transport = request.identity_public.hex(), request.transport_public
    for member in everyone:
        same = (member.name, member.identity_public, member.transport_public) == (
            request.name,
            identity,
            transport,
        )
        if identity == member.identity_public or transport == member.transport_public:
            if member.revoked_at is not None:
                raise Refused(
                    f"{request.where}: the keys of {member.name} were revoked; allowed: keys never revoked. "
                    "The holder runs assay client init in a new directory",
                    code="revoked",
                )
            if not same:
                raise BadInput(
                    "key",
                    where=request.where,
                    allowed=f"one that no other member has; {member.name} has it",
                    remedy="Each holder runs assay client init itself; keys are never copied",
                )
        elif member.name == request.name and member.revoked_at is None:
            raise BadInput(
                "name",
                value=request.name,
                where=request.where,
                allowed="a name that no other key has",
                remedy=f"Choose another name, or first run: assay server revoke DIR {request.name}",
            )
        if same:
            return member
    return None


def _body(member: Member) -> bytes:
    fields: dict[str, Any] = {key: value for key, value in vars(member).items() if key != "signature"}
    return canonical_json(fields)


def _digest(members: tuple[Member, ...]) -> bytes:
    return hashlib.sha256(b"".join(member.signature for member in members)).digest()


def _serial(certificate_pem: str) -> str:
    return f"{load_certificate(certificate_pem, setting='certificate', where='roster').serial_number:x}"
