"""Names, addresses and keys of tables: the small texts that people type and files carry."""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import re
from collections.abc import Collection
from typing import Any

from assay.privacy.errors import BadInput

__all__ = [
    "check_federation_name",
    "check_holder_name",
    "check_host",
    "check_port",
    "exact_keys",
    "federation_id",
    "join_address",
    "split_address",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
# What the frames of ``wire`` call the coordinator; a holder of that name could pass for it.
_RESERVED = frozenset({"coordinator"})
_FEDERATION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,46}[A-Za-z0-9])?")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def check_holder_name(name: object, *, where: str = "") -> str:
    """Return ``name`` if a holder may have it.

    Raises:
        BadInput: not 1 to 63 of a-z, 0-9 and "-", starting with a letter or digit, or "coordinator".
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        allowed = '1 to 63 of a-z, 0-9 and "-", starting with a letter or digit, not "coordinator"'
        raise BadInput("name", value=name, where=where, allowed=allowed)
    return name


def check_federation_name(name: object, *, where: str = "") -> str:
    """Return ``name`` if a federation may have it.

    Raises:
        BadInput: not 1 to 48 letters, digits, spaces, ".", "_" and "-", with a letter or digit at each end.
    """
    if not isinstance(name, str) or not _FEDERATION.fullmatch(name):
        allowed = '1 to 48 letters, digits, spaces, ".", "_" and "-", a letter or digit at each end'
        raise BadInput("federation name", value=name, where=where, allowed=allowed)
    return name


def check_host(host: object, *, where: str = "") -> str:
    """Return ``host`` if holders can connect to it: a host name or an address that stands for one machine.

    Raises:
        BadInput: anything else, also the wildcard addresses 0.0.0.0 and ::.
    """
    text = host if isinstance(host, str) else ""
    try:
        address = ipaddress.ip_address(text)
        fits = not (address.is_unspecified or address.is_multicast) and "%" not in text
    except ValueError:
        # All digits and dots is a mistyped address, never a name.
        fits = len(text) <= 253 and bool(_HOST.fullmatch(text)) and not text.replace(".", "").isdigit()
    if not fits:
        allowed = "a host name or IP address that the holders can reach"
        raise BadInput("host", value=host, where=where, allowed=allowed)
    return text


def check_port(port: object, *, where: str = "") -> int:
    """Return ``port`` if it is an integer in 1..65535.

    Raises:
        BadInput: anything else.
    """
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise BadInput("port", value=port, where=where, allowed="1..65535")
    return port


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: object, *, where: str = "") -> tuple[str, int]:
    """Return host and port of a text made by :func:`join_address`.

    Raises:
        BadInput: it is not exactly such a text.
    """
    text = address if isinstance(address, str) else ""
    host, _, digits = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        port = check_port(int(digits) if re.fullmatch(r"[0-9]{1,5}", digits) else None)
        exact = join_address(check_host(bare), port) == text
    except BadInput:
        exact = False
    if not exact:
        raise BadInput("address", value=address, where=where, allowed="HOST:PORT or [IPv6]:PORT")
    return bare, port


def federation_id(coordinator_public: bytes) -> str:
    """Return the name of a federation on the wire: SHA-256 of its Ed25519 key, 64 hexadecimal digits."""
    return hashlib.sha256(coordinator_public).hexdigest()


def exact_keys(table: object, wanted: Collection[str], *, where: str, section: str = "") -> dict[str, Any]:
    """Return ``table`` if it is a table with exactly the keys ``wanted``.

    Raises:
        BadInput: naming the first unknown key and the nearest known one, or the first missing key.
    """
    label = f"[{section}]" if section else "file"
    if not isinstance(table, dict):
        raise BadInput(label, where=where, allowed="a table of keys and values")
    for key in table:
        if key not in wanted:
            near = difflib.get_close_matches(key, wanted, n=1)
            remedy = f"Did you mean {near[0]}?" if near else ""
            allowed = ", ".join(sorted(wanted))
            raise BadInput(f"key in {label}", value=key, where=where, allowed=allowed, remedy=remedy)
    for key in wanted:
        if key not in table:
            raise BadInput(f"{key} in {label}", where=where, allowed="a value; it is missing")
    return table
