"""Flower's node registry and message store in memory, and the rules Assay adds to them.

Beyond its public API flwr is used for the Fleet protobuf messages, node authentication, ``LinkState``
and task identity: here and in ``gate``, ``grid`` and ``fleet`` beside it, and in ``fleet`` and ``session`` of
the client.

Left out on purpose: Flower's FastAPI application, whose Control and Runtime calls would share the public
port, and its object store. A message travels whole, in the ``content`` field Flower's protocol has for
it, so a question costs two requests instead of ten and a reply is never half there.

Nothing here needs to survive the process: a restarted coordinator admits its roster again, holders
activate by themselves, and what was asked is asked again (a holder's answers are idempotent).
"""

from __future__ import annotations

import datetime
import os
import threading
import time
from collections.abc import Iterable
from typing import Any

from cryptography.hazmat.primitives import serialization

from assay.privacy.errors import BadInput
from assay.server.gate import Denied

# Nothing used here reports, installs or asks for updates; these make sure of it.
os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
)
from flwr.app import Message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_ins_message
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.primitives.asymmetric import verify_signature
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager

__all__ = ["FleetStore"]

HEARTBEAT_S = 30.0


class FleetStore:
    """Flower's node registry and message store (``InMemoryLinkState``), and the rules Assay adds to it.

    The gate calls :meth:`handle` from the listener's thread; everything else may come from any thread.

    Attributes:
        changed: notified whenever a reply or a node arrives or a node is revoked.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.interrupted = False
        self._state = InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())
        self._admitted: dict[str, tuple[int, bytes]] = {}

    def nodes(self) -> dict[str, int]:
        """Return the node of every admitted holder, connected or not."""
        return {name: node_id for name, (node_id, _) in list(self._admitted.items())}

    def admit(self, name: str, public_key: bytes) -> int:
        """Create the node of a holder, or return it; another key replaces the holder's former one.

        Raises:
            BadInput: the key (PEM) belongs to another holder.
        """
        known = self._admitted.get(name)
        if known is not None and known[1] == public_key:
            return known[0]
        if self.node_of(public_key) is not None:
            raise BadInput("transport key", where=name, allowed="a key that no other holder uses")
        if known is not None:
            self.revoke(name)
        with self._state.lock:
            node_id: int = self._state.create_node(
                NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, HEARTBEAT_S, name=name
            )
            # Registered but never active, a node cannot be sent anything; offline, its messages wait.
            self._state.activate_node(node_id, HEARTBEAT_S)
            self._state.deactivate_node(node_id)
            self._admitted[name] = node_id, public_key
        return node_id

    def revoke(self, name: str) -> int | None:
        """Delete the node of a holder and the questions to it; return the node id, None if unknown."""
        node_id, public_key = self._admitted.pop(name, (None, b""))
        if node_id is None:
            return None
        with self._state.lock:
            self._state.delete_node(NOOP_FLWR_AID, node_id)
            # Flower keeps deleted nodes for ever, and their keys taken.
            del self._state.nodes[node_id], self._state.node_public_key_to_node_id[public_key]
            self._state.owner_to_node_ids[NOOP_FLWR_AID].discard(node_id)
            asked = self._state.message_ins_store
            self.forget({m for m, message in asked.items() if message.metadata.dst_node_id == node_id})
        self.notify()
        return node_id

    def online(self) -> set[str]:
        """Return the holders heard from within twice the heartbeat, and not gone since."""
        active = {node.node_id for node in self._state.get_node_info(statuses=["online"])}
        return {name for name, node_id in self.nodes().items() if node_id in active}

    def notify(self) -> None:
        """Wake whoever waits for :attr:`changed`."""
        with self.changed:
            self.changed.notify_all()

    # What the gate asks.

    def node_of(self, public_key: bytes) -> int | None:
        """Return the node admitted with this key (PEM), or None."""
        found: int | None = self._state.get_node_id_by_public_key(public_key)
        return found

    def check_signature(self, public_key: bytes, timestamp: str, signature: bytes) -> None:
        """Check Flower's node authentication: ECDSA over an ISO 8601 timestamp of now.

        Raises:
            Denied: another signer, or a clock that is ahead by 5 s or behind by 305 s.
        """
        try:
            signed_at = datetime.datetime.fromisoformat(timestamp)
            age = (datetime.datetime.now(datetime.UTC) - signed_at).total_seconds()
        except (ValueError, TypeError):
            raise Denied(401, "signature") from None
        key = serialization.load_pem_public_key(public_key)
        if not verify_signature(key, timestamp.encode("ascii"), signature):
            raise Denied(401, "signature")
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            raise Denied(401, "clock")

    def handle(self, request: Any, node_id: int) -> Any:
        """Answer a request that the gate has checked."""
        if isinstance(request, DeactivateNodeRequest):
            self._state.deactivate_node(node_id)
            return DeactivateNodeResponse()
        # Any sign of life is a heartbeat. An activation takes over the lease of the holder's own
        # earlier process, which Flower would refuse for a minute.
        self._state.acknowledge_node_heartbeat(node_id, HEARTBEAT_S)
        if isinstance(request, ActivateNodeRequest):
            self.notify()
            return ActivateNodeResponse(node_id=node_id)
        if isinstance(request, SendNodeHeartbeatRequest):
            return SendNodeHeartbeatResponse(success=True)
        if isinstance(request, PullMessagesRequest):
            return self._next_question(node_id)
        return self._take_reply(request, node_id)

    def _next_question(self, node_id: int) -> PullMessagesResponse:
        """Return the oldest question for the node.

        A holder asks again only when it has answered; what it was given and has not answered was lost on
        the way (Flower itself delivers at most once) and is returned again, until its time to live ends. The
        gate sees to the time between.
        """
        with self._state.lock:
            for message_id, message in self._state.message_ins_store.items():
                unanswered = message_id not in self._state.message_ins_id_to_message_res_id
                if message.metadata.dst_node_id == node_id and unanswered:
                    message.metadata.delivered_at = ""
            found = self._state.get_message_ins(node_id, limit=1)
        return PullMessagesResponse(
            messages_list=[message_to_proto(message) for message in found],
            message_object_trees=[ObjectTree(object_id=m.metadata.message_id) for m in found],
        )

    def _take_reply(self, request: PushMessagesRequest, node_id: int) -> PushMessagesResponse:
        proto = request.messages_list[0]
        asked = self._state.message_ins_store.get(proto.metadata.reply_to_message_id)
        if asked is None or asked.metadata.dst_node_id != node_id:
            raise Denied(403, "not-asked")
        try:
            message = message_from_proto(proto)
            genuine = message.object_id == proto.metadata.message_id
        except (ValueError, TypeError, KeyError):
            genuine = False
        if not genuine:
            raise Denied(400, "message")
        if self._state.store_message_res(message) is None:
            raise Denied(403, "not-asked")
        self.notify()
        return PushMessagesResponse(results={proto.metadata.message_id: 0})

    # What the grid asks.

    def put(self, message: Message) -> str:
        """Queue a question; the id is empty when the node is not admitted or the run is over."""
        message.metadata.__dict__["_message_id"] = message.object_id
        stored: str | None = self._state.store_message_ins(message)
        return stored or ""

    def take(self, message_ids: Iterable[str], run_id: int) -> list[Message]:
        """Remove and return the replies to ``message_ids`` that are there; an error for what is gone."""
        taken, now = [], time.time()
        with self._state.lock:
            for message_id in list(message_ids):
                asked = self._state.message_ins_store.get(message_id)
                reply_id = self._state.message_ins_id_to_message_res_id.get(message_id)
                if reply_id is not None:
                    taken.append(self._state.message_res_store[reply_id])
                elif asked is None or asked.metadata.created_at + asked.metadata.ttl <= now:
                    taken.append(create_message_error_unavailable_ins_message(message_id, run_id))
                else:
                    continue
                self.forget({message_id})
        return taken

    def forget(self, message_ids: set[str]) -> None:
        """Drop questions and their replies; a reply that comes later is refused."""
        self._state.delete_messages(message_ids)

    def begin(self, name: str) -> Run:
        """Create a Flower run whose ServerApp is this process."""
        state = self._state
        run_id = state.create_run(
            f"assay/{name}", "1", "", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        run = state.get_run_info(run_ids=[run_id])[0]
        token = state.claim_task(run.primary_task_id)
        state.activate_task(run.primary_task_id)
        with state.lock_task_store:
            # The ServerApp is this process: its lease cannot lapse while the store exists, so none is kept.
            state.task_token_to_task_id.pop(token)
            state.task_token_store.pop(run.primary_task_id)
        return run

    def finish(self, run: Run, sub_status: str) -> None:
        """End a run and drop every trace of it."""
        state = self._state
        state.finish_task(run.primary_task_id, sub_status, "")
        for message_id in state.get_message_ids_from_run_id(run.run_id):
            self.forget({message_id})
        state.cleanup_run(run.run_id)
        # Flower keeps finished runs for its user interface.
        with state.lock_task_store, state.lock:
            del state.run_ids[run.run_id], state.task_store[run.primary_task_id]
            state.flwr_aid_to_run_ids[NOOP_FLWR_AID].discard(run.run_id)
        for table, key in (
            (state.run_series_store, run.series_id),
            (state.run_series_context_store, run.series_id),
            (state.run_connector_store, run.run_id),
        ):
            table.pop(key, None)
