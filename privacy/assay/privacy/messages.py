"""Every message that crosses the boundary between a holder and the coordinator; ``wire`` has their bytes.

An auditor reads this module and ``assay.client.release`` and knows what can leave a site: a
:class:`Release` and a :class:`Masked` are the only types that carry numbers computed from records. Both
carry integers that already hold noise: a release the holder's full noise, for everybody to see; a masked
one its share of the sum's noise, under masks that only fall away from the sum of all holders. (That a
holder declines with ``"data"`` also depends on its records.)

===================  ================================================================================
every run            Offer -> Accepted or Declined; Close -> Closed
local trust          CountsRequest, then GradientRequest in every round -> Release
distributed trust    in every session KeysRequest -> Keys, SharesRequest -> Shares;
                     in every round MaskRequest -> Masked, OpenRequest -> Opened,
                     and between them, where a holder is missing, SurvivorsRequest -> Consent
===================  ================================================================================
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from assay.privacy.accounting import TALLIES
from assay.privacy.cohort import MAX_HOLDERS
from assay.privacy.errors import BadInput
from assay.privacy.heads import Heads
from assay.privacy.keys import SIGNATURE_BYTES
from assay.privacy.names import check_holder_name

__all__ = [
    "DECLINE_CODES",
    "MAX_ROUNDS",
    "MESSAGES",
    "MODEL_VERSION",
    "Accepted",
    "Close",
    "Closed",
    "Consent",
    "CountsRequest",
    "Declined",
    "GradientRequest",
    "Keys",
    "KeysRequest",
    "MaskRequest",
    "Masked",
    "Message",
    "Offer",
    "OpenRequest",
    "Opened",
    "Release",
    "Shares",
    "SharesRequest",
    "SurvivorsRequest",
    "WireError",
    "is_whole",
    "need",
]

MAX_STUDY_BYTES = 1 << 19
MAX_ROUNDS = 1000
MAX_SESSION = 1000
MODEL_VERSION = 2
"""Changes with what is summed: the layout of cells, patterns and tallies, their rounds and their noise."""
# Rounds of two tallies follow those of the gradients.
_LAST_ROUND = MAX_ROUNDS + TALLIES
# A released integer stays below 2^53, so that float64 arithmetic on it is exact.
MAX_RELEASED = 1 << 53
_RUN = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
DECLINE_CODES = frozenset(
    {
        *(f"D0{number}" for number in range(1, 9)),  # refused purposes and inputs of every study
        *("purpose", "components", "epsilon", "delta", "trust", "model", "person", "later"),  # its policy
        "version",  # of what is summed
        *("budget", "closed", "changed", "unknown", "ledger"),  # its ledger
        *("holders", "aggregation"),  # the other holders of the run, and what they sent
        *("data", "invalid"),
    }
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class WireError(BadInput):
    """A frame that is not exactly what this module describes."""

    def __init__(self, setting: str, allowed: str) -> None:
        super().__init__(setting, allowed=allowed, where="message", remedy="It is refused, nothing was done")


def need(ok: bool, setting: str, allowed: str) -> None:
    """Refuse a message unless ``ok``.

    Raises:
        WireError: names the field and what is allowed.
    """
    if not ok:
        raise WireError(setting, allowed)


@dataclass(frozen=True, kw_only=True)
class _Message:
    """Fields shared by all messages.

    Attributes:
        run: 32 lower-case hexadecimal digits naming one training of a study.
    """

    kind: ClassVar[str]
    array: ClassVar[tuple[str, str] | None] = None  # (field, dtype)
    run: str

    def __post_init__(self) -> None:
        need(isinstance(self.run, str) and _RUN.fullmatch(self.run) is not None, "run", "32 hex digits")
        self._check()

    def _check(self) -> None:
        """Refuse values outside their range; every decoded message passes here too."""


@dataclass(frozen=True, kw_only=True)
class _Session(_Message):
    """Fields shared by the messages of secure aggregation.

    Attributes:
        session: which set-up of the run, from 0; see :mod:`assay.privacy.secagg`.
    """

    session: int

    def _check(self) -> None:
        need(is_whole(self.session) and 0 <= self.session <= MAX_SESSION, "session", f"0..{MAX_SESSION}")


@dataclass(frozen=True, kw_only=True)
class _Round(_Session):
    """Fields shared by the messages of one round of secure aggregation.

    Attributes:
        round: 0 for counts, 1.. for gradients and tallies.
    """

    round: int

    def _check(self) -> None:
        super()._check()
        need(is_whole(self.round) and 0 <= self.round <= _LAST_ROUND, "round", f"0..{_LAST_ROUND}")


@dataclass(frozen=True, kw_only=True)
class Offer(_Message):
    """Coordinator to holder: a study to take part in. Nothing is spent by answering.

    Attributes:
        study: the text of the study file.
        version: the coordinator's :data:`MODEL_VERSION`; a holder with another one declines at once.
        heads: where the coordinator last saw this holder's ledger and log, as ``Heads.text``; empty: never.
        countersignature: its signature of these heads, 128 hexadecimal digits; empty where they are.
    """

    kind: ClassVar[str] = "offer"
    study: str
    version: int = MODEL_VERSION
    heads: str = ""
    countersignature: str = ""

    def _check(self) -> None:
        # A lone surrogate is no text: it could not be written to a file later.
        size = len(self.study.encode("utf-8", errors="ignore")) if isinstance(self.study, str) else 0
        need(0 < size <= MAX_STUDY_BYTES, "study", "1 byte to 512 KiB")
        need(not _SURROGATE.search(self.study), "study", "text that UTF-8 can carry")
        need(is_whole(self.version) and 0 <= self.version < 1 << 31, "version", "a whole number")
        _check_countersigned(self.heads, self.countersignature)


@dataclass(frozen=True, kw_only=True)
class Accepted(_Message):
    """Holder to coordinator: the policy allows the study and the budget is reserved.

    Attributes:
        pattern: which of the study's components the holder has, as bits in the order of
            ``assay.models.schema.COMPONENTS``, the study's first one lowest; it depends on columns, not on
            records.
        heads: where the holder's ledger and log stand now.
    """

    kind: ClassVar[str] = "accepted"
    pattern: int
    heads: str = ""

    def _check(self) -> None:
        need(is_whole(self.pattern) and 1 <= self.pattern <= 31, "pattern", "1..31")
        _check_heads(self.heads)


@dataclass(frozen=True, kw_only=True)
class Declined(_Message):
    """Holder to coordinator: no.

    Attributes:
        code: a word of :data:`DECLINE_CODES`. ``"data"`` says that the holder's records cannot be used for
            the study or are too few: with :class:`Accepted`, which says the opposite, the one bit beside
            releases that depends on records.
    """

    kind: ClassVar[str] = "declined"
    code: str

    def _check(self) -> None:
        need(
            isinstance(self.code, str) and self.code in DECLINE_CODES,
            "code",
            ", ".join(sorted(DECLINE_CODES)),
        )


@dataclass(frozen=True, kw_only=True)
class CountsRequest(_Message):
    """Coordinator to holder, local trust: release round 0, the noisy counts of the public cells.

    Attributes:
        heads: as in :class:`Offer`.
    """

    kind: ClassVar[str] = "counts"
    heads: str = ""

    def _check(self) -> None:
        _check_heads(self.heads)


@dataclass(frozen=True, kw_only=True)
class GradientRequest(_Message):
    """Coordinator to holder, local trust: release one noisy clipped sum at ``theta``.

    Attributes:
        round: 1..rounds for gradients, rounds + 1 for calibration, rounds + 2 for the audit.
        rounds: number of gradient rounds of the run, 1..1000; fixed for the run by its first round.
        theta: float64, the parameters of the public model, finite.
        heads: as in :class:`Offer`.
    """

    kind: ClassVar[str] = "gradient"
    array: ClassVar[tuple[str, str] | None] = ("theta", "<f8")
    round: int
    rounds: int
    theta: NDArray[np.float64]
    heads: str = ""

    def _check(self) -> None:
        need(is_whole(self.rounds) and 1 <= self.rounds <= MAX_ROUNDS, "rounds", f"1..{MAX_ROUNDS}")
        need(is_whole(self.round) and 1 <= self.round <= self.rounds + TALLIES, "round", "1..rounds + 2")
        need(bool(np.isfinite(self.theta).all()), "theta", "finite numbers")
        _check_heads(self.heads)


@dataclass(frozen=True, kw_only=True)
class Release(_Message):
    """Holder to coordinator, local trust: a sum that holds the holder's full noise.

    Attributes:
        round: 0 for counts, 1.. for gradients and tallies.
        unit: what one integer stands for; public, equal at all holders.
        values: int64; the clipped sum in units, rounded, plus discrete Gaussian noise.
        heads: as in :class:`Accepted`.
    """

    kind: ClassVar[str] = "release"
    array: ClassVar[tuple[str, str] | None] = ("values", "<i8")
    round: int
    unit: float
    values: NDArray[np.int64]
    heads: str = ""

    def _check(self) -> None:
        need(is_whole(self.round) and 0 <= self.round <= _LAST_ROUND, "round", f"0..{_LAST_ROUND}")
        _check_unit(self.unit)
        inside = (self.values > -MAX_RELEASED) & (self.values < MAX_RELEASED)
        need(bool(inside.all()), "values", "integers between -2^53 and 2^53")
        _check_heads(self.heads)


@dataclass(frozen=True, kw_only=True)
class KeysRequest(_Session):
    """Coordinator to holder: begin a session of secure aggregation with these holders.

    Attributes:
        holders: Ed25519 key of every holder that is asked, this one too: 64 hexadecimal digits by name.
    """

    kind: ClassVar[str] = "keys-request"
    holders: dict[str, str]

    def _check(self) -> None:
        super()._check()
        need(isinstance(self.holders, dict), "holders", "keys by name")
        _check_names("holders", sorted(self.holders))
        good = (isinstance(key, str) and _DIGEST.fullmatch(key) is not None for key in self.holders.values())
        need(all(good), "holders", "keys of 64 hex digits")


@dataclass(frozen=True, kw_only=True)
class Keys(_Session):
    """Holder to coordinator: its signed public keys for the session.

    Attributes:
        advert: see :meth:`assay.privacy.secagg.Member.advert`.
    """

    kind: ClassVar[str] = "keys"
    array: ClassVar[tuple[str, str] | None] = ("advert", "|u1")
    advert: bytes


@dataclass(frozen=True, kw_only=True)
class SharesRequest(_Session):
    """Coordinator to holder: everybody's public keys; make the shares.

    Attributes:
        names: the holders whose keys arrived, sorted.
        adverts: their adverts in that order, end to end.
    """

    kind: ClassVar[str] = "shares-request"
    array: ClassVar[tuple[str, str] | None] = ("adverts", "|u1")
    names: list[str]
    adverts: bytes

    def _check(self) -> None:
        super()._check()
        _check_names("names", self.names)
        need(len(self.adverts) % len(self.names) == 0, "adverts", "as many bytes for each name")


@dataclass(frozen=True, kw_only=True)
class Shares(_Session):
    """Holder to coordinator: its shares for the others, each readable by one of them only.

    Attributes:
        shares: see :meth:`assay.privacy.secagg.Member.shares`.
    """

    kind: ClassVar[str] = "shares"
    array: ClassVar[tuple[str, str] | None] = ("shares", "|u1")
    shares: bytes


@dataclass(frozen=True, kw_only=True)
class MaskRequest(_Round):
    """Coordinator to holder, distributed trust: one round's sum under masks.

    Attributes:
        rounds: number of gradient rounds of the run, 1..1000; 0 while ``round`` is 0, when it is not known.
        active: the holders that are asked, sorted; the masks fall away from the sum of these.
        theta: float64, the parameters of the public model, finite; one 0.0 in round 0.
        heads: as in :class:`Offer`.
    """

    kind: ClassVar[str] = "mask"
    array: ClassVar[tuple[str, str] | None] = ("theta", "<f8")
    rounds: int
    active: list[str]
    theta: NDArray[np.float64]
    heads: str = ""

    def _check(self) -> None:
        super()._check()
        _check_rounds(self.round, self.rounds)
        need(bool(np.isfinite(self.theta).all()), "theta", "finite numbers")
        need(self.round > 0 or self.theta.tolist() == [0.0], "theta", "one 0.0 in round 0")
        _check_names("active", self.active)
        _check_heads(self.heads)


@dataclass(frozen=True, kw_only=True)
class Masked(_Round):
    """Holder to coordinator, distributed trust: a sum with a share of noise, under masks.

    Attributes:
        unit: what one integer of the unmasked sum stands for; public, equal at all holders.
        sent: the holder's signature that it has sent this round, 128 hexadecimal digits.
        values: uint64, modulo 2^64.
        heads: as in :class:`Accepted`.
    """

    kind: ClassVar[str] = "masked"
    array: ClassVar[tuple[str, str] | None] = ("values", "<u8")
    unit: float
    sent: str
    values: NDArray[np.uint64]
    heads: str = ""

    def _check(self) -> None:
        super()._check()
        _check_unit(self.unit)
        _check_signature("sent", self.sent)
        _check_heads(self.heads)


@dataclass(frozen=True, kw_only=True)
class _Survivors(_Round):
    """Fields shared by the two messages about a round whose masked sums have arrived.

    The first three repeat what was asked for, so that a holder need not keep it: it works out the round's
    context from them and compares that with the one in its ledger.

    Attributes:
        rounds: as in :class:`MaskRequest`.
        active: likewise.
        theta_sha256: SHA-256 of the bytes of ``theta`` in that message, 64 hexadecimal digits.
        survivors: those of ``active`` whose sums have arrived, sorted.
    """

    rounds: int
    active: list[str]
    theta_sha256: str
    survivors: list[str]

    def _check(self) -> None:
        super()._check()
        _check_rounds(self.round, self.rounds)
        _check_names("active", self.active)
        good = isinstance(self.theta_sha256, str) and _DIGEST.fullmatch(self.theta_sha256) is not None
        need(good, "theta_sha256", "64 hex digits")
        _check_names("survivors", self.survivors)
        need(set(self.survivors) <= set(self.active), "survivors", "some or all of the active holders")


@dataclass(frozen=True, kw_only=True)
class SurvivorsRequest(_Survivors):
    """Coordinator to holder: somebody is missing; sign the list of those whose sums have arrived."""

    kind: ClassVar[str] = "survivors"


@dataclass(frozen=True, kw_only=True)
class Consent(_Round):
    """Holder to coordinator: this and no other list of survivors may be opened in this round.

    Attributes:
        signature: 128 hexadecimal digits.
    """

    kind: ClassVar[str] = "consent"
    signature: str

    def _check(self) -> None:
        super()._check()
        _check_signature("signature", self.signature)


@dataclass(frozen=True, kw_only=True)
class OpenRequest(_Survivors):
    """Coordinator to holder: give the shares that take the masks off the survivors' sum.

    Attributes:
        signers: holders whose proofs are in ``blob``, sorted.
        blob: a signature of each signer, 64 bytes, then this round's encrypted shares from each of the
            other active holders, both in the order of names.
    """

    kind: ClassVar[str] = "open"
    array: ClassVar[tuple[str, str] | None] = ("blob", "|u1")
    signers: list[str]
    blob: bytes

    def _check(self) -> None:
        super()._check()
        _check_names("signers", self.signers)
        need(len(self.blob) >= SIGNATURE_BYTES * len(self.signers), "blob", "a proof of each signer")


@dataclass(frozen=True, kw_only=True)
class Opened(_Round):
    """Holder to coordinator: one share for each active holder, of one kind or the other.

    Attributes:
        shares: see :meth:`assay.privacy.secagg.Member.open`.
    """

    kind: ClassVar[str] = "opened"
    array: ClassVar[tuple[str, str] | None] = ("shares", "|u1")
    shares: bytes


@dataclass(frozen=True, kw_only=True)
class Close(_Message):
    """Coordinator to holder: the run is over; what was reserved and not released is free again.

    Attributes:
        outcome: ``"done"`` or ``"aborted"``.
        heads: as in :class:`Offer`.
        countersignature: likewise.
    """

    kind: ClassVar[str] = "close"
    outcome: str
    heads: str = ""
    countersignature: str = ""

    def _check(self) -> None:
        need(self.outcome in ("done", "aborted"), "outcome", "done or aborted")
        _check_countersigned(self.heads, self.countersignature)


@dataclass(frozen=True, kw_only=True)
class Closed(_Message):
    """Holder to coordinator: the run is closed in the ledger; later rounds of it are refused.

    Attributes:
        heads: as in :class:`Accepted`.
    """

    kind: ClassVar[str] = "closed"
    heads: str = ""

    def _check(self) -> None:
        _check_heads(self.heads)


MESSAGES: tuple[type[_Message], ...] = (
    *(Offer, Accepted, Declined, Close, Closed),
    *(CountsRequest, GradientRequest, Release),
    *(KeysRequest, Keys, SharesRequest, Shares),
    *(MaskRequest, Masked, SurvivorsRequest, Consent, OpenRequest, Opened),
)
Message = (
    Offer | Accepted | Declined | Close | Closed | CountsRequest | GradientRequest | Release
    | KeysRequest | Keys | SharesRequest | Shares
    | MaskRequest | Masked | SurvivorsRequest | Consent | OpenRequest | Opened
)  # fmt: skip


def _check_rounds(number: int, rounds: object) -> None:
    """Refuse a number of rounds that does not go with the number of the round: it is 0 while that is."""
    need(is_whole(rounds) and 0 <= rounds <= MAX_ROUNDS, "rounds", f"0..{MAX_ROUNDS}")  # type: ignore[operator]
    after = rounds + TALLIES  # type: ignore[operator]
    need(number <= after and (number == 0) == (rounds == 0), "round", "0, or 1..rounds + 2")


def _check_unit(unit: object) -> None:
    need(isinstance(unit, float) and math.isfinite(unit) and unit > 0, "unit", "> 0")


def _check_heads(heads: object) -> None:
    allowed = "empty, or number:64 hex digits:number:64 hex digits"
    if not isinstance(heads, str):
        raise WireError("heads", allowed)
    if heads:
        try:
            Heads.parse(heads)
        except BadInput:
            raise WireError("heads", allowed) from None


def _check_signature(field: str, signature: object) -> None:
    need(isinstance(signature, str) and _SIGNATURE.fullmatch(signature) is not None, field, "128 hex digits")


def _check_countersigned(heads: object, countersignature: object) -> None:
    _check_heads(heads)
    if heads:
        _check_signature("countersignature", countersignature)
    else:
        need(countersignature == "", "countersignature", "empty without heads")


def _check_names(field: str, names: object) -> None:
    """Refuse what is not a list of different holder names in their one order."""
    allowed = f"1 to {MAX_HOLDERS} names of holders, sorted, each once"
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_HOLDERS:
        raise WireError(field, allowed)
    try:
        for name in names:
            check_holder_name(name, where="message")
    except BadInput:
        raise WireError(field, allowed) from None
    need(all(a < b for a, b in itertools.pairwise(names)), field, allowed)


def is_whole(value: object) -> bool:
    """Return whether JSON gave a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)
