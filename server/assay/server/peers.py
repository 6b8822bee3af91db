"""HTTP/1.1 connections that know their TLS peer, for the coordinator's listener."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["PeerProtocol"]

HEADER_S = 10.0
CONNECTIONS_PER_HOLDER = 8


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
