"""The holder's side of a Flower node: activate, call until answered, heartbeat, say goodbye."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.node_pb2 import Node
from google.protobuf.message import DecodeError

from assay.client.link import Connection, FleetLink, Lost, Rejected, Signer
from assay.privacy.errors import Refused
from assay.privacy.transport import load_transport_key

__all__ = ["Replaced", "Session", "Stopped"]

HEARTBEAT_S = 30.0
BEAT_EVERY_S = 15.0
CALL_S = 30.0
# The coordinator holds a request for questions open for up to 20 s.
POLL_S = 40.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0
GOODBYE_S = 0.5
_jitter = random.SystemRandom()
_A = TypeVar("_A")


class Stopped(Exception):
    """The daemon is asked to stop."""


class Replaced(Exception):
    """The coordinator knows this holder under a new node: what belongs to the former one is gone."""


class Session:
    """One node, called from the thread that answers and from the one that sends heartbeats.

    Attributes:
        node: Flower's id of this holder at this coordinator, 0 before the first contact.
    """

    def __init__(self, link: FleetLink, stop: threading.Event, log: Callable[[str], None]) -> None:
        self._link, self._stop, self._log = link, stop, log
        self._signer = Signer(load_transport_key(link.key))
        self._line, self._pulse = Connection(link, self._signer), Connection(link, self._signer)
        self._joining = threading.Lock()
        self._trouble = ""
        self.node = 0

    def join(self) -> None:
        """Activate the node of this holder's key, however long it takes.

        Raises:
            Refused: at the first contact, the coordinator does not know the key or is not trusted.
            BadInput: at the first contact, this holder's own files are the reason.
            Stopped: the daemon is asked to stop.
        """
        self._join(self._line)

    def call(self, path: str, make: Callable[[Node], Any], kind: type[_A]) -> _A:
        """Call the coordinator until it answers.

        Args:
            path: name of the Fleet call.
            make: builds the request for a node.
            kind: protobuf type of the answer.

        Raises:
            Rejected: the coordinator will not have this request.
            Replaced: the coordinator has restarted.
            Stopped: the daemon is asked to stop.
        """
        node, pause = self.node, FIRST_PAUSE_S
        timeout = POLL_S if path == "pull-messages" else CALL_S
        while True:
            try:
                answer = _post(self._line, path, make(Node(node_id=node)), kind, timeout)
            except Rejected as rejected:
                if rejected.status == 401:
                    self._join(self._line)
                    if self.node != node:
                        raise Replaced from None
                elif rejected.status < 500 and rejected.status not in (408, 429):
                    raise
                pause = self.pause(f"coordinator said {rejected}", pause)
            except Lost as lost:
                pause = self.pause(str(lost.permanent or lost), pause)
            else:
                self._all_well()
                return answer

    def beat(self) -> None:
        """Keep the node online until stopped, whatever the other thread does."""
        while not self._stop.wait(BEAT_EVERY_S):
            if not self.node:
                continue
            request = SendNodeHeartbeatRequest(node=Node(node_id=self.node), heartbeat_interval=HEARTBEAT_S)
            try:
                _post(self._pulse, "send-node-heartbeat", request, SendNodeHeartbeatResponse, CALL_S)
                continue
            except Lost:
                # The other thread reports trouble; the next beat comes soon.
                continue
            except Rejected as rejected:
                if rejected.status != 401:
                    continue
            try:
                self._join(self._pulse)
            except Stopped:
                return

    def abort(self) -> None:
        """Make calls that wait fail at once; for use after the stop event is set."""
        self._line.abort()
        self._pulse.abort()

    def leave(self) -> None:
        """Say goodbye, so that the coordinator need not wait for the lease to end, and close."""
        goodbye = Connection(self._link, self._signer)
        try:
            if self.node:
                request = DeactivateNodeRequest(node_id=self.node)
                _post(goodbye, "deactivate-node", request, DeactivateNodeResponse, GOODBYE_S)
        except (Lost, Rejected):
            return
        finally:
            for each in (goodbye, self._line, self._pulse):
                each.close()

    def pause(self, trouble: str, seconds: float) -> float:
        """Wait about ``seconds``, less by up to half, and return the next, longer pause.

        Raises:
            Stopped: the daemon is asked to stop.
        """
        if trouble != self._trouble and not self._stop.is_set():
            self._log(f"coordinator {self._link.address}: {trouble}; trying again")
            self._trouble = trouble
        if self._stop.wait(seconds * _jitter.uniform(0.5, 1.0)):
            raise Stopped
        return min(2 * seconds, LONGEST_PAUSE_S)

    def _join(self, connection: Connection) -> None:
        request = ActivateNodeRequest(public_key=self._signer.public_key, heartbeat_interval=HEARTBEAT_S)
        pause = FIRST_PAUSE_S
        with self._joining:
            while True:
                try:
                    answer = _post(connection, "activate-node", request, ActivateNodeResponse, CALL_S)
                except Rejected as rejected:
                    if rejected.status == 401 and not self.node:
                        raise _not_welcome(self._link, rejected.word) from None
                    pause = self.pause(f"said {rejected}", pause)
                except Lost as lost:
                    if lost.permanent is not None and not self.node:
                        raise lost.permanent from None
                    pause = self.pause(str(lost.permanent or lost), pause)
                else:
                    self._all_well()
                    if answer.node_id != self.node:
                        self._log(f"connected to {self._link.address}")
                    self.node = answer.node_id
                    return

    def _all_well(self) -> None:
        if self._trouble:
            self._log(f"coordinator {self._link.address}: reached again")
            self._trouble = ""


def _post(connection: Connection, path: str, request: Any, kind: type[_A], timeout: float) -> _A:
    data = connection.post(f"/v1/fleet/{path}", request.SerializeToString(), timeout=timeout)
    try:
        return kind.FromString(data)  # type: ignore[attr-defined, no-any-return]
    except DecodeError:
        raise Lost("the answer is not readable") from None


def _not_welcome(link: FleetLink, word: str) -> Refused:
    if word == "clock":
        return Refused(
            f"coordinator {link.address}: this machine's clock differs from the coordinator's; allowed: at "
            "most 5 s ahead or 300 s behind. Set both clocks",
            code="clock",
        )
    return Refused(
        f"coordinator {link.address} does not know this holder's key; ask it to admit this holder (again)",
        code="not-admitted",
    )
