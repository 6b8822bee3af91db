"""The coordinator's connections: how many there may be, and HTTP/1.1 that knows its TLS peer."""

from __future__ import annotations

import asyncio
import resource
import socket
import weakref
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Door", "PeerProtocol"]

HEADER_S = 10.0
CONNECTIONS_PER_HOLDER = 8
MAX_CONNECTIONS = 2048


class Door(socket.socket):
    """A listening socket that closes at once what is more than its share of open connections.

    It counts from the accepted connection on, before TLS: whoever connects without a certificate holds a
    file descriptor until the handshake fails, and the registry needs descriptors too.
    """

    def __init__(self, listening: socket.socket) -> None:
        """Take over ``listening``."""
        super().__init__(listening.family, listening.type, listening.proto, fileno=listening.detach())
        self._places = _places()
        self._inside: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept one connection.

        Raises:
            ConnectionAbortedError: all places are taken; asyncio takes it for a peer that has hung up.
        """
        connection, address = super().accept()
        if sum(each.fileno() >= 0 for each in self._inside) >= self._places:
            connection.close()
            raise ConnectionAbortedError("all places are taken")
        self._inside.add(connection)
        return connection, address


def _places() -> int:
    """Return a quarter of the files this process may open, at most :data:`MAX_CONNECTIONS`.

    The soft limit is raised first, as far as the hard limit lets it and no further than is of use.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 4 * MAX_CONNECTIONS
    if 0 <= soft < enough:  # -1 is no limit
        soft = min(hard, enough) if hard >= 0 else enough
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft < 0 else min(MAX_CONNECTIONS, soft // 4)


class PeerProtocol(H11Protocol):  # type: ignore[misc]
    """HTTP/1.1 that knows the TLS peer: its key goes into ``scope["state"]["peer"]`` of every request.

    h11 bounds the header block; a peer that connects and then sends no complete one is cut off after
    :data:`HEADER_S`, and a holder cannot hold more than :data:`CONNECTIONS_PER_HOLDER` connections.
    """

    app_state: dict[str, Any]
    peer: bytes | None = None
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Note who is connected; abort when that holder already has all the connections it may have."""
        super().connection_made(transport)
        # asyncio leaves it off for a socket it did not make: 40 ms per answer with delayed acknowledgements.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer = _peer_key(transport)
        self.app_state = self.app_state | {"peer": self.peer, "abort": transport.abort}
        mine = sum(getattr(other, "peer", None) == self.peer for other in self.connections)
        if self.peer is None or mine > CONNECTIONS_PER_HOLDER:
            transport.abort()
        else:
            self._deadline = self.loop.call_later(HEADER_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the timer with the connection."""
        self._clear_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first byte of a header block, stop it with the last."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._clear_deadline()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(HEADER_S, self.transport.abort)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _peer_key(transport: asyncio.Transport) -> bytes | None:
    tls = transport.get_extra_info("ssl_object")
    certificate = tls.getpeercert(binary_form=True) if tls is not None else None
    if not certificate:
        return None
    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
