"""Every message that crosses the boundary between a holder and the coordinator, and its bytes.

An auditor reads this module and ``assay.client.release`` and knows what can leave a site: a
:class:`Release` is the only type that carries numbers computed from records, and it carries integers
that already hold their noise. (That a holder declines with ``"data"`` also depends on its records.)

Frame (all integers big-endian, arrays little-endian)::

    bytes 0..5    magic "ASSAY1"
    bytes 6..9    length H of the header
    H bytes       header: canonical JSON {"array", "federation", "fields", "from", "kind", "to"}
    8*n bytes     the array, if the header names one ("<i8" or "<f8", n values)
    64 bytes      Ed25519 signature by the sender over all bytes before it, context "frame"
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from assay.privacy.errors import BadInput
from assay.privacy.keys import Identity, canonical_json, verify

__all__ = [
    "DECLINE_CODES",
    "MAX_FRAME_BYTES",
    "MAX_ROUNDS",
    "Accepted",
    "Close",
    "Closed",
    "CountsRequest",
    "Declined",
    "Frame",
    "GradientRequest",
    "Offer",
    "Release",
    "WireError",
    "open_frame",
    "seal",
]

MAGIC = b"ASSAY1"
MAX_FRAME_BYTES = 8 << 20
MAX_STUDY_BYTES = 1 << 19
# JSON escapes make at most three bytes of one: a study of the largest size still fits.
MAX_HEADER_BYTES = 1 << 21
MAX_ROUNDS = 1000
MAX_VALUES = 1 << 19
# A released integer stays below 2^53, so that float64 arithmetic on it is exact.
MAX_RELEASED = 1 << 53
_RUN = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
DECLINE_CODES = frozenset(
    {
        *(f"D0{number}" for number in range(1, 9)),  # refused purposes and inputs of every study
        *("purpose", "components", "epsilon", "delta", "trust", "model", "person", "later"),  # its policy
        *("budget", "closed", "changed", "unknown"),  # its ledger
        *("data", "invalid"),
    }
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class WireError(BadInput):
    """A frame that is not exactly what this module describes."""

    def __init__(self, setting: str, allowed: str) -> None:
        super().__init__(setting, allowed=allowed, where="message", remedy="It is refused, nothing was done")


def _need(ok: bool, setting: str, allowed: str) -> None:
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
        _need(isinstance(self.run, str) and _RUN.fullmatch(self.run) is not None, "run", "32 hex digits")
        self._check()

    def _check(self) -> None:
        """Refuse values outside their range; every decoded message passes here too."""


@dataclass(frozen=True, kw_only=True)
class Offer(_Message):
    """Coordinator to holder: a study to take part in. Nothing is spent by answering.

    Attributes:
        study: the text of the study file.
    """

    kind: ClassVar[str] = "offer"
    study: str

    def _check(self) -> None:
        # A lone surrogate is no text: it could not be written to a file later.
        size = len(self.study.encode("utf-8", errors="ignore")) if isinstance(self.study, str) else 0
        _need(0 < size <= MAX_STUDY_BYTES, "study", "1 byte to 512 KiB")
        _need(not _SURROGATE.search(self.study), "study", "text that UTF-8 can carry")


@dataclass(frozen=True, kw_only=True)
class Accepted(_Message):
    """Holder to coordinator: the policy allows the study and the budget is reserved."""

    kind: ClassVar[str] = "accepted"


@dataclass(frozen=True, kw_only=True)
class Declined(_Message):
    """Holder to coordinator: no.

    Attributes:
        code: a word of :data:`DECLINE_CODES`. ``"data"`` says that the holder's records cannot be used for
            the study or are too few: the one bit beside releases that depends on records.
    """

    kind: ClassVar[str] = "declined"
    code: str

    def _check(self) -> None:
        _need(
            isinstance(self.code, str) and self.code in DECLINE_CODES,
            "code",
            ", ".join(sorted(DECLINE_CODES)),
        )


@dataclass(frozen=True, kw_only=True)
class CountsRequest(_Message):
    """Coordinator to holder: release round 0, the noisy counts of the public cells."""

    kind: ClassVar[str] = "counts"


@dataclass(frozen=True, kw_only=True)
class GradientRequest(_Message):
    """Coordinator to holder: release one noisy clipped gradient sum at ``theta``.

    Attributes:
        round: 1..rounds.
        rounds: number of gradient rounds of the run, 1..1000; fixed for the run by its first round.
        theta: float64, the parameters of the public model, finite.
    """

    kind: ClassVar[str] = "gradient"
    array: ClassVar[tuple[str, str] | None] = ("theta", "<f8")
    round: int
    rounds: int
    theta: NDArray[np.float64]

    def _check(self) -> None:
        _need(_is_int(self.rounds) and 1 <= self.rounds <= MAX_ROUNDS, "rounds", f"1..{MAX_ROUNDS}")
        _need(_is_int(self.round) and 1 <= self.round <= self.rounds, "round", "1..rounds")
        _need(bool(np.isfinite(self.theta).all()), "theta", "finite numbers")


@dataclass(frozen=True, kw_only=True)
class Release(_Message):
    """Holder to coordinator: the only message that depends on records.

    Attributes:
        round: 0 for counts, 1.. for gradients.
        unit: what one integer stands for; public, equal at all holders.
        values: int64; the noisy clipped sum divided by ``unit`` and rounded.
    """

    kind: ClassVar[str] = "release"
    array: ClassVar[tuple[str, str] | None] = ("values", "<i8")
    round: int
    unit: float
    values: NDArray[np.int64]

    def _check(self) -> None:
        _need(_is_int(self.round) and 0 <= self.round <= MAX_ROUNDS, "round", f"0..{MAX_ROUNDS}")
        _need(isinstance(self.unit, float) and math.isfinite(self.unit) and self.unit > 0, "unit", "> 0")
        inside = (self.values > -MAX_RELEASED) & (self.values < MAX_RELEASED)
        _need(bool(inside.all()), "values", "integers between -2^53 and 2^53")


@dataclass(frozen=True, kw_only=True)
class Close(_Message):
    """Coordinator to holder: the run is over; what was reserved and not released is free again."""

    kind: ClassVar[str] = "close"
    outcome: str

    def _check(self) -> None:
        _need(self.outcome in ("done", "aborted"), "outcome", "done or aborted")


@dataclass(frozen=True, kw_only=True)
class Closed(_Message):
    """Holder to coordinator: the run is closed in the ledger; later rounds of it are refused."""

    kind: ClassVar[str] = "closed"


Message = Offer | Accepted | Declined | CountsRequest | GradientRequest | Release | Close | Closed
_KINDS: dict[str, type[_Message]] = {
    message.kind: message
    for message in (Offer, Accepted, Declined, CountsRequest, GradientRequest, Release, Close, Closed)
}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Who says it to whom, in which federation.

    Attributes:
        federation: 64 hexadecimal digits, the digest of the federation's signing key.
        sender: name of the holder, or ``"coordinator"``.
        receiver: likewise.
    """

    federation: str
    sender: str
    receiver: str

    def __post_init__(self) -> None:
        _need(_DIGEST.fullmatch(self.federation) is not None, "federation", "64 hex digits")


def seal(message: Message, frame: Frame, identity: Identity) -> bytes:
    """Return the signed bytes of ``message``.

    Raises:
        WireError: the frame or its header would be larger than a receiver reads.
    """
    plain = {f.name: getattr(message, f.name) for f in fields(message)}
    payload, array = b"", None
    if message.array is not None:
        name, dtype = message.array
        values = np.ascontiguousarray(plain.pop(name), dtype=dtype)
        payload, array = values.tobytes(), {"dtype": dtype, "length": int(values.size)}
    header = canonical_json(
        {
            "array": array,
            "federation": frame.federation,
            "fields": plain,
            "from": frame.sender,
            "kind": message.kind,
            "to": frame.receiver,
        }
    )
    _need(len(header) <= MAX_HEADER_BYTES, "header length", f"at most {MAX_HEADER_BYTES} bytes")
    signed = MAGIC + len(header).to_bytes(4, "big") + header + payload
    _need(len(signed) + 64 <= MAX_FRAME_BYTES, "message size", f"at most {MAX_FRAME_BYTES} bytes")
    return signed + identity.sign("frame", signed)


def open_frame(data: bytes, frame: Frame, public_key: bytes) -> Message:
    """Check and decode bytes made by :func:`seal`.

    Args:
        data: the whole frame.
        frame: the federation, sender and receiver it must name.
        public_key: Ed25519 key of that sender, 32 raw bytes.

    Raises:
        Tampered: the signature is not the sender's.
        WireError: anything else is not as described in this module.
    """
    _need(len(MAGIC) + 4 + 64 <= len(data) <= MAX_FRAME_BYTES, "message size", f"74..{MAX_FRAME_BYTES} bytes")
    signed, signature = data[:-64], data[-64:]
    verify(public_key, "frame", signed, signature, what=f"message from {frame.sender}")
    _need(signed[:6] == MAGIC, "magic", "ASSAY1")
    length = int.from_bytes(signed[6:10], "big")
    _need(length <= min(MAX_HEADER_BYTES, len(signed) - 10), "header length", "inside the message")
    header = _parse_header(signed[10 : 10 + length])
    for key, wanted in (("federation", frame.federation), ("from", frame.sender), ("to", frame.receiver)):
        _need(header[key] == wanted, key, "the federation, sender and receiver of this exchange")
    return _build(header, signed[10 + length :])


def _parse_header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
        # One message has one encoding: no repeated keys, spaces, NaN or other spellings of a number.
        canonical = canonical_json(header) == raw
    except (ValueError, RecursionError):
        raise WireError("header", "JSON") from None
    _need(canonical, "header", "canonical JSON")
    wanted = {"array", "federation", "fields", "from", "kind", "to"}
    _need(isinstance(header, dict) and set(header) == wanted, "header", f"the keys {sorted(wanted)}")
    _need(isinstance(header["fields"], dict), "fields", "an object")
    return header  # type: ignore[no-any-return]


def _build(header: dict[str, Any], payload: bytes) -> Message:
    kind = _KINDS.get(header["kind"]) if isinstance(header["kind"], str) else None
    if kind is None:
        raise WireError("kind", ", ".join(_KINDS))
    values = dict(header["fields"])
    if kind.array is None:
        _need(header["array"] is None and not payload, "array", f"none in {kind.kind}")
    else:
        name, dtype = kind.array
        _need(name not in values, "fields", "each field once")
        values[name] = _read_array(header["array"], payload, dtype)
    wanted = {f.name for f in fields(kind)}
    _need(set(values) == wanted, "fields", f"{sorted(wanted)}")
    return kind(**values)  # type: ignore[return-value]


def _read_array(described: Any, payload: bytes, dtype: str) -> NDArray[Any]:
    _need(isinstance(described, dict) and set(described) == {"dtype", "length"}, "array", "dtype and length")
    length = described["length"]
    _need(described["dtype"] == dtype, "array dtype", dtype)
    _need(_is_int(length) and 0 < length <= MAX_VALUES, "array length", f"1..{MAX_VALUES}")
    _need(len(payload) == 8 * length, "array bytes", "8 per value")
    return np.frombuffer(payload, dtype=dtype)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
