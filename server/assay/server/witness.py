"""What the coordinator has seen of each holder's ledger and audit log, and its signature of that."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from assay.privacy.errors import BadInput
from assay.privacy.heads import Heads, countersign
from assay.server.federation import Federation

__all__ = ["holder_summaries", "witness"]

WITNESS_FORMAT = "assay-witness-1"


def witness(federation: Federation, name: str) -> dict[str, Any]:
    """Return the signed statement of where a holder's ledger and log were last seen.

    A holder checks its directory against it: one that was put back whole, keys and all, cannot notice
    that by itself.

    Args:
        federation: the coordinator's open directory.
        name: of a member.

    Returns:
        A JSON object.

    Raises:
        BadInput: nobody of that name is admitted, or it has not answered yet.
    """
    members = {member.name: member for member in federation.roster.members()}
    seen = federation.registry.heads()
    if name not in members:
        raise BadInput(
            "name", value=name, allowed="a member of the roster", remedy="See: assay server status DIR"
        )
    key = members[name].identity_public
    if key not in seen:
        raise BadInput(
            "name", value=name, allowed="a holder that has answered in a run", remedy="Train first"
        )
    heads = Heads.parse(seen[key])
    return {
        "format": WITNESS_FORMAT,
        "federation": federation.id,
        "holder": name,
        "heads": heads.text,
        "signature": countersign(federation.identity, federation=federation.id, holder=name, heads=heads),
        "coordinator_public": federation.identity.public.hex(),
    }


def holder_summaries(federation: Federation, online: Collection[str]) -> list[dict[str, Any]]:
    """Return what people and machines are told about each member, in the order of admission.

    ``ledger_seq`` and ``log_size`` say how far its ledger and audit log had come when it last answered,
    None before that.
    """
    seen = {key: Heads.parse(text) for key, text in federation.registry.heads().items()}
    summaries = []
    for member in federation.roster.members():
        heads = seen.get(member.identity_public)
        summaries.append(
            {
                "name": member.name,
                "online": member.name in online,
                "fingerprint": member.fingerprint,
                "ledger_seq": heads.ledger_seq if heads else None,
                "log_size": heads.log_size if heads else None,
            }
        )
    return summaries
