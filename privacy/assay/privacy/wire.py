"""The bytes of the messages between a holder and the coordinator.

Frame (all integers big-endian, arrays little-endian)::

    bytes 0..5    magic "ASSAY2"
    bytes 6..9    length H of the header
    H bytes       header: canonical JSON {"array", "federation", "fields", "from", "kind", "to"}
    k*n bytes     the array, if the header names one: n values of "<i8", "<u8" or "<f8" (k = 8) or
                  n bytes "|u1" (k = 1)
    64 bytes      Ed25519 signature by the sender over all bytes before it, context "frame"
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.privacy.keys import SIGNATURE_BYTES, Identity, canonical_json, verify
from assay.privacy.messages import MESSAGES, Message, WireError, is_whole, need

__all__ = ["MAX_FRAME_BYTES", "Frame", "open_frame", "seal"]

MAGIC = b"ASSAY2"
MAX_FRAME_BYTES = 8 << 20
# JSON escapes make at most three bytes of one: a study of the largest size still fits.
MAX_HEADER_BYTES = 1 << 21
MAX_VALUES = 1 << 19
MAX_BLOB = 7 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KINDS = {message.kind: message for message in MESSAGES}


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
        need(_DIGEST.fullmatch(self.federation) is not None, "federation", "64 hex digits")


def seal(message: Message, frame: Frame, identity: Identity) -> bytes:
    """Return the signed bytes of ``message``.

    Raises:
        WireError: the frame or its header would be larger than a receiver reads.
    """
    plain = {f.name: getattr(message, f.name) for f in fields(message)}
    payload, array = b"", None
    if message.array is not None:
        name, dtype = message.array
        value = plain.pop(name)
        payload = value if isinstance(value, bytes) else np.ascontiguousarray(value, dtype=dtype).tobytes()
        array = {"dtype": dtype, "length": len(payload) // _width(dtype)}
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
    need(len(header) <= MAX_HEADER_BYTES, "header length", f"at most {MAX_HEADER_BYTES} bytes")
    signed = MAGIC + len(header).to_bytes(4, "big") + header + payload
    need(len(signed) + SIGNATURE_BYTES <= MAX_FRAME_BYTES, "message size", f"at most {MAX_FRAME_BYTES} bytes")
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
    need(
        len(MAGIC) + 4 + SIGNATURE_BYTES <= len(data) <= MAX_FRAME_BYTES,
        "message size",
        f"74..{MAX_FRAME_BYTES} bytes",
    )
    signed, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    verify(public_key, "frame", signed, signature, what=f"message from {frame.sender}")
    need(signed[:6] == MAGIC, "magic", "ASSAY2")
    length = int.from_bytes(signed[6:10], "big")
    need(length <= min(MAX_HEADER_BYTES, len(signed) - 10), "header length", "inside the message")
    header = _parse_header(signed[10 : 10 + length])
    for key, wanted in (("federation", frame.federation), ("from", frame.sender), ("to", frame.receiver)):
        need(header[key] == wanted, key, "the federation, sender and receiver of this exchange")
    return _build(header, signed[10 + length :])


def _parse_header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
        # One message has one encoding: no repeated keys, spaces, NaN or other spellings of a number.
        canonical = canonical_json(header) == raw
    except (ValueError, RecursionError):
        raise WireError("header", "JSON") from None
    need(canonical, "header", "canonical JSON")
    wanted = {"array", "federation", "fields", "from", "kind", "to"}
    need(isinstance(header, dict) and set(header) == wanted, "header", f"the keys {sorted(wanted)}")
    need(isinstance(header["fields"], dict), "fields", "an object")
    return header  # type: ignore[no-any-return]


def _build(header: dict[str, Any], payload: bytes) -> Message:
    kind = _KINDS.get(header["kind"]) if isinstance(header["kind"], str) else None
    if kind is None:
        raise WireError("kind", ", ".join(_KINDS))
    values = dict(header["fields"])
    if kind.array is None:
        need(header["array"] is None and not payload, "array", f"none in {kind.kind}")
    else:
        name, dtype = kind.array
        need(name not in values, "fields", "each field once")
        values[name] = _read_array(header["array"], payload, dtype)
    wanted = {f.name for f in fields(kind)}
    need(set(values) == wanted, "fields", f"{sorted(wanted)}")
    return kind(**values)  # type: ignore[return-value]


def _read_array(described: Any, payload: bytes, dtype: str) -> NDArray[Any] | bytes:
    need(isinstance(described, dict) and set(described) == {"dtype", "length"}, "array", "dtype and length")
    length, width = described["length"], _width(dtype)
    most = MAX_BLOB if width == 1 else MAX_VALUES
    need(described["dtype"] == dtype, "array dtype", dtype)
    need(is_whole(length) and 0 < length <= most, "array length", f"1..{most}")
    need(len(payload) == width * length, "array bytes", f"{width} per value")
    return payload if width == 1 else np.frombuffer(payload, dtype=dtype)


def _width(dtype: str) -> int:
    return int(dtype[-1])
