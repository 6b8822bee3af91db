"""The Flower ClientApp of a holder: opens signed questions, asks the holder, seals the answers."""

from __future__ import annotations

import errno
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from assay.client.holder import Holder, decline_code
from assay.privacy.errors import BadData, BadInput, Refused, Unavailable
from assay.privacy.keys import Identity
from assay.privacy.messages import Declined
from assay.privacy.messages import Message as Question
from assay.privacy.wire import Frame, open_frame, seal

__all__ = ["COORDINATOR", "make_app"]

COORDINATOR = "coordinator"


def make_app(
    holder: Holder,
    *,
    identity: Identity,
    federation: str,
    coordinator_key: bytes,
    log: Callable[[str], None],
) -> ClientApp:
    """Build the ClientApp that answers for ``holder``.

    Args:
        holder: data, policy and ledger behind the answers.
        identity: the holder's signing key.
        federation: identifier of the federation, 64 hexadecimal digits.
        coordinator_key: Ed25519 key every question must be signed with, 32 bytes.
        log: where one line per question goes; stays at the holder.

    Returns:
        An app that raises on questions that are not the coordinator's, so that nothing is answered.
    """
    inbound = Frame(federation=federation, sender=COORDINATOR, receiver=holder.name)
    outbound = Frame(federation=federation, sender=holder.name, receiver=COORDINATOR)

    def answer(message: Message, context: Context) -> Message:
        record = message.content["assay"]
        question = open_frame(bytes(record["frame"]), inbound, coordinator_key)
        reply = seal(_answer(holder, question, log), outbound, identity)
        content = RecordDict({"assay": ConfigRecord({"frame": reply})})
        return Message(content, reply_to=message)

    app = ClientApp()
    app.train()(answer)
    app.query()(answer)
    return app


def _answer(holder: Holder, question: Question, log: Callable[[str], None]) -> Question:
    """Answer, or decline with a word from a fixed list; the reason in full stays in the log.

    Raises:
        Unavailable: the disk is full, or a database does not answer; worth another try.
    """
    where = f"run {question.run[:8]} {question.kind} {getattr(question, 'round', '')}".rstrip()
    try:
        reply = holder.answer(question)
    except Refused as error:
        log(f"{where}: refused ({error.code}): {error}")
        return Declined(run=question.run, code=decline_code(error))
    except BadInput as error:
        # The cell of a record never enters a log.
        log(f"{where}: {error.without_cell() if isinstance(error, BadData) else error}")
        return Declined(run=question.run, code=decline_code(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Unavailable(f"{where}: {error.strerror}; nothing is answered") from None
    log(f"{where}: {reply.kind}")
    return reply
