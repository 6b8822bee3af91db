"""One line of the audit log: what a leaf may hold, how it is signed, and its only spelling.

A line is canonical JSON and a line end::

    {"leaf":{"data":{...},"index":7,"kind":"open","time":1767225600.0},"root":"HEX","signature":"HEX"}

The leaf's canonical JSON is what the tree hashes; the signature covers {"root", "size"} in the context
"audit-checkpoint", where the size is the number of leaves up to and with this one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from assay.privacy.errors import BadInput, Tampered
from assay.privacy.keys import Identity, canonical_json, verify
from assay.privacy.ledger import Landmark
from assay.privacy.merkle import MerkleTree

__all__ = ["FIELDS", "OPTIONAL", "Entry", "decode", "encode", "is_whole"]

_ROW = frozenset({"ledger_seq", "round", "row_sha256", "run"})
FIELDS: dict[str, frozenset[str]] = {
    "start": frozenset({"version"}),
    "stop": frozenset(),
    "policy": frozenset({"sha256"}),
    "accepted": frozenset({"run", "study"}),
    "declined": frozenset({"code", "run"}),
    "session": frozenset({"holders", "run", "session"}),
    "release": _ROW,
    "open": _ROW,
    "closed": frozenset({"ledger_seq", "outcome", "row_sha256", "run"}),
    "countersigned": frozenset({"heads", "signature"}),
    "refused": frozenset({"code", "question", "run"}),
    "points": frozenset({"bundle", "components", "purpose", "statement"}),
    "points_refused": frozenset({"code"}),
}
"""What a leaf of each kind holds: text of at most 512 printable ASCII characters, or a whole number."""

OPTIONAL = {kind: frozenset({"article"}) for kind in ("declined", "refused", "points_refused")}
"""What a leaf may hold besides: the rule of the policy pack that a refusal rests on."""

_NUMBERS = frozenset({"ledger_seq", "round", "session"})
_TEXT = re.compile(r"[ -~]{0,512}")
_CONTEXT = "audit-checkpoint"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One leaf.

    Attributes:
        index: its place, from 1.
        time: seconds since 1970, as the holder's clock had it; never earlier than the entry before.
        kind: a key of :data:`FIELDS`.
        data: its fields, and of :data:`OPTIONAL` those that apply.

    Raises:
        BadInput: a field is not as described.
    """

    index: int
    time: float
    kind: str
    data: dict[str, str | int]

    def __post_init__(self) -> None:
        if self.kind not in FIELDS or not self._fits():
            allowed = ", ".join(f"{kind}({', '.join(sorted(names))})" for kind, names in FIELDS.items())
            raise BadInput("audit entry", value=self.kind, allowed=allowed)
        for name, value in self.data.items():
            if name in _NUMBERS:
                allowed = "a whole number of at least 0, below 2^53"
                fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
            else:
                allowed = "at most 512 printable ASCII characters"
                fits = isinstance(value, str) and _TEXT.fullmatch(value) is not None
            if not fits:
                raise BadInput(f"audit entry {self.kind}.{name}", allowed=allowed)

    def _fits(self) -> bool:
        return FIELDS[self.kind] == self.data.keys() - OPTIONAL.get(self.kind, frozenset())

    @property
    def leaf(self) -> bytes:
        """What the tree hashes."""
        return canonical_json(vars(self))

    @property
    def landmark(self) -> Landmark | None:
        """The ledger row it stands for; None where it stands for none."""
        data: dict[str, Any] = self.data
        if "ledger_seq" not in data:
            return None
        return Landmark(
            seq=data["ledger_seq"],
            kind="close" if self.kind == "closed" else self.kind,
            run=data["run"],
            round=data.get("round"),
            row_sha256=data["row_sha256"],
            outcome=data.get("outcome"),
        )


def encode(entry: Entry, tree: MerkleTree, identity: Identity) -> bytes:
    """Return the line of ``entry``, the last leaf of ``tree``, signed by ``identity``."""
    signature = identity.sign(_CONTEXT, _checkpoint(tree.size, tree.root))
    return _spell(entry, tree.root, signature)


def decode(line: bytes, tree: MerkleTree, public_key: bytes, *, what: str) -> Entry:
    """Check the line behind the leaves of ``tree`` and return its entry; ``tree`` then has its leaf too.

    Args:
        line: with its line end.
        tree: grows; it is of no more use once an error was raised.
        public_key: the holder's identity, 32 bytes.
        what: words for the message, e.g. ``"audit.log: entry 7"``.

    Raises:
        Tampered: it is not the line that :func:`encode` gave in this place.
    """
    entry, root, signature = _parse(line, what)
    if entry.index != tree.size + 1:
        raise Tampered(f"{what} is missing; entry {entry.index} stands in its place")
    tree.append(entry.leaf)
    if tree.root != root:
        raise Tampered(f"{what}: the root it names is not that of the entries up to it")
    verify(public_key, _CONTEXT, _checkpoint(tree.size, root), signature, what=what)
    return entry


def is_whole(text: bytes) -> bool:
    """Say whether ``text`` is all of a line but its line end: no part of a line is valid JSON."""
    try:
        json.loads(text)
    except (RecursionError, ValueError):
        return False
    return True


def _parse(line: bytes, what: str) -> tuple[Entry, str, bytes]:
    """Return entry, root and signature of a line; no other line spells the same three."""
    try:
        record = json.loads(line)
        entry, root, signature = Entry(**record["leaf"]), record["root"], bytes.fromhex(record["signature"])
        if isinstance(entry.time, float) and _spell(entry, root, signature) == line:
            return entry, root, signature
    except (AttributeError, BadInput, KeyError, RecursionError, TypeError, ValueError):
        pass  # the same words, whatever is wrong
    raise Tampered(f"{what} is not a line of an audit log")


def _spell(entry: Entry, root: str, signature: bytes) -> bytes:
    record = {"leaf": vars(entry), "root": root, "signature": signature.hex()}
    return canonical_json(record) + b"\n"


def _checkpoint(size: int, root: str) -> bytes:
    """Return the bytes a line's signature covers."""
    return canonical_json({"root": root, "size": size})
