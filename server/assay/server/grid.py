"""Flower's ``Grid`` on the coordinator's message store, and one exchange of frames over any grid."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from assay.privacy.errors import BadInput

if TYPE_CHECKING:
    from assay.server.store import FleetStore  # slow to import, and simulations have no such store

__all__ = ["FleetGrid", "NamedGrid", "exchange"]


class FleetGrid(Grid):  # type: ignore[misc]
    """Flower's ``Grid`` for one run, straight on the message store; waits are woken, not polled."""

    def __init__(self, store: FleetStore, wake: Callable[[int], None], run: Run) -> None:
        self._store, self._wake, self._run = store, wake, run

    def set_run(self, run: Run) -> None:
        """Part of ``Grid``; the run of this grid is fixed.

        Raises:
            BadInput: always.
        """
        raise BadInput("run", allowed="the run this grid was made for")

    @property
    def run(self) -> Run:
        """The Flower run this grid belongs to."""
        return self._run

    def nodes(self) -> dict[str, int]:
        """Return the node id of every admitted holder by name, connected or not."""
        return self._store.nodes()

    def get_node_ids(self) -> list[int]:
        """Return the nodes that are connected."""
        nodes, online = self.nodes(), self._store.online()
        return [nodes[name] for name in sorted(online) if name in nodes]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a question; its time to live, 12 hours by default, starts now."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue questions and wake the nodes; a node that is away gets its question when it is back."""
        ids = []
        for message in messages:
            if stored := self._store.put(message):
                ids.append(stored)
                self._wake(message.metadata.dst_node_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived, each once."""
        return self._store.take(message_ids, self._run.run_id)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Queue questions at once and yield replies as they arrive, until ``timeout`` seconds have passed.

        Questions without a reply by then are withdrawn.
        """
        end = time.monotonic() + timeout if timeout is not None else math.inf
        return self._replies(set(self.push_messages(messages)), end)

    def _replies(self, waiting: set[str], end: float) -> Iterator[Message]:
        store = self._store
        try:
            while waiting:
                with store.changed:
                    got = self.pull_messages(waiting)
                    left = end - time.monotonic()
                    if not got and (left <= 0 or store.interrupted):
                        return
                    if not got:
                        # A message that reaches the end of its life wakes nobody.
                        store.changed.wait(min(left, 30.0))
                for message in got:
                    waiting.discard(message.metadata.reply_to_message_id)
                    yield message
        finally:
            store.forget(waiting)


class NamedGrid(Protocol):
    """A Flower grid that knows its nodes by holder name."""

    def nodes(self) -> Mapping[str, int]:
        """Return the node id of every holder that may be asked."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str
    ) -> Message:
        """As Flower's ``Grid``."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None) -> Iterable[Message]:
        """As Flower's ``Grid``."""


def exchange(
    grid: NamedGrid,
    requests: Mapping[str, bytes],
    message_type: str,
    timeout: float,
    on_reply: Callable[[str, bytes | str], None] | None = None,
) -> dict[str, bytes | str]:
    """Send one frame to each named holder and collect the reply frames.

    Args:
        grid: where the holders are reached.
        requests: frame by holder name.
        message_type: Flower's: ``"train"``, ``"query"`` or ``"evaluate"``.
        timeout: seconds until a missing reply is given up, finite and above 0.
        on_reply: called as each reply arrives, with the holder's name and its entry of the result.

    Returns:
        One entry for each name in ``requests``: the reply's bytes, or a line of text that says why there
        is none. What one holder sends, or does not, never disturbs another's entry.
    """
    if not 0 < timeout < math.inf:
        raise BadInput("timeout", value=timeout, allowed="seconds above 0")
    nodes = grid.nodes()
    answers: dict[str, bytes | str] = dict.fromkeys(requests, f"no answer within {timeout:g} s")
    answers |= {name: "not admitted" for name in requests if name not in nodes}
    messages = {
        name: grid.create_message(
            RecordDict({"assay": ConfigRecord({"frame": frame})}), message_type, nodes[name], ""
        )
        for name, frame in requests.items()
        if name in nodes
    }
    replies = grid.send_and_receive(messages.values(), timeout=timeout)
    waiting = {message.metadata.message_id: name for name, message in messages.items()}
    for reply in replies:
        name = waiting.pop(reply.metadata.reply_to_message_id, None)
        if name is None:
            continue
        answers[name] = _frame_of(reply)
        if on_reply is not None:
            on_reply(name, answers[name])
    return answers


def _frame_of(reply: Message) -> bytes | str:
    if reply.has_error():
        return _REASONS.get(reply.error.code, "the holder answered with an error")
    try:
        frame = reply.content["assay"]["frame"]
    except (KeyError, TypeError):
        frame = None
    return frame if isinstance(frame, bytes) else "the answer is not a frame"


_REASONS = {
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "the holder's application failed; its log says why",
    ErrorCode.MESSAGE_UNAVAILABLE: "the holder is no longer admitted",
}
