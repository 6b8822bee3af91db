"""Flower's ``Grid`` on the coordinator's message store."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from assay.privacy.errors import BadInput
from assay.server.store import FleetStore

__all__ = ["FleetGrid"]


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
