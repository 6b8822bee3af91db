"""The coordinator's side of the fleet: who may connect, the TLS listener, and the runs."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from cryptography.hazmat.primitives import serialization
from flwr.common.constant import SUPERLINK_NODE_ID, SubStatus
from flwr.supercore.task_identity import TaskIdentity

from assay.privacy.errors import Unavailable
from assay.privacy.transport import public_pem
from assay.server.exchange import NamedGrid, exchange
from assay.server.gate import Gate
from assay.server.grid import FleetGrid
from assay.server.peers import Door, PeerProtocol
from assay.server.store import FleetStore

__all__ = ["FleetGrid", "FleetServer", "NamedGrid", "exchange"]

HANDSHAKE_S = 10.0


class FleetServer:
    """The coordinator's side of the fleet: who may connect, the listener, and the runs.

    Transport: TLS 1.3 only, client certificates of ``client_ca`` only. :meth:`start` and :meth:`stop`
    may be called again; nodes, runs and queued questions outlive the listener.

    Args:
        host: address to listen on.
        port: 0 lets the system choose; see :attr:`port`.
        certfile: PEM chain of the server.
        keyfile: its private key, PEM.
        client_ca: PEM certificate of the authority that certifies holders.
        home: directory for files Flower might write.
    """

    def __init__(
        self, host: str, port: int, *, certfile: Path, keyfile: Path, client_ca: Path, home: Path
    ) -> None:
        os.environ["FLWR_HOME"] = str(home)
        # Flower logs every call; the refusals that matter are logged by the gate.
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        self.host, self.port = host, port
        self._tls = _tls_context(certfile, keyfile, client_ca)
        self._store = FleetStore()
        self._gate = Gate(self._store)
        self._run_lock = threading.Lock()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def admit(self, name: str, public_key: bytes) -> int:
        """Let the holder ``name`` connect with its P-384 transport key (PEM); return its node id.

        Admitting the same pair again changes nothing; another key replaces the former one.

        Raises:
            BadInput: not a P-384 key, or the key of another holder.
        """
        try:
            key = serialization.load_pem_public_key(public_key)
        except ValueError:
            key = None
        return self._store.admit(name, public_pem(key, where=name).encode("ascii"))

    def revoke(self, name: str) -> None:
        """Shut the holder ``name`` out at once; questions to it end with an error."""
        node_id = self._store.revoke(name)
        if node_id is not None:
            self._gate.wake(node_id)

    def online(self) -> set[str]:
        """Return the holders heard from within the last minute that have not said goodbye."""
        return self._store.online()

    def wait_online(self, names: Iterable[str], timeout: float) -> set[str]:
        """Wait until all ``names`` are online or ``timeout`` seconds have passed; return who is."""
        wanted, end = set(names), time.monotonic() + timeout
        with self._store.changed:
            while not (online := self.online()) >= wanted and not self._store.interrupted:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._store.changed.wait(left)
        return online & wanted

    def interrupt(self) -> None:
        """End every wait of :meth:`wait_online` and of grids, for good. A signal handler may call it."""
        self._store.interrupted = True
        self._store.notify()

    @contextmanager
    def run(self, name: str) -> Iterator[FleetGrid]:
        """Open a Flower run and yield its grid; one at a time, because flwr's task identity is global.

        Raises:
            Unavailable: another run is open.
        """
        if not self._run_lock.acquire(blocking=False):
            raise Unavailable("a run is in progress; start the next one when it has ended")
        run, outcome = None, SubStatus.FAILED
        try:
            run = self._store.begin(name)
            TaskIdentity.run_id, TaskIdentity.task_id = run.run_id, run.primary_task_id
            TaskIdentity.node_id = SUPERLINK_NODE_ID
            yield FleetGrid(self._store, self._gate.wake, run)
            outcome = SubStatus.COMPLETED
        finally:
            if run is not None:
                self._store.finish(run, outcome)
            self._run_lock.release()

    def start(self) -> None:
        """Listen.

        Raises:
            Unavailable: the address is in use or not this machine's.
        """
        try:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listening = Door(socket.create_server((self.host, self.port), family=family, backlog=128))
        except OSError as error:
            raise Unavailable(f"cannot listen on {self.host}:{self.port}: {error.strerror}") from None
        self.port = listening.getsockname()[1]
        config = uvicorn.Config(
            self._gate,
            http=PeerProtocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level=logging.CRITICAL,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=16384,
            ssl_context_factory=lambda _config, _default: self._tls,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(self._server, listening)), name="fleet", daemon=True
        )
        self._thread.start()

    async def _serve(self, server: uvicorn.Server, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._gate.open(loop)
        # uvicorn has no setting for these two; asyncio's own are 60 and 30 seconds.
        loop.create_server = functools.partial(  # type: ignore[method-assign]
            loop.create_server, ssl_handshake_timeout=HANDSHAKE_S, ssl_shutdown_timeout=1.0
        )
        await server.serve(sockets=[listening])
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0.05)

    def stop(self) -> None:
        """Stop listening; requests under way end within two seconds."""
        if self._server is None or self._thread is None:
            return
        self._gate.close()
        self._server.should_exit = True
        self._thread.join(10.0)
        self._server = self._thread = None


def _tls_context(certfile: Path, keyfile: Path, client_ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cafile=str(client_ca))
    context.load_cert_chain(str(certfile), str(keyfile))
    return context
