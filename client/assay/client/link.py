"""One TLS 1.3 connection to the coordinator: whom it trusts, how it signs, what it gives up on.

Trust: the federation's own authority and nothing else; no system store, no proxy, no redirect and no
compressed answer. Every call has a finite time-out and every answer a size limit.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from assay.privacy.errors import AssayError, BadInput, Refused
from assay.privacy.transport import (
    load_certificate,
    load_transport_key,
    public_pem,
    require_client_certificate,
    require_valid_at,
)
from assay.privacy.wire import MAX_FRAME_BYTES

__all__ = ["Connection", "FleetLink", "Lost", "Rejected", "Signer"]

MAX_ANSWER_BYTES = MAX_FRAME_BYTES + 65536
# The coordinator closes a connection that was idle for 75 s.
IDLE_S = 60.0
# It remembers a signature for 320 s from when it came, up to a call's time-out after it was made.
REMEMBERED_S = 600.0
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})")
_RENEW = "Ask the coordinator for a new certificate and join again"


class Lost(Exception):
    """The coordinator was not reached, or the connection broke; worth another try.

    Attributes:
        permanent: set when no further try can help until somebody changes something.
    """

    def __init__(self, reason: str, permanent: AssayError | None = None) -> None:
        super().__init__(reason)
        self.permanent = permanent


class Rejected(Exception):
    """The coordinator answered with an error.

    Attributes:
        status: HTTP status.
        word: what it said, at most 80 printable characters.
    """

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.word = "".join(c for c in body[:80].decode("ascii", "replace") if c.isprintable())
        super().__init__(f"{status} {self.word}".strip())


@dataclass(frozen=True, kw_only=True)
class FleetLink:
    """Where the coordinator is and how to recognise each other.

    Attributes:
        address: ``host:port`` (``[v6]:port``); the host must stand in the coordinator's certificate.
        ca: PEM certificate of the federation's authority.
        certificate: PEM client certificate of this holder.
        key: its P-384 private key, PEM, mode 0600; Flower's node authentication uses it too.
    """

    address: str
    ca: Path
    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        match = _ADDRESS.fullmatch(self.address)
        if match is None or not 0 < int(match[2]) < 65536:
            raise BadInput("address", value=self.address, allowed="host:port")

    @property
    def host(self) -> str:
        """The host without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port."""
        return int(self.address.rpartition(":")[2])

    def check(self) -> None:
        """Check the files against each other and against today's date.

        Raises:
            BadInput: a file is missing, readable by others or expired, or they do not belong together.
            Tampered: the certificate is not issued by the authority.
        """
        where = str(self.certificate)
        own = load_certificate(_read(self.certificate), setting="certificate", where=where)
        root = load_certificate(_read(self.ca), setting="ca", where=str(self.ca))
        require_client_certificate(own, root, where=where)
        require_valid_at(own, datetime.now(UTC), where=where, remedy=f"{_RENEW}, or set this machine's clock")
        key = load_transport_key(self.key)
        if public_pem(own.public_key(), where=where) != public_pem(key.public_key(), where=str(self.key)):
            raise BadInput("key", where=self.key, allowed=f"the private key of {self.certificate}")

    def tls(self) -> ssl.SSLContext:
        """Return a context for one connection; files are read anew, so that a renewed one takes effect."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cafile=str(self.ca))
        context.load_cert_chain(str(self.certificate), str(self.key))
        return context


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        raise BadInput("file", value=str(path), allowed="a readable PEM file") from None


class Signer:
    """Flower's node authentication: the public key, and a signature over a timestamp used once."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key, self._lock = key, threading.Lock()
        self._used: OrderedDict[datetime, float] = OrderedDict()
        self.public_key = public_pem(key.public_key(), where="key").encode("ascii")

    def headers(self) -> dict[str, str]:
        """Return the headers for one request; no two that may arrive within minutes share a timestamp."""
        stamp = self._unused(datetime.now(UTC)).isoformat()
        signature = self._key.sign(stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-public-key": base64.b64encode(self.public_key).decode("ascii"),
            "flwr-timestamp": stamp,
            "flwr-signature": base64.b64encode(signature).decode("ascii"),
        }

    def _unused(self, stamp: datetime) -> datetime:
        """Return ``stamp`` or the next one free.

        Stamps need not rise: after a clock that was ahead is set right, they go on from the right time, for
        the coordinator accepts none of the future.
        """
        now = time.monotonic()
        with self._lock:
            while self._used and next(iter(self._used.values())) < now - REMEMBERED_S:
                self._used.popitem(last=False)
            while stamp in self._used:
                stamp += timedelta(microseconds=1)
            self._used[stamp] = now
        return stamp


class Connection:
    """A kept-alive connection for one thread; :meth:`abort` is for any other."""

    def __init__(self, link: FleetLink, signer: Signer) -> None:
        self._link, self._signer = link, signer
        self._http: http.client.HTTPSConnection | None = None
        self._used = 0.0

    def post(self, path: str, body: bytes, *, timeout: float) -> bytes:
        """Send one signed request and return the body of its answer.

        Raises:
            Lost: no answer; the connection is closed and the next call opens a new one.
            Rejected: an answer other than 200.
        """
        headers = {"content-type": "application/protobuf", "accept-encoding": "identity"}
        try:
            connection = self._open(timeout)
            connection.request("POST", path, body, headers | self._signer.headers())
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER_BYTES + 1)
            if len(data) > MAX_ANSWER_BYTES:
                raise http.client.HTTPException("the answer is too large")
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Lost(_reason(error), self._permanent(error)) from None
        self._used = time.monotonic()
        if answer.will_close:
            self.close()
        if answer.status != 200:
            raise Rejected(answer.status, data)
        return data

    def _open(self, timeout: float) -> http.client.HTTPSConnection:
        if self._http is not None and time.monotonic() - self._used > IDLE_S:
            self.close()
        if self._http is None:
            self._http = http.client.HTTPSConnection(
                self._link.host, self._link.port, timeout=timeout, context=self._link.tls()
            )
            self._http.connect()
        self._http.sock.settimeout(timeout)
        return self._http

    def _permanent(self, error: Exception) -> AssayError | None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return Refused(
                f"coordinator {self._link.address} is not trusted: {error.verify_message}; allowed: a "
                f"certificate for this host issued by {self._link.ca}. Check the address, the clock of "
                "this machine and the coordinator's certificate",
                code="certificate",
            )
        if isinstance(error, (OSError, ValueError)):
            # A refused client certificate shows as a broken connection; name it if it is ours that is bad.
            try:
                self._link.check()
            except AssayError as bad:
                return bad
        return None

    def close(self) -> None:
        """Close; the next :meth:`post` connects anew."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def abort(self) -> None:
        """Make a call that waits in another thread fail at once."""
        current = self._http
        sock = current.sock if current is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket.shutdown, which would pull the TLS state from under the other thread.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'connection broken'}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "timed out" if isinstance(error, TimeoutError) else type(error).__name__
