"""The only door of the coordinator's public port: five Fleet calls, one certified holder each.

Flower's own listener answers administration, runtime and Fleet calls on one port, buffers a body before
it authenticates, and signs a timestamp only. This gate stands in its place. A request is answered if

===================  ==============================================================================
path and method      POST to one of :data:`CALLS`                                          404
peer                 TLS client certificate whose key belongs to an admitted node          401
Flower signature     by that same key, over a timestamp in Flower's window, used once      401
size                 Content-Length given, within the call's limit, before any byte        411, 413
pace                 body and answer move on within their time limits                      408, closed
load                 few requests at once per holder                                       429
node                 the node named in the body is the certificate's                       401
reply                one record with one value, or an error, for a question to that node   400, 403
===================  ==============================================================================

Refusals carry a status and one fixed word, nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtoMessage

from assay.privacy.wire import MAX_FRAME_BYTES

__all__ = ["CALLS", "POLL_S", "Backend", "Denied", "Gate"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_SMALL = 4096
MAX_REASON = 200  # characters of a holder's error; Assay's own daemons send one fixed word
CALLS: dict[str, tuple[type[ProtoMessage], int]] = {
    "/v1/fleet/activate-node": (ActivateNodeRequest, _SMALL),
    "/v1/fleet/deactivate-node": (DeactivateNodeRequest, _SMALL),
    "/v1/fleet/send-node-heartbeat": (SendNodeHeartbeatRequest, _SMALL),
    "/v1/fleet/pull-messages": (PullMessagesRequest, _SMALL),
    "/v1/fleet/push-messages": (PushMessagesRequest, MAX_FRAME_BYTES + 65536),
}
_SCALARS = ("bytes", "string", "bool", "double", "sint64", "uint64")
POLL_S = 20.0
AGAIN_S = 3.0  # until a question that was given and not answered is given again
BODY_S = 30.0
ANSWER_S = 60.0
REQUESTS_PER_HOLDER = 4
# Flower accepts a timestamp from 5 s ahead to 305 s behind; each is remembered for longer than that.
REMEMBERED_S = 320.0
REMEMBERED = 100_000

_log = logging.getLogger("assay.gate")


class Denied(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status.
        word: what the peer is told, a fixed word.
    """

    def __init__(self, status: int, word: str) -> None:
        super().__init__(word)
        self.status, self.word = status, word


class Backend(Protocol):
    """What the gate asks of the node registry and message store behind it."""

    def node_of(self, public_key: bytes) -> int | None:
        """Return the node admitted with this key (PEM), or None."""

    def check_signature(self, public_key: bytes, timestamp: str, signature: bytes) -> None:
        """Raise :class:`Denied` unless the key signed ``timestamp`` and it is in Flower's window."""

    def handle(self, request: ProtoMessage, node_id: int) -> ProtoMessage:
        """Answer a checked request of ``node_id``."""


class Gate:
    """ASGI application in front of a :class:`Backend`; see the table at the top of this module.

    ``pull-messages`` is held open until there is a message for the node, at most :data:`POLL_S`. All
    state is touched in the listener's event loop only, except where a method says otherwise.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._busy: Counter[bytes] = Counter()
        self._seen: dict[bytes, OrderedDict[str, float]] = {}
        self._news: set[int] = set()
        self._given: dict[int, tuple[str, float]] = {}
        self._polls: dict[int, asyncio.Event] = {}

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve from ``loop``, the running loop of a new listener."""
        self._loop, self._closing = loop, False
        self._polls.clear()
        self._busy.clear()

    def close(self) -> None:
        """Let go of every held request, so that the listener can stop at once. Any thread may call it."""
        self._closing = True
        self._call_in_loop(self._ring_all)

    def wake(self, node_id: int) -> None:
        """Tell a waiting node that there may be a message for it. Any thread may call it."""
        self._news.add(node_id)
        self._call_in_loop(lambda: self._ring(node_id))

    def _call_in_loop(self, action: Callable[[], object]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(action)

    def _ring_all(self) -> None:
        for node_id in self._polls:
            self._ring(node_id)

    def _ring(self, node_id: int) -> None:
        if node_id in self._polls:
            self._polls[node_id].set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        try:
            status, body = 200, (await self._answer(scope, receive)).SerializeToString()
        except Denied as denied:
            status, body = denied.status, denied.word.encode()
        except Exception:  # noqa: BLE001 - whatever it was stays in our log
            _log.exception("request failed")
            status, body = 500, b"internal"
        headers = [(b"content-length", str(len(body)).encode())]
        kind = b"application/protobuf" if status == 200 else b"text/plain"
        headers += [(b"content-type", kind)] + [(b"connection", b"close")] * (status != 200)
        try:
            async with asyncio.timeout(ANSWER_S):
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
        except TimeoutError:
            scope["state"]["abort"]()

    async def _answer(self, scope: Scope, receive: Receive) -> ProtoMessage:
        if scope["method"] != "POST" or scope["path"] not in CALLS:
            raise Denied(404, "path")
        kind, limit = CALLS[scope["path"]]
        headers = dict(scope["headers"])
        size = _body_size(headers, limit)
        peer: bytes = scope["state"]["peer"]
        self._authenticate(peer, headers)
        if self._busy[peer] >= REQUESTS_PER_HOLDER:
            raise Denied(429, "busy")
        self._busy[peer] += 1
        try:
            request = await _read(kind, size, receive)
            node_id = self._speaker(peer, request)
            if isinstance(request, PullMessagesRequest):
                return await self._poll(peer, request, receive)
            if isinstance(request, PushMessagesRequest):
                _require_plain(request, node_id)
            answer = self._backend.handle(request, node_id)
            if isinstance(request, ActivateNodeRequest):
                self.wake(node_id)
            return answer
        finally:
            self._busy[peer] -= 1

    def _authenticate(self, peer: bytes, headers: dict[bytes, bytes]) -> None:
        """Bind Flower's signed headers to the certificate, and accept each signature once."""
        if self._backend.node_of(peer) is None:
            raise Denied(401, "unknown-key")
        try:
            claimed = base64.b64decode(headers[b"flwr-public-key"], validate=True)
            signature = base64.b64decode(headers[b"flwr-signature"], validate=True)
            timestamp = headers[b"flwr-timestamp"].decode("ascii")
        except (KeyError, binascii.Error, UnicodeDecodeError):
            raise Denied(401, "signature") from None
        if claimed != peer or len(timestamp) > 40:
            raise Denied(401, "signature")
        self._backend.check_signature(peer, timestamp, signature)
        now = time.monotonic()
        seen = self._seen.setdefault(peer, OrderedDict())
        while seen and next(iter(seen.values())) < now - REMEMBERED_S:
            seen.popitem(last=False)
        if timestamp in seen:
            raise Denied(401, "replay")
        if len(seen) >= REMEMBERED:
            raise Denied(429, "busy")
        seen[timestamp] = now

    def _speaker(self, peer: bytes, request: ProtoMessage) -> int:
        """Return the node of the certificate, which must be the one the request names."""
        node_id = self._backend.node_of(peer)
        if isinstance(request, ActivateNodeRequest):
            named = node_id if request.public_key == peer else None
        elif isinstance(request, DeactivateNodeRequest):
            named = request.node_id
        else:
            named = request.node.node_id
        if node_id is None or named != node_id:
            raise Denied(401, "node")
        return node_id

    async def _poll(self, peer: bytes, request: PullMessagesRequest, receive: Receive) -> ProtoMessage:
        """Hold the request until a message is due; the newest request of a node is the one that gets it."""
        node_id, end = request.node.node_id, time.monotonic() + POLL_S
        self._ring(node_id)
        mine = self._polls[node_id] = asyncio.Event()
        try:
            while True:
                mine.clear()
                self._speaker(peer, request)  # the node may have been revoked meanwhile
                pause = POLL_S
                if node_id in self._news:
                    self._news.discard(node_id)
                    answer = self._backend.handle(request, node_id)
                    if len(answer.messages_list):
                        self._news.add(node_id)
                        pause = self._not_due_for(node_id, answer.messages_list[0].metadata.message_id)
                        if pause <= 0:
                            return answer
                await _event_or_gone(mine, receive, min(pause, end - time.monotonic()))
                if self._closing or self._polls.get(node_id) is not mine or time.monotonic() >= end:
                    return PullMessagesResponse()
        finally:
            if self._polls.get(node_id) is mine:
                del self._polls[node_id]

    def _not_due_for(self, node_id: int, message_id: str) -> float:
        """Return the seconds until this question may be given (again); at 0 it counts as given now.

        What a holder was given and asks for again was lost, or its answer refused: without the wait, a holder
        whose answer is refused each time would compute it anew without end.
        """
        now = time.monotonic()
        last_id, given_at = self._given.get(node_id, ("", now))
        if last_id == message_id and now < given_at + AGAIN_S:
            return given_at + AGAIN_S - now
        self._given[node_id] = message_id, now
        return 0.0


async def _event_or_gone(event: asyncio.Event, receive: Receive, seconds: float) -> None:
    """Wait for ``event`` or the time; a peer that hangs up must not be handed a message."""
    tasks = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(receive())}
    try:
        await asyncio.wait(tasks, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        if any(task.done() and task.result() is not True for task in tasks):
            raise Denied(408, "gone")
    finally:
        for task in tasks:
            task.cancel()


def _body_size(headers: dict[bytes, bytes], limit: int) -> int:
    length = headers.get(b"content-length", b"")
    if b"transfer-encoding" in headers or not length.isdigit():
        raise Denied(411, "length")
    if len(length) > 12 or int(length) > limit:
        raise Denied(413, "size")
    return int(length)


async def _read(kind: type[ProtoMessage], size: int, receive: Receive) -> ProtoMessage:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                event = await receive()
                if event["type"] != "http.request":
                    raise Denied(408, "gone")
                body += event.get("body", b"")
                if not event.get("more_body"):
                    break
    except TimeoutError:
        raise Denied(408, "slow") from None
    try:
        if len(body) != size:
            raise Denied(400, "length")
        return kind.FromString(bytes(body))
    except DecodeError:
        raise Denied(400, "protobuf") from None


def _require_plain(request: PushMessagesRequest, node_id: int) -> None:
    """Refuse anything but one reply of this node: one value in one record, or a short error and nothing else.

    Millions of tiny records, or elements of a list, fit into a body of the allowed size; this is checked on
    the parsed protobuf, before Flower makes an object of each.
    """
    if len(request.messages_list) != 1:
        raise Denied(400, "messages")
    message = request.messages_list[0]
    if message.metadata.src_node_id != node_id:
        raise Denied(403, "node")
    records = message.content.items
    if message.HasField("error"):
        if records or len(message.error.reason) > MAX_REASON:
            raise Denied(400, "record")
        return
    if len(records) != 1 or len(records[0].config_record.items) != 1:
        raise Denied(400, "record")
    if records[0].config_record.items[0].value.WhichOneof("value") not in _SCALARS:
        raise Denied(400, "record")
