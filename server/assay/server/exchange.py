"""One exchange of frames over any Flower grid.

flwr is imported when the first message is built: a simulation that sends none does without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from assay.privacy.errors import BadInput

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict

__all__ = ["NamedGrid", "exchange"]


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
    from flwr.app import ConfigRecord, RecordDict

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
    from flwr.common.constant import ErrorCode

    if reply.has_error():
        reasons = {
            ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "the holder's application failed; its log says why",
            ErrorCode.MESSAGE_UNAVAILABLE: "the holder is no longer admitted",
        }
        return reasons.get(reply.error.code, "the holder answered with an error")
    try:
        frame = reply.content["assay"]["frame"]
    except (KeyError, TypeError):
        frame = None
    return frame if isinstance(frame, bytes) else "the answer is not a frame"
