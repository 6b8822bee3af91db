"""A Flower grid whose holders live in this process: the live system's ClientApps, no network.

Beside flwr's public API only the run and task identity are used, which ``Grid`` and ``Message`` ask for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["LocalGrid"]

_RUN_ID = 1
_FIRST_NODE_ID = 2


class LocalGrid(Grid):  # type: ignore[misc]
    """Puts each question to its holder's app when the replies are asked for, one after another.

    Messages are copied both ways, so that neither side can reach into the other's memory. An app that
    raises becomes an error reply without its text, as over the network.

    Args:
        apps: ClientApp, or any function of message and context, by holder name.
    """

    def __init__(self, apps: Mapping[str, Callable[[Message, Context], Message]]) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = _RUN_ID, 1, SUPERLINK_NODE_ID
        self._nodes = {name: _FIRST_NODE_ID + index for index, name in enumerate(apps)}
        self._apps = {self._nodes[name]: app for name, app in apps.items()}
        self._run = Run.create_empty(run_id=_RUN_ID)
        self._questions: dict[str, Message] = {}
        self._pushed = 0

    def set_run(self, run: Run) -> None:
        """Part of ``Grid``: note the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run, an empty one unless set."""
        return self._run

    def nodes(self) -> dict[str, int]:
        """Return the node id of every holder by name."""
        return dict(self._nodes)

    def get_node_ids(self) -> list[int]:
        """Return all node ids."""
        return list(self._apps)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a question to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take copies of questions; those to unknown nodes are dropped."""
        ids = []
        for message in messages:
            self._pushed += 1
            message_id = f"local-{self._pushed}"
            message.metadata.__dict__["_message_id"] = message_id
            if message.metadata.dst_node_id in self._apps:
                self._questions[message_id] = copy.deepcopy(message)
                ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Ask the apps, and return copies of their replies."""
        wanted = [each for each in message_ids if each in self._questions]
        return [self._ask(self._questions.pop(each)) for each in wanted]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push and pull; every app is asked, however long it takes."""
        return self.pull_messages(self.push_messages(messages))

    def _ask(self, question: Message) -> Message:
        node_id = question.metadata.dst_node_id
        context = Context(run_id=_RUN_ID, node_id=node_id, node_config={}, state=RecordDict(), run_config={})
        try:
            return copy.deepcopy(self._apps[node_id](question, context))
        except Exception:  # noqa: BLE001 - what went wrong stays with the holder, as over the network
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "failed"), reply_to=question)
